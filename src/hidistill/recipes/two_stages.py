"""Sketch, hand over, refine, evaluate: the experiment that every image recipe runs on its own teacher and data."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hidistill.codecs import modules_of
from hidistill.derivative import Central, Forward, self_test
from hidistill.discriminators.adaptive import QUERY_STD, Adaptive, normalized_entropy
from hidistill.discriminators.convolutional import Convolutional
from hidistill.discriminators.per_token import PerToken
from hidistill.discriminators.pooled import Pooled
from hidistill.guidance import Guided
from hidistill.objectives.meanflow import MeanFlow
from hidistill.path import interpolate, rows_of
from hidistill.recipes.judging import Jury, attention_maps, conclude, contestants, refuse_count, short_evaluation
from hidistill.recipes.stages import ALIGNMENTS, refine, sketch
from hidistill.seeds import fold_in
from hidistill.teachers.dit import DiT
from hidistill.train.experiment import Experiment, Product
from hidistill.train.loop import quickest
from hidistill.types import Batch, Derivative, Student, Teacher, VelocityField

Matching = Literal["dmd", "dmd2", "gan", "energy", "energy_tokens", "sliced", "moments", "drift"]
"""By what refine matches: DMD with a head on the teacher's features or, dmd2, on the fake score's; a head alone; or DMD
with one of `ALIGNMENTS` in the head's place."""
HEADS = {"adaptive": Adaptive, "pooled": Pooled, "convolutional": Convolutional, "per_token": PerToken}
DERIVATIVES: dict[str, Derivative] = {"forward": Forward(), "central": Central()}
TOLERATED = 0.03
"""Relative difference of the two derivatives above which a run does not start: labels dropped at random within the
network or times rounded to bfloat16 give 0.3 and more, rounding below 0.01."""


@dataclass(frozen=True)
class Plan:
    """The knobs that the image recipes share; each recipe's docstring says what they do.

    `sketch` and `refine` hold arguments of the functions of `stages` that differ from their defaults.
    """

    sketch_steps: int
    refine_steps: int
    batch_size: int
    guidance: float
    discriminator: Literal["adaptive", "pooled", "convolutional", "per_token", "none"]
    derivative: Literal["forward", "central"]
    trajectory_weight: float
    evaluate_samples: int
    seed: int
    query_std: float = QUERY_STD
    matching: Matching = "dmd"
    precision: str = "float32"
    probe_samples: int = 200
    scales: tuple[float, ...] = (1.0,)
    teacher_steps: tuple[int, ...] = (4, 16)
    sketch: Mapping[str, Any] = field(default_factory=dict)
    refine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and what does not go together."""
        if min(self.sketch_steps, self.refine_steps) < 0 or self.sketch_steps + self.refine_steps < 1:
            raise ValueError(
                f"sketch_steps={self.sketch_steps}, refine_steps={self.refine_steps}: neither may be negative, and one "
                "must be positive"
            )
        if self.batch_size < 1 or self.evaluate_samples < 1:
            raise ValueError(
                f"batch_size={self.batch_size}, evaluate_samples={self.evaluate_samples}: both must be at least 1"
            )
        if not 0.0 <= self.trajectory_weight < float("inf"):
            raise ValueError(
                f"trajectory_weight={self.trajectory_weight}: must be 0 or more; 0 leaves the sketch's loss out of "
                "refine, 0.02 is usual"
            )
        if not 0.0 <= self.guidance <= 20.0:
            raise ValueError(f"guidance={self.guidance}: the scale must be in [0, 20]; 1 is no guidance, 1.5 is usual")
        if self.matching in ("dmd2", "gan") and self.discriminator == "none":
            raise ValueError(
                f"matching={self.matching!r} with discriminator='none': it is a game of a discriminator; give one, "
                "per_token say, or matching='dmd' for distribution matching alone"
            )
        if not 0.0 <= self.query_std < float("inf"):
            raise ValueError(
                f"query_std={self.query_std}: must be a number of 0 or more; {QUERY_STD} is usual, 1 is large"
            )
        if self.query_std != QUERY_STD and self.discriminator != "adaptive":
            raise ValueError(
                f"query_std={self.query_std} with discriminator={self.discriminator!r}: queries are the adaptive "
                f"head's; leave it at {QUERY_STD}, or give discriminator='adaptive'"
            )
        if self.matching in ALIGNMENTS and self.discriminator != "none":
            raise ValueError(
                f"matching={self.matching!r} with discriminator={self.discriminator!r}: the distance stands in for the "
                "discriminator; give discriminator='none' with it"
            )


@dataclass(frozen=True)
class Finish:
    """The full evaluation, the pictures and the page of a finished run.

    Args:
        judges: who judges.
        teacher: whom the student is compared with.
        plan: which rows there are, and of how many images.
        head: the discriminator, whose attention over the teacher's features is drawn.
        student: any of the run's students, to count the rows.
    """

    judges: Jury
    teacher: Teacher
    plan: Plan
    head: nn.Module | None
    student: Student

    def __call__(self, folder: Path) -> None:
        """Evaluate the run in a folder."""
        conclude(
            folder,
            self.judges,
            self.teacher,
            samples=self.plan.evaluate_samples,
            seed=self.plan.seed,
            discriminator=self.head if isinstance(self.head, Adaptive) and self.plan.matching != "dmd2" else None,
            **self.rows,
        )

    @property
    def rows(self) -> dict[str, Any]:
        """Which rows the table has."""
        return {
            "scale": self.plan.guidance,
            "scales": self.plan.scales,
            "teacher_steps": self.plan.teacher_steps,
            "student_steps": (1, 2, 4),
            "precision": quickest(),
        }

    @property
    def passes(self) -> list[int]:
        """Network passes per image, of each row that is drawn."""
        lengths = {"sketch": self.plan.sketch_steps, "student": self.plan.refine_steps}
        students = {name: self.student for name, steps in lengths.items() if steps}
        return [row.nfe for row in contestants(self.teacher, students, **self.rows)]


@dataclass(frozen=True)
class Cast:
    """Who takes part in a distillation.

    Args:
        teacher: the frozen teacher.
        student: the flow map that learns, built to begin as its teacher.
        fake: the fake score, built to begin as its teacher.
        family: of the student's weights files.
        config: what rebuilds the student.
        step: of the differences against which its derivative is checked; 1e-4 for networks that embed 1000 t.
        stand_in: in float32, for a student whose own copy would not be; takes the check in its place.
    """

    teacher: Teacher
    student: nn.Module
    fake: nn.Module
    family: str
    config: Mapping[str, Any]
    step: float = 1e-3
    stand_in: nn.Module | None = None


def distillation(teacher: DiT, plan: Plan, *, batch_at: Callable[[int], Batch], judges: Jury) -> Experiment:
    """Both stages on a DiT teacher of ours; see `both_stages`."""
    refuse_count(judges.test, plan.evaluate_samples)
    teacher.eval().requires_grad_(False)
    torch.manual_seed(fold_in(plan.seed, "student"))
    student = teacher.student()
    cast = Cast(teacher, student, deepcopy(teacher), "dit-flow-map", student.config)
    return both_stages(cast, plan, batch_at=batch_at, judges=judges)


def both_stages(cast: Cast, plan: Plan, *, batch_at: Callable[[int], Batch], judges: Jury) -> Experiment:
    """Sketch and refine, with short evaluations along the way and a full one at the end.

    Raises:
        ValueError: if too few images would be judged, or more than there are test images.
        RuntimeError: if the two derivative back ends disagree on this student.
    """
    refuse_count(judges.test, plan.evaluate_samples)
    teacher, student, fake = cast.teacher, cast.student, cast.fake
    assert isinstance(student, Student)
    assert isinstance(fake, VelocityField)
    assert isinstance(teacher, nn.Module)
    guided = Guided(teacher, scale=plan.guidance)
    head = head_of(plan, teacher.feature_channels)
    checked = student if cast.stand_in is None else cast.stand_in
    assert isinstance(checked, Student)
    check_derivative(checked, guided, batch_at(0), step=cast.step)
    stages, modules, products, kept = [], {"student": student}, {}, {}
    product = partial(Product, "student", family=cast.family, config=cast.config, classes=judges.test.classes)
    if plan.sketch_steps:
        derivative = DERIVATIVES[plan.derivative]
        stages.append(sketch(student, guided, steps=plan.sketch_steps, derivative=derivative, **plan.sketch))
        if plan.trajectory_weight:
            objective = stages[0].updates["student"].objective
            assert isinstance(objective, MeanFlow)
            trajectory = replace(objective, warmup_steps=0)  # the sketch has warmed up; refine counts its steps from 0
            kept = {"trajectory": trajectory, "trajectory_weight": plan.trajectory_weight}
        products["sketch"] = product(file="sketch.safetensors")
    if plan.refine_steps:
        judges_by = {"alignment": ALIGNMENTS.get(plan.matching), "on_fake": plan.matching == "dmd2"}
        scored = None if plan.matching == "gan" else fake
        stages.append(
            refine(student, guided, scored, head, steps=plan.refine_steps, **judges_by, **plan.refine, **kept)
        )
        modules |= {} if scored is None else {"fake": fake}
        modules |= {} if head is None else {"discriminator": head}
        products["refine"] = product(file="student.safetensors")
    averages = {stage.name: stage.averages["student"].module for stage in stages}

    def probe(stage: str) -> Mapping[str, float]:
        follower = averages[stage]
        assert isinstance(follower, Student)
        numbers = short_evaluation(judges, follower, n=plan.probe_samples, seed=plan.seed + 1, precision=plan.precision)
        if stage == "refine" and isinstance(head, Adaptive):
            read = fake if plan.matching == "dmd2" else teacher
            assert isinstance(read, Teacher)
            maps = attention_maps(judges, "valid", read, head, n=50)
            numbers["entropy"] = torch.stack([normalized_entropy(layer).mean() for layer in maps]).mean().item()
        return numbers

    return Experiment(
        stages=stages,
        modules=modules,
        batch_at=batch_at,
        seed=plan.seed,
        precision=plan.precision,
        products=products,
        probe=probe,
        probe_every=max(20, (plan.sketch_steps + plan.refine_steps) // 12),
        finish=Finish(judges, teacher, plan, head, student),
        frozen={"teacher": teacher, **modules_of(judges.codec)},
    )


def head_of(plan: Plan, channels: Sequence[int]) -> nn.Module | None:
    """The discriminator on features of so many channels."""
    if plan.discriminator == "none":
        return None
    options = {"query_std": plan.query_std} if plan.discriminator == "adaptive" else {}
    return HEADS[plan.discriminator](channels, **options)


def check_derivative(student: Student, guided: Guided, batch: Batch, *, step: float = 1e-3) -> None:
    """Refuse to start where forward mode and central differences disagree on one tiny batch."""
    x, labels = batch.x[:4], rows_of(batch.cond, slice(0, 4))
    probe = deepcopy(student)
    assert isinstance(probe, nn.Module)
    for parameter in probe.parameters():  # a student at its start does not depend on r: let it
        parameter.data += 0.02 * torch.randn_like(parameter)
    t, r = torch.linspace(0.31, 0.93, len(x)), torch.linspace(0.05, 0.4, len(x))
    x_t = interpolate(x, torch.randn_like(x), t)
    direction = guided.velocity(x_t, t=t, cond=labels)
    # Along a direction that is larger than the samples, a difference of the same step would be one of other points.
    step /= max(1.0, float(direction.square().mean().sqrt()))
    difference = float("inf")
    for smaller in (1.0, 0.1, 0.01):  # a rough network needs a smaller one; a wrong derivative is wrong at each
        found = self_test(probe, x_t, t=t, r=r, cond=labels, direction=direction, step=smaller * step)
        difference = min(difference, found)
        if difference <= TOLERATED:
            break
    else:
        raise RuntimeError(
            f"forward mode and central differences differ by {difference:.1%} on this student (at most {TOLERATED:.0%} "
            "is rounding); look for randomness in its forward pass, or times that are rounded to bfloat16"
        )


def settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `conclude` needs of a recipe's arguments."""
    return {"scale": float(arguments["guidance"]), "precision": quickest()}
