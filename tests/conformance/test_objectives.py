"""Every objective through the same checks. A new one adds one line to `OBJECTIVES`."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.objectives.adversarial import DivergenceWeight, Fool, Softplus, TellApart, jensen_shannon
from hidistill.objectives.alignment import Align, Discrepancy, Drift, Moments, SlicedWasserstein, each_token, energy
from hidistill.objectives.combine import OnGenerated, OnNoised, OnSamples, Sum
from hidistill.objectives.consistency import Consistency, PseudoHuber
from hidistill.objectives.continuous import ContinuousConsistency
from hidistill.objectives.decoupled import Augmentation
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.objectives.improved_meanflow import ImprovedMeanFlow
from hidistill.objectives.latent_consistency import LatentConsistency
from hidistill.objectives.meanflow import MeanFlow
from hidistill.objectives.progressive import EulerMap, Progressive
from hidistill.objectives.regression import Regression, Solved
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


def drawn_from_rows(part):
    """The same objective, down to its terms, where each noise law is that function of the row."""
    if isinstance(part, Mapping):
        return {name: drawn_from_rows(value) for name, value in part.items()}
    if not is_dataclass(part):
        return part
    changes = {entry.name: drawn_from_rows(getattr(part, entry.name)) for entry in fields(part)}
    return replace(part, **changes | ({"noise": noise_from_rows} if "noise" in changes else {}))


@dataclass(frozen=True)
class Case:
    build: Callable[..., Objective]
    """Makes the objective of a namespace with teacher, student, fake and discriminator."""
    moves: tuple[str, ...]
    resting: tuple[str, ...] = ()
    """Those that rest by the loop's doing; the others must be spared by the objective itself."""


@dataclass(frozen=True)
class AtFixedTimes:
    """Pairs of times, sorted or from a grid, and scales are drawn so that no function of the row can stand in for them.

    Args:
        objective: has an `at` that takes t, another time, and noise.
        other: the other time's name.
        more: further arguments as functions of the first time.
    """

    objective: Objective
    other: str = "r"
    more: dict[str, Callable] = field(default_factory=dict)

    def __call__(self, batch):
        t = FromRows().sample(batch.x)
        point = {"t": t, self.other: 0.4 * t} | {name: value(t) for name, value in self.more.items()}
        return self.objective.at(batch, **point, noise=torch.randn_like(batch.x))


@dataclass(frozen=True)
class AlongTheAxes:
    """Sliced Wasserstein draws its directions, which are no function of the rows: here they are given."""

    distance: SlicedWasserstein

    def __call__(self, generated, real):
        return self.distance.along(generated, real, torch.eye(generated.shape[2]))


def judged(p, *terms, size=0.0, features_of=None, scale=2.0):
    """The student's update with the terms that are named, or given with their names."""
    known = {"dmd": DMD(p.fake), "gan": Fool(p.discriminator)}
    chosen = dict((name, known[name]) if isinstance(name, str) else name for name in terms)
    noised = OnNoised(p.teacher if scale == 1.0 else Guided(p.teacher, scale), FromRows(), chosen, size, features_of)
    return OnSamples(p.student, {"judged": noised}, differentiable=True)


def aligned(p, distance, **read):
    return judged(p, ("aligned", Align(p.teacher, distance, **read)), size=0.1)


def weighted(p):
    """DMD towards another divergence."""
    weight = DivergenceWeight(TellApart(p.teacher, p.discriminator, game=Softplus()), jensen_shannon)
    return judged(p, ("dmd", DMD(p.fake, sample_weight=weight)))


def critics(p, **terms):
    return OnSamples(p.student, terms, differentiable=False)


OBJECTIVES = {
    "meanflow": Case(
        lambda p: AtFixedTimes(MeanFlow(Guided(p.teacher, 2.0), p.student, Forward())), moves=("student",)
    ),
    "meanflow from data": Case(lambda p: AtFixedTimes(MeanFlow(None, p.student, Forward())), moves=("student",)),
    "improved meanflow": Case(
        lambda p: AtFixedTimes(ImprovedMeanFlow(Guided(p.teacher, 2.0), p.student, Forward())), moves=("student",)
    ),
    "improved meanflow from data": Case(
        lambda p: AtFixedTimes(ImprovedMeanFlow(None, p.student, Forward())), moves=("student",)
    ),
    "consistency": Case(
        lambda p: AtFixedTimes(
            Consistency(Guided(p.teacher, 2.0), p.student, deepcopy(p.student), distance=PseudoHuber()), "s"
        ),
        moves=("student",),
    ),
    "consistency with itself": Case(
        lambda p: AtFixedTimes(Consistency(p.teacher, p.student, p.student), "s"), moves=("student",)
    ),
    "continuous consistency": Case(
        lambda p: ContinuousConsistency(Guided(p.teacher, 2.0), p.student, Forward(), FromRows()), moves=("student",)
    ),
    "latent consistency": Case(
        lambda p: AtFixedTimes(
            LatentConsistency(p.teacher, p.student, p.student, 2.0), "s", {"scale": lambda t: 1 + 2 * t}
        ),
        moves=("student",),
    ),
    "progressive, first round": Case(
        lambda p: AtFixedTimes(Progressive(EulerMap(Guided(p.teacher, 2.0)), p.student, 4)), moves=("student",)
    ),
    "progressive, further round": Case(
        lambda p: AtFixedTimes(Progressive(deepcopy(p.student).requires_grad_(False), p.student, 2)),
        moves=("student",),
    ),
    "regression": Case(lambda p: Regression(p.student, Solved(Guided(p.teacher, 2.0), steps=3)), moves=("student",)),
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
        resting=("teacher",),
    ),
    "tell apart with penalty": Case(
        lambda p: critics(p, gan=TellApart(p.teacher, p.discriminator, FromRows(), penalty=1.0, penalty_share=1.0)),
        moves=("discriminator",),
        resting=("teacher",),
    ),
    "dmd and fool on the fake score": Case(
        lambda p: judged(p, "dmd", "gan", size=0.1, features_of=p.fake),
        moves=("student",),
        resting=("discriminator", "fake"),
    ),
    "fake score and tell apart on it": Case(
        lambda p: critics(
            p, fake=OnGenerated(FlowMatching(p.fake, FromRows())), gan=TellApart(p.fake, p.discriminator, FromRows())
        ),
        moves=("fake", "discriminator"),
    ),
    "dmd weighted by a divergence": Case(weighted, moves=("student",)),
    "dmd with regression": Case(
        lambda p: Sum({"dmd": judged(p, "dmd"), "pairs": Regression(p.student, Solved(p.teacher, 2))}, {"pairs": 0.25}),
        moves=("student",),
    ),
    "augmentation": Case(
        lambda p: judged(p, ("augmented", Augmentation(p.teacher, 3.0)), scale=1.0), moves=("student",)
    ),
    "energy distance": Case(lambda p: aligned(p, Discrepancy(energy)), moves=("student",), resting=("teacher",)),
    "energy distance of tokens": Case(
        lambda p: aligned(p, Discrepancy(energy), read=each_token), moves=("student",), resting=("teacher",)
    ),
    "sliced Wasserstein": Case(
        lambda p: aligned(p, AlongTheAxes(SlicedWasserstein())), moves=("student",), resting=("teacher",)
    ),
    "moments": Case(lambda p: aligned(p, Moments()), moves=("student",), resting=("teacher",)),
    "drift": Case(lambda p: aligned(p, Drift()), moves=("student",), resting=("teacher",)),
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
    objective = drawn_from_rows(case.build(networks))
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
    # Some have fixed times here, but noise of their own like the others.
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

    def numbers(state):
        groups = [{name: v for name, v in group.items() if name != "role"} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def state(p, stage):
        moving = (p.student, p.fake, p.discriminator, stage.averages["student"].module)
        return deepcopy(
            [module.state_dict() for module in moving]
            + [numbers(update.optimizer.state_dict()) for update in stage.updates.values()]
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
