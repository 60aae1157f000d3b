"""Every way to make a student, by name: a start, a trajectory objective, a distribution objective, a discriminator."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.optim import Adam, AdamW

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive, unbounded
from hidistill.discriminators.convolutional import Convolutional
from hidistill.discriminators.matching import matched_width, parameters
from hidistill.discriminators.per_token import PerToken
from hidistill.discriminators.pooled import Pooled
from hidistill.guidance import Guided
from hidistill.objectives.adversarial import Fool, Hinge, TellApart
from hidistill.objectives.alignment import (
    Align,
    Discrepancy,
    Drift,
    Moments,
    OneTime,
    SetDistance,
    SlicedWasserstein,
    energy,
)
from hidistill.objectives.combine import OnGenerated, OnNoised, OnSamples, total
from hidistill.objectives.consistency import Consistency
from hidistill.objectives.continuous import ContinuousConsistency
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.objectives.latent_consistency import LatentConsistency
from hidistill.objectives.meanflow import MeanFlow
from hidistill.objectives.progressive import EulerMap, Progressive, rounds
from hidistill.objectives.regression import Regression, stored
from hidistill.times import Arcsine, Uniform
from hidistill.train.ema import Average
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Batch, Loss, NoisedObjective, Objective, RolloutObjective, Student, Teacher, TimeLaw

Trajectory = Literal["none", "meanflow", "meanflow from data", "consistency", "sCM", "progressive", "LCM", "regression"]
Distribution = Literal["none", "dmd", "dmd+gan", "gan", "dmd2", "dmd+align", "blend"]
Head = Literal["none", "adaptive", "pooled", "convolutional", "per_token"]
Alignment = Literal["none", "energy", "sliced", "moments", "drift"]

SCALE, LR, ROUNDS_FROM = 1.5, 5e-4, 16
"""Guidance that is distilled, the sketch's learning rate, and the teacher's Euler steps that the first round halves."""
SKETCH_COST, REFINE_COST = 6.53, 9.6
"""Forward passes of the student that a step of each stage is worth, with its backward passes, by benchmarks/flops.py:
refine's student moves on every second step."""
NOISED = Uniform(0.02, 0.98)
GAMES: Mapping[str, float] = {"dmd+gan": 0.3, "dmd+align": 0.3, "gan": 1.0, "dmd2": 0.3, "blend": 0.3}
"""Size of the gradient through features, beside DMD's of one."""


@dataclass(frozen=True)
class Method:
    """How a student is made.

    Args:
        start: of the student: the teacher's weights, or random ones.
        sketch: the trajectory objective.
        sketch_steps: its updates, over all rounds where there are several.
        refine: the distribution objective; dmd2 reads features of the fake score, the others the teacher's; blend is
            sketch and refine in one stage, the weight of the one falling as the other's rises.
        refine_steps: updates of the critics.
        head: the discriminator, of as many weights as the adaptive one's.
        parts: options of the adaptive head: queries, sinusoids, classes, layers, shared; bound or norm as False.
        align: the distance of feature sets that stands in for a discriminator.
        lr: of the student in refine.
        every: the student moves on each `every`-th step of refine.

    Raises:
        ValueError: if a game has no head, a head no game, or an alignment no distance.
    """

    start: Literal["teacher", "random"] = "teacher"
    sketch: Trajectory = "none"
    sketch_steps: int = 0
    refine: Distribution = "none"
    refine_steps: int = 0
    head: Head = "none"
    parts: Mapping[str, Any] = field(default_factory=dict)
    align: Alignment = "none"
    lr: float = 3e-4
    every: int = 2

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if (self.head != "none") != (self.refine in ("dmd+gan", "gan", "dmd2", "blend")):
            raise ValueError(f"refine={self.refine!r} with head={self.head!r}: a game needs a head, and a head a game")
        if (self.align != "none") != (self.refine == "dmd+align"):
            raise ValueError(f"refine={self.refine!r} with align={self.align!r}: dmd+align needs a distance, no other")

    @property
    def cost(self) -> float:
        """What its training costs, in forward passes of the student per sample and in round figures."""
        both = SKETCH_COST * self.sketch_steps + REFINE_COST * self.refine_steps
        return both + (SKETCH_COST * self.refine_steps / self.every if self.refine == "blend" else 0.0)


@dataclass(frozen=True)
class Blend:
    """Two objectives in one stage: the weight of the first falls from 1 to `floor` while the second's rises to 1.

    Args:
        first: fades.
        second: comes.
        steps: of the stage.
        floor: of the first's weight.
    """

    first: Objective
    second: Objective
    steps: int
    floor: float = 0.02

    def __call__(self, batch: Batch) -> Loss:
        """The weighted sum; the weights are lines over the first half of the stage."""
        share = min(1.0, 2 * batch.step / self.steps)
        losses = {"first": self.first(batch), "second": self.second(batch)}
        return total(losses, {"first": 1 - share + self.floor * share, "second": share})


def stages(
    method: Method, teacher: Teacher, student: nn.Module, head: nn.Module | None
) -> Iterator[tuple[Stage, bool]]:
    """The stages of a method, each to be run to its end before the next is asked for; and whether it learns from pairs.

    Each begins where the one before ended: a round of progressive distillation copies its student.
    """
    assert isinstance(student, Student)
    guided = Guided(teacher, SCALE)
    if method.refine == "blend":
        yield refined(method, teacher, student, head), False
        return
    if method.sketch == "progressive":
        previous: Student = EulerMap(guided)
        plan = rounds(ROUNDS_FROM)
        for count in plan:
            objective = Progressive(previous, student, count)
            yield trajectory(f"round {count}", student, objective, method.sketch_steps // len(plan)), False
            previous = deepcopy(student).requires_grad_(False)
    elif method.sketch != "none":
        average = Average(student, 0.99)
        objective = objective_of(method.sketch, teacher, student, average)
        yield trajectory("sketch", student, objective, method.sketch_steps, average), method.sketch == "regression"
    if method.refine != "none":
        yield refined(method, teacher, student, head), False


def trajectory(
    name: str, student: nn.Module, objective: Objective, length: int, average: Average | None = None
) -> Stage:
    """A stage of a trajectory objective; all have the sketch's optimizer and schedule."""
    schedule = WarmupDecay(length, min(20, length // 10), (2 * length) // 5)
    update = Update(objective, Adam(student.parameters(), lr=LR, betas=(0.9, 0.99)), schedule=schedule)
    return Stage(name, {"student": update}, length, {"student": average or Average(student, 0.99)})


def objective_of(name: Trajectory, teacher: Teacher, student: Student, average: Average) -> Objective:
    """A trajectory objective by its name, at guidance `SCALE`."""
    guided, target = Guided(teacher, SCALE), average.module
    assert isinstance(target, Student)
    found: dict[str, Callable[[], Objective]] = {
        "meanflow": lambda: MeanFlow(guided, student, Forward(), Uniform(), 0.25),
        "meanflow from data": lambda: MeanFlow(None, student, Forward(), Uniform(), 0.25),
        "consistency": lambda: Consistency(guided, student, student, 40),
        "sCM": lambda: ContinuousConsistency(guided, student, Forward(), warmup_steps=100),
        "LCM": lambda: LatentConsistency(teacher, student, target, SCALE, steps=50, skip=5),
        "regression": lambda: Regression(student, stored),
    }
    return found[name]()


def refined(method: Method, teacher: Teacher, student: Student, head: nn.Module | None) -> Stage:
    """The stage of a distribution objective: critics on every step, the student on each `every`-th."""
    assert isinstance(student, nn.Module)
    assert isinstance(teacher, nn.Module)
    guided, fake = Guided(teacher, SCALE), deepcopy(teacher)
    assert isinstance(fake, Teacher)
    read, length = (fake if method.refine == "dmd2" else teacher), method.refine_steps
    judges: dict[str, NoisedObjective] = {} if method.refine == "gan" else {"dmd": DMD(fake)}
    critics: dict[str, RolloutObjective] = (
        {} if method.refine == "gan" else {"fake": OnGenerated(FlowMatching(fake, Arcsine()))}
    )
    groups: list[dict[str, Any]] = [{"params": list(fake.parameters()), "lr": 6e-4}] if critics else []
    times: TimeLaw = NOISED
    if head is not None:
        assert isinstance(read, Teacher)
        judges["gan"] = Fool(head, Hinge())  # type: ignore[arg-type]
        critics["gan"] = TellApart(read, head, NOISED, Hinge())  # type: ignore[arg-type]
        groups.append({"params": list(head.parameters()), "lr": 5e-4})
    if method.align != "none":
        judges["align"], times = Align(teacher, distance_of(method.align)), OneTime(NOISED)
    judge = OnNoised(
        teacher if method.refine == "gan" else guided, times, judges, GAMES.get(method.refine, 0.0),
        features_of=fake if method.refine == "dmd2" else None,
    )  # fmt: skip
    moves: Objective = OnSamples(student, {"judged": judge}, differentiable=True)
    if method.refine == "blend":
        moves = Blend(MeanFlow(guided, student, Forward(), Uniform(), 0.25), moves, length)
    optimizer = AdamW(student.parameters(), lr=method.lr, betas=(0.0, 0.99), weight_decay=0.0)
    schedule = WarmupDecay(length, min(10, length // 10), length // 3)
    updates = {
        "critics": Update(OnSamples(student, critics, differentiable=False), Adam(groups, betas=(0.0, 0.99))),
        "student": Update(moves, optimizer, every=method.every, schedule=schedule),
    }
    return Stage("refine", updates, length, {"student": Average(student, 0.98)})


def distance_of(name: Alignment) -> SetDistance:
    """A distance between sets of features by its name."""
    found: dict[str, SetDistance] = {
        "energy": Discrepancy(energy), "sliced": SlicedWasserstein(), "moments": Moments(), "drift": Drift(),
    }  # fmt: skip
    return found[name]


def head_of(method: Method, teacher: Teacher) -> nn.Module | None:
    """The discriminator, with as many weights as the plain adaptive one's."""
    if method.head == "none":
        return None
    channels = teacher.feature_channels
    if method.head == "adaptive":
        options = dict(method.parts)
        if options.get("bound") is False:
            options["bound"] = unbounded
        if options.get("norm") is False:
            options["norm"] = nn.Identity
        return Adaptive(channels, **options)
    kinds: dict[str, Callable[..., nn.Module]] = {
        "pooled": Pooled, "convolutional": Convolutional, "per_token": PerToken,
    }  # fmt: skip
    kind = kinds[method.head]
    target = parameters(Adaptive(channels))
    return kind(channels, width=matched_width(lambda width: kind(channels, width=width), target))
