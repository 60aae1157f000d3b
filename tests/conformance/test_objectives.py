"""Every objective through the same checks. A new one adds one line to `OBJECTIVES`."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.objectives.adversarial import Fool, TellApart
from hidistill.objectives.combine import OnGenerated, OnNoised, OnSamples, Sum
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.objectives.meanflow import MeanFlow
from hidistill.recipes.stages import refine
from hidistill.teachers.dit import DiT, Size
from hidistill.teachers.mlp import MLP
from hidistill.train.loop import steps
from hidistill.types import Batch, Objective

B = 6
ORDER = torch.tensor([3, 0, 5, 2, 1, 4])


class FromRows:
    """Times that are a function of the row, so that they move with it."""

    def sample(self, like):
        return 0.05 + 0.9 * torch.sigmoid(like.detach().flatten(1)[:, 0])


def noise_from_rows(like):
    """What stands in for torch's generator: noise that is a function of the row, so that it moves with it."""
    return (12_345.6 * like.detach()).sin() * 1.4


@dataclass(frozen=True)
class Case:
    build: Callable[..., Objective]
    """Makes the objective of a namespace with teacher, student, fake and discriminator."""
    moves: tuple[str, ...]
    resting: tuple[str, ...] = ()
    """Those that rest by the loop's doing; the others must be spared by the objective itself."""


@dataclass(frozen=True)
class AtFixedTimes:
    """MeanFlow draws t and r from one law and sorts them, which a function of the row cannot stand in for."""

    objective: MeanFlow

    def __call__(self, batch):
        t = FromRows().sample(batch.x)
        return self.objective.at(batch, t=t, r=0.4 * t, noise=torch.randn_like(batch.x))


def judged(p, *terms, size=0.0):
    all_terms = {"dmd": DMD(p.fake), "gan": Fool(p.discriminator)}
    noised = OnNoised(Guided(p.teacher, 2.0), FromRows(), {name: all_terms[name] for name in terms}, size)
    return OnSamples(p.student, {"judged": noised}, differentiable=True)


def critics(p, **terms):
    return OnSamples(p.student, terms, differentiable=False)


OBJECTIVES = {
    "meanflow": Case(
        lambda p: AtFixedTimes(MeanFlow(Guided(p.teacher, 2.0), p.student, Forward())), moves=("student",)
    ),
    "flow matching": Case(lambda p: FlowMatching(p.fake, FromRows()), moves=("fake",)),
    "dmd": Case(lambda p: judged(p, "dmd"), moves=("student",)),
    "fool": Case(lambda p: judged(p, "gan", size=0.1), moves=("student",), resting=("discriminator", "teacher")),
    "dmd and fool": Case(
        lambda p: judged(p, "dmd", "gan", size=0.1), moves=("student",), resting=("discriminator", "teacher")
    ),
    "fake score": Case(lambda p: critics(p, fake=OnGenerated(FlowMatching(p.fake, FromRows()))), moves=("fake",)),
    "tell apart": Case(
        lambda p: critics(p, gan=TellApart(Guided(p.teacher, 2.0), p.discriminator, FromRows())),
        moves=("discriminator",),
    ),
    "tell apart with penalty": Case(
        lambda p: critics(p, gan=TellApart(p.teacher, p.discriminator, FromRows(), penalty=1.0, penalty_share=1.0)),
        moves=("discriminator",),
    ),
    "sum": Case(
        lambda p: Sum({"data": FlowMatching(p.fake, FromRows()), "judged": judged(p, "dmd")}, {"data": 0.5}),
        moves=("fake", "student"),
    ),
}


def randomized(module):
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return module


def points():
    return MLP(dim=2, classes=2, width=16, depth=2), (2,)


def pictures():
    return DiT(image_size=4, channels=2, patch=2, classes=2, size=Size(16, 2, 2)), (2, 4, 4)


@pytest.fixture(params=[points, pictures])
def parts(request):
    """Networks that differ from one another, and a batch for them."""
    teacher, shape = request.param()
    teacher = randomized(teacher)
    student, fake = randomized(teacher.student()), randomized(deepcopy(teacher))
    discriminator = Adaptive(teacher.feature_channels, width=8).eval()
    networks = SimpleNamespace(teacher=teacher, student=student, fake=fake, discriminator=discriminator)
    return networks, Batch(torch.randn(B, *shape), torch.tensor([0, 1, 2, 0, 1, 2]))


@pytest.fixture(params=OBJECTIVES)
def case(request):
    return OBJECTIVES[request.param]


def test_a_loss_per_sample_in_float32_and_finite_scalars(case, parts):
    networks, batch = parts
    objective = case.build(networks)
    assert isinstance(objective, Objective)
    loss = objective(batch)
    assert loss.value.shape == (B,)
    assert loss.value.dtype == torch.float32
    assert loss.value.isfinite().all()
    assert loss.value.std() > 0
    for name, scalar in loss.metrics.items():
        assert scalar.ndim == 0, name
        assert scalar.isfinite(), name
        assert not scalar.requires_grad, name


def test_permuting_the_batch_permutes_the_loss(case, parts, monkeypatch):
    networks, batch = parts
    monkeypatch.setattr(torch, "randn_like", noise_from_rows)
    objective = case.build(networks)
    moved = objective(Batch(batch.x[ORDER], batch.cond[ORDER])).value
    torch.testing.assert_close(moved, objective(batch).value[ORDER], rtol=1e-3, atol=1e-4)


def test_the_gradient_reaches_what_was_promised_and_nothing_else(case, parts):
    networks, batch = parts
    for name in case.resting:
        getattr(networks, name).requires_grad_(False)
    case.build(networks)(batch).value.mean().backward()
    for name, network in vars(networks).items():
        for weight in network.parameters():
            assert (weight.grad is not None) == (name in case.moves), name
        if name in case.moves:
            # One token, as from a perceptron, has nothing to attend to, and a null class may be absent.
            shares = [bool(weight.grad.abs().max() > 0) for weight in network.parameters()]
            assert sum(shares) > 0.7 * len(shares), name


def test_the_same_seed_gives_the_same_loss(case, parts):
    networks, batch = parts
    objective, values = case.build(networks), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(objective(batch).value)
    assert torch.equal(values[0], values[1])
    # MeanFlow has fixed times here, but noise of its own like the others.
    assert not torch.equal(values[0], values[2])


def test_refine_goes_on_from_a_state_bit_for_bit(parts):
    """Spectral norms move in every training pass, in the student's update too; the state holds their estimates."""
    networks, batch = parts
    networks.teacher.eval().requires_grad_(False)
    networks.discriminator.train()

    def stage_of(p):
        guided = Guided(networks.teacher, 2.0)
        kept = MeanFlow(guided, p.student, Forward())
        return refine(p.student, guided, p.fake, p.discriminator, steps=6, penalty=0.1, trajectory=kept)

    def run(stage, start, stop):
        for report in steps(stage, lambda _: batch, seed=3, start=start):
            if report.step + 1 == stop:
                break

    def state(p, stage):
        moving = (p.student, p.fake, p.discriminator, stage.averages["student"].module)
        return deepcopy(
            [module.state_dict() for module in moving]
            + [update.optimizer.state_dict() for update in stage.updates.values()]
        )

    whole, first, second = deepcopy(networks), deepcopy(networks), deepcopy(networks)
    stages = [stage_of(p) for p in (whole, first, second)]
    run(stages[0], 0, 6)
    run(stages[1], 0, 3)
    saved = state(first, stages[1])
    for module, values in zip((second.student, second.fake, second.discriminator), saved, strict=False):
        module.load_state_dict(values)
    stages[2].averages["student"].module.load_state_dict(saved[3])
    stages[2].averages["student"].updates = stages[1].averages["student"].updates
    for update, values in zip(stages[2].updates.values(), saved[4:], strict=True):
        update.optimizer.load_state_dict(values)
    run(stages[2], 3, 6)
    torch.testing.assert_close(state(second, stages[2]), state(whole, stages[0]), rtol=0, atol=0)
    moved = networks.discriminator.state_dict()
    buffers = [key for key in moved if key.endswith("._u")]
    assert buffers
    assert any(not torch.equal(moved[key], whole.discriminator.state_dict()[key]) for key in buffers)
