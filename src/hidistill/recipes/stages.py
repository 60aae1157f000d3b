"""The two stages of Hierarchical Distillation, put together from their parts (arXiv 2511.08930)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Adam, AdamW

from hidistill.guidance import Guided
from hidistill.inference import LowPrecision, LowPrecisionField
from hidistill.objectives.adversarial import Fool, Game, Hinge, Softplus, TellApart
from hidistill.objectives.alignment import (
    Align,
    Discrepancy,
    Drift,
    Moments,
    OneTime,
    SetDistance,
    Sets,
    SlicedWasserstein,
    each_token,
    energy,
    pooled,
)
from hidistill.objectives.combine import Handover, OnGenerated, OnNoised, OnSamples, Sum
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.objectives.meanflow import MeanFlow
from hidistill.times import Arcsine, Uniform
from hidistill.train.ema import Average
from hidistill.train.loop import Precision
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import (
    Derivative,
    NoisedObjective,
    Objective,
    PerSample,
    RolloutObjective,
    Student,
    Teacher,
    TimeLaw,
    Times,
    Tokens,
    VelocityField,
)

IN_TRUNK = 1e-2
"""Weight of the discriminator's loss beside the fake score's where both move one trunk, which it must not lead (arXiv
2405.14867 has it at ImageNet)."""


@dataclass(frozen=True)
class Alignment:
    """A distance of feature sets, and what is compared of a layer's tokens."""

    distance: SetDistance
    read: Callable[[Tokens], Sets] = pooled


ALIGNMENTS = {
    "energy": Alignment(Discrepancy(energy)),
    "energy_tokens": Alignment(Discrepancy(energy), each_token),
    "sliced": Alignment(SlicedWasserstein()),
    "moments": Alignment(Moments()),
    "drift": Alignment(Drift()),
}
"""Distances that can stand in for a discriminator, by name."""


def sketch(
    student: Student,
    field: VelocityField,
    *,
    steps: int,
    derivative: Derivative,
    lr: float = 5e-4,
    times: TimeLaw = Uniform(),
    instantaneous: float = 0.25,
    warmup_steps: int = 0,
    decay: float = 0.99,
) -> Stage:
    """Stage 1: the student learns the mean velocity along the guided teacher's trajectories.

    Args:
        student: a module that is a flow map.
        field: the guided teacher.
        steps: length of the stage.
        derivative: forward mode or central differences.
        lr: Adam's learning rate; falls to zero over the last two fifths.
        times: distribution that t and r are drawn from. Uniform rather than the logit-normal of MeanFlow from data: a
            one-step student is asked at t = 1, r = 0, where that law hardly comes.
        instantaneous: share of the rows with r = t.
        warmup_steps: steps over which the derivative's term grows to its full size.
        decay: of the student's average.
    """
    module = as_module(student)
    objective = MeanFlow(field, student, derivative, times, instantaneous, warmup_steps=warmup_steps)
    optimizer = Adam(module.parameters(), lr=lr, betas=(0.9, 0.99))
    schedule = WarmupDecay(steps, min(20, steps // 10), (2 * steps) // 5)
    updates = {"student": Update(objective, optimizer, schedule=schedule)}
    return Stage("sketch", updates, steps, {"student": Average(module, decay)})


def refine(
    student: Student,
    teacher: Teacher,
    fake: VelocityField | None,
    discriminator: nn.Module | None,
    *,
    steps: int,
    alignment: Alignment | None = None,
    on_fake: bool = False,
    every: int = 2,
    lr: float = 3e-4,
    lr_fake: float = 6e-4,
    lr_discriminator: float = 5e-4,
    feature_gradient: float = 0.3,
    times: TimeLaw = Uniform(0.02, 0.98),
    fake_times: TimeLaw = Arcsine(),
    fake_weight: Callable[[Times], PerSample] | None = None,
    starts: tuple[float, ...] = (1.0,),
    penalty: float = 0.0,
    trajectory: Objective | None = None,
    trajectory_weight: float = 0.02,
    decay: float = 0.98,
    scores: Precision = "float32",
    reuse: bool = False,
) -> Stage:
    """Stage 2: the student's samples are moved to where data is likely, and made to look real.

    Args:
        student: a module that is a flow map.
        teacher: the frozen, guided teacher: real score and features.
        fake: the fake score, a trainable copy of the unguided teacher; None leaves distribution matching out, and the
            discriminator or alignment judges alone.
        discriminator: a head on the teacher's features; None is distribution matching alone.
        steps: length of the stage, in updates of the critics.
        alignment: a distance of the teacher's features of real and generated samples; None compares none.
        on_fake: whether the discriminator reads the fake score's features, whose trunk then learns from both and whose
            game is the logistic one (DMD2, arXiv 2405.14867, section 4.3), in place of the teacher's and the hinge.
        every: the student moves on each `every`-th step (arXiv 2405.14867, section 4.2: two time scales).
        lr: of the student.
        lr_fake: of the fake score.
        lr_discriminator: of the discriminator.
        feature_gradient: size of the gradient through features, of discriminator and of alignment, in the unit of DMD's
            normalized one.
        times: distribution of the noise level at which samples are judged.
        fake_times: distribution of the noise level at which the fake score learns; often near the ends, for at little
            noise it must find out what the student's samples have and data has not.
        fake_weight: of the fake score's loss at a time; None weighs all alike.
        starts: times from which the student's judged jumps start.
        penalty: weight of the approximate R1.
        trajectory: a loss along the teacher's trajectories that the student keeps beside its judges, as the sketch's
            MeanFlow: it draws every jump to the teacher's, while the judges look at one (arXiv 2512.16776, section
            2.2.4, keeps one in this stage too).
        trajectory_weight: factor of it; small, for the sketch's loss is a sum over components and DMD's a mean.
        decay: of the student's average.
        scores: precision of the passes that nobody learns from by their weights: the frozen teacher's, and the fake
            score's in the student's update. In bfloat16 DMD's gradient is a few percent off (docs/speed.md).
        reuse: whether critics take the samples, and the frozen teacher's features of them at their noise, that the
            student's update of the same step has made, in the place of their own: up to 1.8 forwards less for the same
            losses (docs/speed.md). The student then moves before the critics. What is handed over lies in memory
            between the two updates: of every row the sample, the noised one, and all tapped features.

    Raises:
        ValueError: if parts do not fit together, or `reuse` has no critics.
    """
    refuse_misfits(fake, discriminator, alignment, on_fake=on_fake, feature_gradient=feature_gradient, reuse=reuse)
    if trajectory is not None and not 0 < trajectory_weight < float("inf"):
        raise ValueError(
            f"trajectory_weight={trajectory_weight} with a trajectory loss: it must be positive and finite; to leave "
            "the loss out give trajectory=None"
        )
    module, plain = as_module(student), teacher.teacher if isinstance(teacher, Guided) else teacher
    teacher, plain, asked = answering(teacher, plain, fake, scores)
    judges: dict[str, NoisedObjective] = {}
    critics: dict[str, RolloutObjective] = {}
    groups: list[dict[str, Any]] = []
    reads = teacher
    if fake is not None and asked is not None:
        judges["dmd"] = DMD(asked)
        critics["fake"] = OnGenerated(FlowMatching(fake, fake_times, weight=fake_weight))
        groups.append({"params": list(as_module(fake).parameters()), "lr": lr_fake, "role": "fake"})
    if discriminator is not None:
        game: Game = Softplus() if on_fake else Hinge()
        if on_fake:
            assert isinstance(fake, Teacher)
            reads = fake
        judges["gan"] = Fool(discriminator, game)
        critics["gan"] = TellApart(reads, discriminator, times, game, penalty)
        groups.append({"params": list(discriminator.parameters()), "lr": lr_discriminator, "role": "discriminator"})
    judged: dict[str, RolloutObjective] = {}
    handover = Handover() if reuse else None
    if judges:
        size = feature_gradient if discriminator is not None else 0.0
        real = teacher if fake is not None else plain  # nobody reads the velocity where there is no DMD
        # The fake score's features move with it: only the frozen teacher's can be handed over.
        passed = handover if discriminator is not None and not on_fake else None
        judged["judged"] = OnNoised(real, times, judges, size, features_of=reads if on_fake else None, handover=passed)
    if alignment is not None:
        aligned = {"align": Align(plain, alignment.distance, alignment.read)}
        judged["aligned"] = OnNoised(plain, OneTime(times), aligned, feature_gradient)
    moves: Objective = OnSamples(student, judged, differentiable=True, starts=starts, handover=handover)
    if trajectory is not None:
        moves = Sum({"samples": moves, "trajectory": trajectory}, {"trajectory": trajectory_weight})
    updates = {}
    if critics:
        weights = {"gan": IN_TRUNK} if on_fake else None
        told = OnSamples(student, critics, differentiable=False, starts=starts, weights=weights, handover=handover)
        updates["critics"] = Update(told, Adam(groups, betas=(0.0, 0.99)))
    updates["student"] = Update(
        moves,
        AdamW(module.parameters(), lr=lr, betas=(0.0, 0.99), weight_decay=0.0),
        every=every if critics else 1,
        schedule=WarmupDecay(steps, min(10, steps // 10), steps // 3),
    )
    if reuse:
        updates = dict(reversed(updates.items()))
    return Stage("refine", updates, steps, {"student": Average(module, decay)})


def answering(
    teacher: Teacher, plain: Teacher, fake: VelocityField | None, scores: Precision
) -> tuple[Teacher, Teacher, VelocityField | None]:
    """The fields whose weights nobody learns from, in a precision."""
    if scores not in ("float32", "bfloat16"):
        raise ValueError(f"scores={scores!r}: the precision of the scores is 'float32' or 'bfloat16'")
    if scores == "float32":
        return teacher, plain, fake
    return LowPrecision(teacher), LowPrecision(plain), None if fake is None else LowPrecisionField(fake)


def refuse_misfits(
    fake: VelocityField | None,
    discriminator: nn.Module | None,
    alignment: Alignment | None,
    *,
    on_fake: bool,
    feature_gradient: float,
    reuse: bool,
) -> None:
    """Refuse judges that do not fit together.

    Raises:
        ValueError: if nothing would judge, a discriminator is to read a fake score that is not there, or nobody would
            reuse the student's draw.
        TypeError: if it is to read a fake score that has no features.
    """
    if fake is None and discriminator is None and alignment is None:
        raise ValueError(
            "refine without fake score, discriminator and alignment has no judge; give one, e.g. fake=deepcopy(teacher)"
        )
    if reuse and fake is None and discriminator is None:
        raise ValueError("reuse=True without critics: nobody takes what the student leaves; leave it False")
    if on_fake and (fake is None or discriminator is None):
        raise ValueError(
            "on_fake=True is a discriminator on the fake score's features; it needs both: give fake and discriminator"
        )
    if on_fake and not isinstance(fake, Teacher):
        raise TypeError(f"on_fake=True with a {type(fake).__name__}, which has no features; give a copy of the teacher")
    if (discriminator is not None or alignment is not None) and feature_gradient <= 0:
        raise ValueError(
            f"feature_gradient={feature_gradient} with a discriminator or an alignment: it must be positive; for "
            "distribution matching alone give discriminator=None and alignment=None"
        )


def as_module(role: object) -> nn.Module:
    """The module that plays a role.

    Raises:
        TypeError: if what plays it has no parameters to train.
    """
    if not isinstance(role, nn.Module):
        raise TypeError(f"a {type(role).__name__} cannot be trained here; give a torch.nn.Module")
    return role
