"""What the updates of other ways to match distributions cost, in forwards F of the student at the batch's size."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from measuring.counting import flops

from hidistill.discriminators.adaptive import Adaptive
from hidistill.discriminators.per_token import PerToken
from hidistill.guidance import Guided
from hidistill.objectives.adversarial import DivergenceWeight, Fool, Softplus, TellApart, jensen_shannon
from hidistill.objectives.alignment import Align, Discrepancy, energy
from hidistill.objectives.combine import OnGenerated, OnNoised, OnSamples, Sum
from hidistill.objectives.decoupled import Augmentation
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.objectives.regression import Paired, Regression, stored
from hidistill.teachers.dit import DiT

B = 8


@pytest.fixture(scope="module")
def p():
    """A frozen teacher, its student and fake score, a head, a batch of pairs, and F."""
    teacher = DiT(image_size=28, channels=1, classes=10, size="mini").requires_grad_(False)
    student, fake = teacher.student().requires_grad_(False), deepcopy(teacher)
    head = PerToken(teacher.feature_channels).requires_grad_(False)
    batch = Paired(torch.randn(B, 1, 28, 28), torch.arange(B), noise=torch.randn(B, 1, 28, 28))
    t = torch.rand(B)
    f = flops(lambda: student.mean_velocity(batch.x, t=t, r=0.5 * t, cond=batch.cond))
    guided = Guided(teacher, 1.5)
    return SimpleNamespace(teacher=teacher, guided=guided, student=student, fake=fake, head=head, batch=batch, f=f)


def cost(p, objective, *moving):
    """Forwards that an objective costs, where only what moves may have a gradient, as in the loop."""
    parameters = [weight for module in moving for weight in module.parameters()]
    for weight in parameters:
        weight.requires_grad_(True)
    spent = flops(lambda: objective(p.batch).value.mean().backward()) / p.f
    for weight in parameters:
        assert weight.grad is not None
        weight.grad = None
        weight.requires_grad_(False)
    return spent


def student_update(p, teacher, terms, *, size=0.0, features_of=None):
    judged = OnNoised(teacher, terms=terms, feature_gradient=size, features_of=features_of)
    return cost(p, OnSamples(p.student, {"judged": judged}, differentiable=True), p.student)


def test_features_of_the_fake_score_cost_nothing_beside_its_velocity(p):
    """Student 3, fake score 1 and back to x_t 1, teacher 2, head 0.2; a DMD with a fake score apart passes it again."""
    gan = {"gan": Fool(p.head, Softplus())}
    shared = student_update(p, p.guided, {"dmd": DMD(p.fake), **gan}, size=0.3, features_of=p.fake)
    apart = student_update(p, p.guided, {"dmd": DMD(deepcopy(p.fake)), **gan}, size=0.3, features_of=p.fake)
    assert 6.5 < shared <= 7.2
    assert apart - shared == pytest.approx(1.0, abs=0.02)
    assert shared <= student_update(p, p.guided, {"dmd": DMD(p.fake), **gan}, size=0.3) + 0.01


def test_critics_on_the_fake_scores_features(p):
    """Sample 1, fake score 3, features of two batches with their gradient 6, head 0.4; of the frozen teacher 2."""
    terms = {
        "fake": OnGenerated(FlowMatching(p.fake)),
        "gan": TellApart(p.fake, p.head, game=Softplus()),
    }
    both = cost(p, OnSamples(p.student, terms, differentiable=False), p.fake, p.head)
    assert 9.0 < both <= 10.4
    frozen = {"fake": terms["fake"], "gan": TellApart(p.teacher, p.head)}
    assert cost(p, OnSamples(p.student, frozen, differentiable=False), p.fake, p.head) <= 6.4


def test_the_game_alone_makes_no_pass_of_a_fake_score_or_of_the_null_condition(p):
    """Student 3, teacher 1 and back to x_t 1, head 0.2; critics: sample 1, features of two batches 2, head 0.4."""
    gan = {"gan": Fool(p.head)}
    alone = student_update(p, p.teacher, gan, size=0.3)
    assert 4.5 < alone <= 5.2
    assert student_update(p, p.guided, gan, size=0.3) - alone == pytest.approx(1.0, abs=0.02)
    critics = OnSamples(p.student, {"gan": TellApart(p.guided, p.head)}, differentiable=False)
    assert cost(p, critics, p.head) <= 3.4


def test_a_divergences_weight_costs_the_head_alone(p):
    head = Adaptive(p.teacher.feature_channels).requires_grad_(False)
    weight = DivergenceWeight(TellApart(p.teacher, head, game=Softplus()), jensen_shannon)
    plain = student_update(p, p.guided, {"dmd": DMD(p.fake)})
    assert plain <= 6.0
    assert 0 < student_update(p, p.guided, {"dmd": DMD(p.fake, sample_weight=weight)}) - plain < 0.1


def test_alignment_costs_the_features_of_the_real_samples(p):
    """Student 3, teacher 1 and back to x_t 1.1, the real samples' features 1; no critics at all."""
    spent = student_update(p, p.teacher, {"aligned": Align(p.teacher, Discrepancy(energy))}, size=0.3)
    assert 5.5 < spent <= 6.1


def test_augmentation_apart_costs_one_pass_more_than_guidance(p):
    """Matching: fake score 1, teacher 1; augmentation: teacher 1, null condition 1; the student's 3 once."""
    terms = {
        "matching": OnNoised(p.teacher, terms={"dmd": DMD(p.fake)}),
        "guidance": OnNoised(p.teacher, terms={"ca": Augmentation(p.teacher, 3.0)}),
    }
    spent = cost(p, OnSamples(p.student, terms, differentiable=True), p.student)
    assert spent - student_update(p, p.guided, {"dmd": DMD(p.fake)}) == pytest.approx(1.0, abs=0.02)


def test_pairs_beside_distribution_matching_cost_the_student_once_more(p):
    dmd = OnSamples(p.student, {"judged": OnNoised(p.guided, terms={"dmd": DMD(p.fake)})}, differentiable=True)
    both = Sum({"dmd": dmd, "pairs": Regression(p.student, stored)}, {"pairs": 0.25})
    assert cost(p, both, p.student) - cost(p, dmd, p.student) <= 3.0
