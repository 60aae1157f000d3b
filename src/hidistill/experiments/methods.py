"""Every way to make a student, by name: a start, a trajectory objective, a distribution objective, a discriminator."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn
from torch.optim import Adam

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive, unbounded
from hidistill.discriminators.convolutional import Convolutional
from hidistill.discriminators.matching import matched_width, parameters
from hidistill.discriminators.per_token import PerToken
from hidistill.discriminators.pooled import Pooled
from hidistill.guidance import Guided
from hidistill.objectives.combine import total
from hidistill.objectives.consistency import Consistency
from hidistill.objectives.continuous import ContinuousConsistency
from hidistill.objectives.latent_consistency import LatentConsistency
from hidistill.objectives.meanflow import MeanFlow
from hidistill.objectives.progressive import EulerMap, Progressive, rounds
from hidistill.objectives.regression import Regression, stored
from hidistill.recipes.stages import ALIGNMENTS, refine
from hidistill.times import LogitNormal, Uniform
from hidistill.train.ema import Average
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Batch, Loss, Objective, Student, Teacher

Trajectory = Literal["none", "meanflow", "meanflow from data", "consistency", "sCM", "progressive", "LCM", "regression"]
Distribution = Literal["none", "dmd", "dmd+gan", "gan", "dmd2", "dmd+align", "blend"]
"""dmd2 is the discriminator on the fake score's features; blend is sketch and refine in one stage."""
Head = Literal["none", "adaptive", "pooled", "convolutional", "per_token"]
Alignment = Literal["none", "energy", "energy_tokens", "sliced", "moments", "drift"]

SCALE, ROUNDS_FROM = 1.5, 16
"""Guidance that is distilled, and the teacher's Euler steps that the first round halves."""
SKETCH_RATES: Mapping[Trajectory, float] = {
    "meanflow": 5e-4,
    "meanflow from data": 5e-4,
    "consistency": 1e-3,
    "sCM": 1.25e-4,
    "progressive": 1e-3,
    "LCM": 1e-3,
    "regression": 1.25e-4,
}
"""The student's learning rate, of each objective its own: of four, the one with the smallest distance in one step, with
one seed at the table's small size (`hidistill experiment learning-rates`: other pictures, noise and seed than those
that methods are compared on). Some are the largest or smallest that were tried."""
RATE = 3e-4
"""The student's in refine where a study varies something else, or none was searched for."""
REFINE_RATES: Mapping[Distribution, float] = {"dmd": 1e-3, "dmd+gan": RATE, "gan": RATE, "dmd2": 1e-3}
"""Likewise in refine, of three; dmd+gan is GAP's and AWD's together, behind a sketch."""
SKETCH_COSTS: Mapping[Trajectory, float] = {
    "none": 0.0,
    "meanflow": 6.5,
    "meanflow from data": 4.5,
    "consistency": 8.0,
    "sCM": 7.0,
    "progressive": 5.5,
    "LCM": 6.0,
    "regression": 3.0,
}
"""Forward passes of the student that a step is worth, with its backward passes: counted on the bench's networks. Pairs
for regression come on top once, and so does nothing else."""
REFINE_COSTS: Mapping[tuple[Distribution, Head], float] = {
    ("dmd", "none"): 7.0,
    ("dmd+gan", "adaptive"): 9.5,
    ("dmd+gan", "pooled"): 9.5,
    ("dmd+gan", "convolutional"): 9.6,
    ("dmd+gan", "per_token"): 10.0,
    ("gan", "per_token"): 6.2,
    ("dmd2", "convolutional"): 13.6,
}
"""Likewise of a step of the critics and half a step of the student; a kept trajectory loss adds half a sketch step."""
FADE = 0.02
"""What is left of the sketch's loss, which is a sum over components, beside DMD's, which is a mean."""
NOISED, NOISY = Uniform(0.02, 0.98), LogitNormal(0.9, 1.6)
"""Times at which samples are judged, and those of sCM, which come near noise as often as they do near data."""
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
        parts: options of the adaptive head: queries, query_std, sinusoids, classes, layers, shared; bound or norm as
            False.
        align: the distance of feature sets that stands in for a discriminator.
        keep: weight of MeanFlow's loss that refine keeps beside its judges; 0 keeps none.
        sketch_lr: learning rate of the sketch; None is the objective's own of `SKETCH_RATES`.
        lr: of the student in refine; None is the objective's own of `REFINE_RATES`, else `RATE`.
        every: the student moves on each `every`-th step of refine.
        reuse: whether the critics of such a step take the draw of the student, who moves first.

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
    keep: float = 0.0
    sketch_lr: float | None = None
    lr: float | None = None
    every: int = 2
    reuse: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if (self.head != "none") != (self.refine in ("dmd+gan", "gan", "dmd2", "blend")):
            raise ValueError(f"refine={self.refine!r} with head={self.head!r}: a game needs a head, and a head a game")
        if self.sketch == "progressive" and self.sketch_steps < len(rounds(ROUNDS_FROM)):
            raise ValueError(f"sketch_steps={self.sketch_steps}: {len(rounds(ROUNDS_FROM))} rounds need a step each")
        if (self.align != "none") != (self.refine == "dmd+align"):
            raise ValueError(f"refine={self.refine!r} with align={self.align!r}: dmd+align needs a distance, no other")

    @property
    def learns_every_interval(self) -> bool:
        """Whether the student is trained to jump to times above 0, rather than to ends alone."""
        return self.sketch in ("meanflow", "meanflow from data") and (self.refine == "none" or self.keep > 0)


@dataclass(frozen=True)
class Blend:
    """Two objectives in one stage: over its first half, the weight of the first falls to `FADE` and the second's rises.

    The first falls by equal factors, the second rises by equal parts: the first's gradient is some thirty times larger
    at the start, and a line would hold it in charge to the end.

    Args:
        first: fades.
        second: comes.
        steps: of the stage.
    """

    first: Objective
    second: Objective
    steps: int

    def __call__(self, batch: Batch) -> Loss:
        """The weighted sum."""
        share = min(1.0, 2 * batch.step / self.steps)
        losses = {"first": self.first(batch), "second": self.second(batch)}
        return total(losses, {"first": FADE**share, "second": share})


def stages(
    method: Method, teacher: Teacher, student: nn.Module, head: nn.Module | None
) -> Iterator[tuple[Stage, bool]]:
    """The stages of a method, each to be run to its end before the next is asked for; and whether it learns from pairs.

    Each begins where the one before ended: a round of progressive distillation copies its student.
    """
    assert isinstance(student, Student)
    guided, rate = Guided(teacher, SCALE), rate_of(method)
    if method.refine == "blend":
        yield refined(method, teacher, student, head), False
        return
    if method.sketch == "progressive":
        previous: Student = EulerMap(guided)
        plan = rounds(ROUNDS_FROM)
        for count in plan:
            length = method.sketch_steps // len(plan) + (method.sketch_steps % len(plan) if count == plan[-1] else 0)
            yield trajectory(f"round {count}", student, Progressive(previous, student, count), length, rate=rate), False
            previous = deepcopy(student).requires_grad_(False)
    elif method.sketch != "none":
        average = Average(student, 0.99)
        objective = objective_of(method.sketch, teacher, student, average)
        stage = trajectory("sketch", student, objective, method.sketch_steps, average, rate=rate)
        yield stage, method.sketch == "regression"
    if method.refine != "none":
        yield refined(method, teacher, student, head), False


def rate_of(method: Method) -> float:
    """The sketch's learning rate; 0 where there is no sketch."""
    return SKETCH_RATES.get(method.sketch, 0.0) if method.sketch_lr is None else method.sketch_lr


def trajectory(
    name: str, student: nn.Module, objective: Objective, length: int, average: Average | None = None, *, rate: float
) -> Stage:
    """A stage of a trajectory objective; all have one optimizer and schedule, at the rate of each."""
    schedule = WarmupDecay(length, min(20, length // 10), (2 * length) // 5)
    update = Update(objective, Adam(student.parameters(), lr=rate, betas=(0.9, 0.99)), schedule=schedule)
    return Stage(name, {"student": update}, length, {"student": average or Average(student, 0.99)})


def objective_of(name: Trajectory, teacher: Teacher, student: Student, average: Average) -> Objective:
    """A trajectory objective by its name, at guidance `SCALE`."""
    guided, target = Guided(teacher, SCALE), average.module
    assert isinstance(target, Student)
    found: dict[str, Callable[[], Objective]] = {
        "meanflow": lambda: MeanFlow(guided, student, Forward(), Uniform(), 0.25),
        "meanflow from data": lambda: MeanFlow(None, student, Forward(), Uniform(), 0.25),
        "consistency": lambda: Consistency(guided, student, target, 40),
        "sCM": lambda: ContinuousConsistency(guided, student, Forward(), NOISY, warmup_steps=100),
        "LCM": lambda: LatentConsistency(teacher, student, target, SCALE, steps=50, skip=1),
        "regression": lambda: Regression(student, stored),
    }
    return found[name]()


def refined(method: Method, teacher: Teacher, student: Student, head: nn.Module | None) -> Stage:
    """The stage of a distribution objective: critics on every step, the student on each `every`-th."""
    assert isinstance(teacher, nn.Module)
    guided, fake = Guided(teacher, SCALE), deepcopy(teacher)
    kept = MeanFlow(guided, student, Forward(), Uniform(), 0.25)
    trajectory = {"trajectory": kept, "trajectory_weight": method.keep} if method.keep else {}
    stage = refine(
        student, guided, None if method.refine == "gan" else fake, head, steps=method.refine_steps,
        alignment=ALIGNMENTS.get(method.align), on_fake=method.refine == "dmd2", every=method.every,
        lr=REFINE_RATES.get(method.refine, RATE) if method.lr is None else method.lr,
        feature_gradient=GAMES.get(method.refine, 0.0), times=NOISED, reuse=method.reuse, **trajectory,
    )  # fmt: skip
    if method.refine != "blend":
        return stage
    moves = replace(stage.updates["student"], objective=Blend(kept, stage.updates["student"].objective, stage.steps))
    return replace(stage, updates={**stage.updates, "student": moves})


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
