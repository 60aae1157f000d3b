"""What the two stages refuse when they are put together by hand."""

from copy import deepcopy

import pytest
import torch
from randomized import randomized

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.objectives.meanflow import MeanFlow
from hidistill.recipes.stages import refine, sketch
from hidistill.teachers.dit import DiT, Size
from hidistill.teachers.mixture import ExactFlowMap
from hidistill.types import Batch


@pytest.fixture
def teacher():
    return DiT(image_size=8, channels=1, classes=2, patch=2, size=Size(32, 2, 2), taps=(0, 1))


@pytest.mark.parametrize("size", [0.0, -0.3])
def test_a_discriminator_whose_gradient_is_left_out_is_refused(teacher, size):
    head = Adaptive(teacher.feature_channels)
    with pytest.raises(ValueError, match="must be positive; for distribution matching alone give discriminator=None"):
        refine(teacher.student(), Guided(teacher, 1.5), deepcopy(teacher), head, steps=2, feature_gradient=size)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_trajectory_loss_of_no_or_no_finite_weight_is_refused(teacher, weight):
    student, guided = teacher.student(), Guided(teacher, 1.5)
    kept = MeanFlow(guided, student, Forward())
    with pytest.raises(ValueError, match=r"trajectory_weight=.*to leave the loss out give trajectory=None"):
        refine(student, guided, deepcopy(teacher), None, steps=2, trajectory=kept, trajectory_weight=weight)


def test_a_student_without_parameters_is_refused(teacher):
    with pytest.raises(TypeError, match=r"a ExactFlowMap cannot be trained here; give a torch\.nn\.Module"):
        sketch(ExactFlowMap(teacher, 2), Guided(teacher, 1.5), steps=2, derivative=Forward())


def test_scores_in_low_precision_move_the_student_nearly_the_same_way(teacher):
    """The fake score still learns in float32, and is seen as it is."""
    randomized(teacher).requires_grad_(False)
    student, fake, head = teacher.student(), randomized(deepcopy(teacher)), Adaptive(teacher.feature_channels).eval()
    batch = Batch(torch.randn(8, 1, 8, 8), torch.arange(8) % 2)
    moves, learns = [], []
    for scores in ("float32", "bfloat16"):
        stage = refine(student, Guided(teacher, 1.5), fake, head, steps=2, scores=scores)
        for name, found in (("student", moves), ("critics", learns)):
            update = stage.updates[name]
            for weight in update.parameters():
                weight.requires_grad_(True)
            torch.manual_seed(0)
            loss = update.objective(batch).value.mean()
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, update.parameters())]))
            for weight in update.parameters():
                weight.requires_grad_(False)
    own = sum(weight.numel() for weight in fake.parameters())
    assert 0 < (moves[1] - moves[0]).norm() / moves[0].norm() < 0.1
    assert torch.equal(learns[0][:own], learns[1][:own])
    assert not torch.equal(learns[0][own:], learns[1][own:])


def test_an_unknown_precision_of_scores_is_refused(teacher):
    with pytest.raises(ValueError, match="scores='int4': the precision of the scores is 'float32' or 'bfloat16'"):
        refine(teacher.student(), Guided(teacher, 1.5), deepcopy(teacher), None, steps=2, scores="int4")
