"""What a step of each stage costs, in forwards F of the student at the batch's size."""

import pytest
import torch
from measuring.counting import flops, moving
from torch import nn

from hidistill.derivative import Central, Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.discriminators.per_token import PerToken
from hidistill.discriminators.pooled import Pooled
from hidistill.guidance import Guided
from hidistill.recipes.stages import refine, sketch
from hidistill.teachers.dit import DiT
from hidistill.types import Batch

B = 8


def cost(update, batch, f):
    """Forwards that an update costs: only what it moves may have a gradient, as in the loop."""
    for parameter in update.parameters():
        parameter.requires_grad_(True)
    spent = flops(lambda: update.objective(batch).value.mean().backward()) / f
    for parameter in update.parameters():
        assert parameter.grad is not None
        parameter.requires_grad_(False)
    return spent


@pytest.fixture(params=[("mini", 0), ("slim", 16)], ids=["plain", "with pixel layers"])
def parts(request):
    """A frozen teacher, its student, a batch, and F."""
    size, pixel_channels = request.param
    teacher = DiT(image_size=28, channels=1, classes=10, size=size, pixel_channels=pixel_channels)
    teacher.requires_grad_(False)
    student = teacher.student().requires_grad_(False)
    batch = Batch(torch.randn(B, 1, 28, 28), torch.arange(B))
    t = torch.rand(B)
    f = flops(lambda: student.mean_velocity(batch.x, t=t, r=0.5 * t, cond=batch.cond))
    return Guided(teacher, 1.5), student, batch, f


@pytest.mark.parametrize("derivative", [Forward(), Central(1e-6)], ids=["forward", "central"])
def test_sketch(parts, derivative):
    """Guided velocity 2, forward and backward 3, derivative 2.1 on a quarter of the rows (attention is dear there)."""
    field, student, batch, f = parts
    stage = sketch(student, field, steps=10, derivative=derivative, instantaneous=0.75)
    spent = cost(stage.updates["student"], batch, f)
    assert 5.4 < spent <= 2 + 3 + 0.25 * 2.1


def test_sketch_pays_by_the_row(parts):
    """Two forwards per row with r < t, and none for the others."""
    field, student, batch, f = parts
    costs = []
    for share in (1.0, 0.5, 0.0):
        stage = sketch(student, field, steps=10, derivative=Forward(), instantaneous=share)
        costs.append(cost(stage.updates["student"], batch, f))
    assert costs[0] <= 5.0
    assert 1.0 < costs[1] - costs[0] <= 1.05
    assert 1.0 < costs[2] - costs[1] <= 1.05


@pytest.mark.parametrize("head", [Adaptive, Pooled, PerToken])
def test_refine(parts, head):
    """Student: itself 3, fake 1, teacher 2 and back to x_t 1; critics: sample 1, fake 3, features of two batches 2."""
    teacher, student, batch, f = parts
    fake = teacher.teacher.from_config(teacher.teacher.config).requires_grad_(False)
    discriminator: nn.Module = head(teacher.feature_channels)
    stage = refine(student, teacher, fake, discriminator.requires_grad_(False), steps=10)
    assert 6.0 < cost(stage.updates["student"], batch, f) <= 8.0
    assert 5.0 < cost(stage.updates["critics"], batch, f) <= 7.0


def test_a_reused_draw_spares_the_critics_a_sample_and_its_features(parts):
    """Sample 1, and the teacher up to its last tap, at three quarters of its depth."""
    teacher, student, batch, f = parts
    fake = teacher.teacher.from_config(teacher.teacher.config).requires_grad_(False)
    head = Adaptive(teacher.feature_channels).requires_grad_(False)
    costs = []
    for reuse in (False, True):
        stage = refine(student, teacher, fake, head, steps=10, reuse=reuse)
        costs.append([cost(stage.updates[name], batch, f) for name in ("student", "critics")])
    assert costs[1][0] == pytest.approx(costs[0][0], abs=0.01)
    assert 1.7 < costs[0][1] - costs[1][1] < 2.0


def test_a_trajectory_kept_in_refine_costs_one_sketch_step(parts):
    """What the student's update costs is the sum of both, and the critics pay nothing for it."""
    teacher, student, batch, f = parts
    fake = teacher.teacher.from_config(teacher.teacher.config).requires_grad_(False)
    kept = sketch(student, teacher, steps=10, derivative=Forward())
    both = refine(student, teacher, fake, None, steps=10, trajectory=kept.updates["student"].objective)
    alone = refine(student, teacher, fake, None, steps=10)
    costs = [cost(stage.updates["student"], batch, f) for stage in (both, alone, kept)]
    assert costs[0] == pytest.approx(costs[1] + costs[2], abs=0.01)
    assert costs[0] <= 6.0 + 2 + 3 + 0.75 * 2.1
    assert cost(both.updates["critics"], batch, f) <= 4.0


def test_refine_without_a_discriminator_keeps_no_graph_of_the_teacher(parts):
    """Student: itself 3, fake 1, teacher 2; critics: sample 1, fake 3."""
    teacher, student, batch, f = parts
    fake = teacher.teacher.from_config(teacher.teacher.config).requires_grad_(False)
    stage = refine(student, teacher, fake, None, steps=10)
    assert cost(stage.updates["student"], batch, f) <= 6.0
    assert cost(stage.updates["critics"], batch, f) <= 4.0


@pytest.mark.parametrize("head", [Adaptive, Pooled])
def test_pooling_heads_cost_next_to_nothing(parts, head):
    """At most 5 % of either update: tokens are pooled before they are projected."""
    teacher, student, batch, f = parts
    fake = teacher.teacher.from_config(teacher.teacher.config).requires_grad_(False)
    discriminator = head(teacher.feature_channels).requires_grad_(False)
    stage = refine(student, teacher, fake, discriminator, steps=10)
    two = [torch.randn(2 * B, teacher.teacher.grid**2, channels) for channels in teacher.feature_channels]
    at = {"t": torch.rand(2 * B), "cond": torch.arange(2 * B)}
    alone = moving(discriminator.parameters(), lambda: discriminator(two, **at).mean())
    assert flops(alone) / f <= 0.05 * cost(stage.updates["critics"], batch, f)
    one = [layer[:B].requires_grad_() for layer in two]
    back = flops(lambda: discriminator(one, t=at["t"][:B], cond=at["cond"][:B]).mean().backward())
    assert 0 < back / f <= 0.05 * cost(stage.updates["student"], batch, f)
