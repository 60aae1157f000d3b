"""What the two stages refuse when they are put together by hand."""

from copy import deepcopy

import pytest
import torch
from randomized import randomized
from torch import nn

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.objectives.meanflow import MeanFlow
from hidistill.recipes.stages import ALIGNMENTS, refine, sketch
from hidistill.teachers.dit import DiT, Size
from hidistill.teachers.mixture import ExactFlowMap
from hidistill.train.distributed.work import Work
from hidistill.train.loop import steps
from hidistill.types import Batch


@pytest.fixture
def teacher():
    return DiT(image_size=8, channels=1, classes=2, patch=2, size=Size(32, 2, 2), taps=(0, 1))


@pytest.mark.parametrize("size", [0.0, -0.3])
def test_a_discriminator_whose_gradient_is_left_out_is_refused(teacher, size):
    head = Adaptive(teacher.feature_channels)
    for judges in ({"discriminator": head}, {"discriminator": None, "alignment": ALIGNMENTS["sliced"]}):
        with pytest.raises(
            ValueError, match="must be positive; for distribution matching alone give discriminator=None"
        ):
            refine(teacher.student(), Guided(teacher, 1.5), deepcopy(teacher), **judges, steps=2, feature_gradient=size)


class Blind(nn.Linear):
    """A velocity field without features."""

    def velocity(self, x_t, *, t, cond):
        return self(x_t)


def test_judges_that_do_not_fit_together_are_refused(teacher):
    student, guided, head = teacher.student(), Guided(teacher, 1.5), Adaptive(teacher.feature_channels)
    with pytest.raises(ValueError, match="has no judge"):
        refine(student, guided, None, None, steps=2)
    for fake, judge in ((None, head), (deepcopy(teacher), None)):
        with pytest.raises(ValueError, match="it needs both"):
            refine(student, guided, fake, judge, steps=2, on_fake=True, alignment=ALIGNMENTS["energy"])
    with pytest.raises(TypeError, match="a Blind, which has no features"):
        refine(student, guided, Blind(2, 2), head, steps=2, on_fake=True)


def test_an_alignment_alone_has_no_critics(teacher):
    """And the student then moves at every step."""
    stage = refine(teacher.student(), Guided(teacher, 1.5), None, None, steps=2, alignment=ALIGNMENTS["energy"])
    assert list(stage.updates) == ["student"]
    assert stage.updates["student"].every == 1


def rested(stage, *, passes=1):
    """Run three steps, in the second of which the student moves."""
    x = torch.randn(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    reports = steps(stage, lambda step: Batch(x[step], torch.arange(4) % 2), seed=0, work=Work(passes=passes))
    found = [report.metrics for report in reports]
    assert [any(name.startswith("student") for name in metrics) for metrics in found] == [False, True, False]
    return found


def test_a_draw_that_is_reused_is_the_same_in_one_pass_or_two(teacher):
    """Each pass takes the rows that it left; in steps in which the student rests critics draw themselves."""
    randomized(teacher).requires_grad_(False)
    found = []
    for passes in (1, 2):
        torch.manual_seed(1)
        stage = refine(teacher.student(), Guided(teacher, 1.5), deepcopy(teacher), None, steps=3, reuse=True)
        found.append(rested(stage, passes=passes))
        found[-1][1].pop("student/dmd_gradient")  # a root, of which the mean over passes is another
    for one, two in zip(*found, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_reuse_without_critics_is_refused(teacher):
    with pytest.raises(ValueError, match="reuse=True without critics"):
        refine(teacher.student(), teacher, None, None, steps=3, alignment=ALIGNMENTS["energy"], reuse=True)


@pytest.mark.parametrize("on_fake", [False, True])
def test_with_a_reused_draw_the_student_moves_first_and_all_learn(teacher, on_fake):
    randomized(teacher).requires_grad_(False)
    student, fake, head = teacher.student(), deepcopy(teacher), Adaptive(teacher.feature_channels)
    learners = (student, fake, head)
    before = [deepcopy(module.state_dict()) for module in learners]
    stage = refine(student, Guided(teacher, 1.5), fake, head, steps=3, reuse=True, on_fake=on_fake)
    assert list(stage.updates) == ["student", "critics"]
    rested(stage)
    for old, module in zip(before, learners, strict=True):
        assert any(not torch.equal(old[name], weight) for name, weight in module.named_parameters())


def test_on_the_fake_scores_features_both_learn_in_one_update(teacher):
    """The head's small weight keeps the trunk the fake score's: the gradient of both is that of the parts."""
    fake, head = deepcopy(teacher), Adaptive(teacher.feature_channels)
    stage = refine(teacher.student(), Guided(teacher, 1.5), fake, head, steps=2, on_fake=True)
    held = {id(parameter) for parameter in stage.updates["critics"].parameters()}
    assert held == {id(parameter) for module in (fake, head) for parameter in module.parameters()}
    assert stage.updates["critics"].objective.weights == {"gan": 1e-2}


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
