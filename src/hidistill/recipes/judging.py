"""What the image recipes have in common after training: who is judged, by what, and what the report is given."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hidistill import weights
from hidistill.codecs import Pixels
from hidistill.discriminators.adaptive import Adaptive
from hidistill.evaluate import (
    Contestant,
    Evaluation,
    Given,
    balanced_labels,
    balanced_subset,
    draw,
    evaluate,
    seeds_of,
    uniform_labels,
)  # fmt: skip
from hidistill.metrics.agreement import ClassAgreement
from hidistill.metrics.classifier import Classifier, ClassifierFeatures
from hidistill.metrics.diversity import IntraClassDiversity
from hidistill.metrics.efficientnet import EfficientNetLite0
from hidistill.metrics.endpoint import EndDistance
from hidistill.metrics.frechet import FrechetDistance
from hidistill.metrics.neighbors import Neighbors
from hidistill.metrics.sharpness import HighFrequencyRatio
from hidistill.path import cond_on, interpolate, rows_of
from hidistill.recipes import tables
from hidistill.recipes.samplers import renoised_row, student_row, teacher_row
from hidistill.recipes.students import FLOW_MAP, student_from
from hidistill.report import page
from hidistill.report.pictures import save_attention, save_grids
from hidistill.teachers.dit import DiT, FlowMapDiT
from hidistill.types import Codec, Cond, FeatureSpace, Gallery, Metric, Split, Student, Teacher

logger = logging.getLogger(__name__)

REFERENCE_STEPS = 50
"""Steps of the teacher whose images are everybody's ends."""
LEAST_SAMPLES = 10
"""Fewer images per row say nothing, and two of each class are needed for their distances."""
SHOWN_CLASSES = 20
"""Of more classes the pictures show the first ones."""
PARTIAL = "evaluation.partial.json"
"""Rows of an evaluation that is under way."""


@dataclass(frozen=True)
class Manner:
    """How an evaluation is made beyond its rows; the defaults are those of a run's own.

    Args:
        groups: if 2 or more, intervals by leaving out so many runs of images.
        latency: whether the time of a single image is measured too.
        uniform: whether classes are drawn, instead of coming in turn.
        also: further contestants.
        notes: what a reader should know.
        on_progress: is told contestant, images drawn and images in all.
    """

    groups: int = 0
    latency: bool = False
    uniform: bool = False
    also: Sequence[Contestant] = ()
    notes: Sequence[str] = ()
    on_progress: Callable[[str, int, int], object] | None = None


@dataclass(frozen=True)
class Jury:
    """Who judges, and against which real images.

    Args:
        test: held-out real images on which nothing is chosen.
        train: training images; as many as the contestants draw are the floor of every metric.
        valid: images for the short evaluations along the way and for choosing settings.
        classifier: names the classes; None if the images have none.
        spaces: where pictures are compared, and what each space is, in words.
        codec: carries samples to pixels.
        sample_shape: of one sample; None is that of a picture.
        asked: by part, "valid" or "test", the conditions of its pictures in their order; empty where the conditions are
            labels.
        extra: further judges of a full evaluation.
        captions: the words of the test pictures' prompts; empty where there are none.
        words: further feature spaces, those of `extra`, in words.
    """

    test: Split
    train: Split
    valid: Split
    classifier: Classifier | None
    spaces: Mapping[FeatureSpace, str]
    codec: Codec = field(default_factory=Pixels)
    sample_shape: tuple[int, ...] | None = None
    asked: Mapping[str, Cond] = field(default_factory=dict)
    extra: Sequence[Metric] = ()
    captions: Sequence[str] = ()
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: channels, height, width."""
        return self.sample_shape or tuple(self.test.images.shape[1:])

    def cond(self, part: str, n: int) -> Cond | None:
        """Conditions of the first n pictures of a part; None where they are labels in turn."""
        return rows_of(self.asked[part], slice(0, n)) if part in self.asked else None

    def metrics(self) -> list[Metric]:
        """Every judge of a full evaluation."""
        judges: list[Metric] = []
        for space in self.spaces:
            judges += [FrechetDistance(space), Neighbors(space)]
        if self.classifier is not None:
            judges.append(ClassAgreement(self.classifier))
        return [*judges, IntraClassDiversity(), HighFrequencyRatio(), EndDistance(), *self.extra]

    def usual_metrics(self) -> list[Metric]:
        """The judges of a full evaluation without the further ones, which are dear."""
        return replace(self, extra=()).metrics()

    def quick_metrics(self) -> list[Metric]:
        """The judges of a short evaluation."""
        judges: list[Metric] = [HighFrequencyRatio()]
        judges += [FrechetDistance(space) for space in list(self.spaces)[:1]]
        return judges + ([ClassAgreement(self.classifier)] if self.classifier is not None else [])


def jury(train: Split, valid: Split, test: Split, classifier: Classifier | None, name: str) -> Jury:
    """The usual jury: the classifier's features, and those of EfficientNet-Lite0 if its weights are installed."""
    spaces: dict[FeatureSpace, str] = {}
    if classifier is not None:
        space = ClassifierFeatures(classifier, name=name)
        spaces[space] = "64 features of a small classifier that was trained on real images of this set"
    try:
        spaces[EfficientNetLite0()] = "1280 pooled features of EfficientNet-Lite0, trained on ImageNet, at 64 pixels"
    except FileNotFoundError:
        if not spaces:
            raise
    return Jury(test, train, valid, classifier, spaces)


def refuse_count(test: Split, samples: int) -> None:
    """Refuse a table of too few images, or of more than there are real ones to judge them by.

    Raises:
        ValueError: if there are too few or too many.
    """
    classes, most = len(test.classes), len(test.images)
    least = max(LEAST_SAMPLES, 2 * classes)
    if not least <= samples <= most:
        advice = (
            f"choose {least} to {most}"
            if least <= most
            else f"give {20 * least} pictures or more, of which about a "
            "tenth are set aside for the test, or a folder test of your own"
        )
        what = f"a table of {classes} classes" if classes > 1 else "a table"
        raise ValueError(
            f"{samples} images a row of the table, of {most} test images: {what} needs at least {least}, and at most "
            f"as many as there are test images; {advice}"
        )


def contestants(
    teacher: Teacher,
    students: Mapping[str, Student],
    *,
    scale: float,
    scales: Sequence[float],
    teacher_steps: Sequence[int],
    student_steps: Sequence[int],
    precision: str,
) -> list[Contestant]:
    """Student and sketch at each step count; the teacher at `scale` and `teacher_steps`, and in 50 at each scale."""
    rows = [
        student_row(name, student, steps=steps, precision=precision)
        for name, student in students.items()
        for steps in student_steps
    ]
    if "student" in students:
        several = [steps for steps in student_steps if steps > 1]
        rows += [renoised_row("student", students["student"], steps=steps, precision=precision) for steps in several]
    pairs = {(scale, REFERENCE_STEPS): None} | {(scale, steps): None for steps in teacher_steps}
    pairs |= {(other, REFERENCE_STEPS): None for other in scales}
    return rows + [teacher_row(teacher, scale=s, steps=steps, precision=precision) for s, steps in pairs]


def short_evaluation(judges: Jury, student: Student, *, n: int, seed: int, precision: str) -> dict[str, float]:
    """One-step quality on the validation images, quickly; for curves, not for tables."""
    real = Gallery.of(balanced_subset(judges.valid, n))
    row = student_row("student", student, steps=1, precision=precision)
    evaluation = evaluate(
        [row], n=len(real.images) if judges.asked else n, seed=seed, real=real, codec=judges.codec, shape=judges.shape,
        metrics=judges.quick_metrics(), cond=judges.cond("valid", n), device=device_of(student),
    )  # fmt: skip
    return dict(evaluation.rows[0].metrics)


def device_of(network: object) -> str:
    """Where a network's weights are; the CPU for what has none."""
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return "cpu" if weight is None else str(weight.device)


def conclude(
    folder: Path,
    judges: Jury,
    teacher: Teacher,
    *,
    scale: float,
    samples: int,
    seed: int,
    scales: Sequence[float],
    teacher_steps: Sequence[int],
    student_steps: Sequence[int],
    precision: str,
    discriminator: Adaptive | None = None,
    manner: Manner = Manner(),
) -> None:
    """Evaluate a finished run, draw its pictures and write its page. Interrupted, it goes on after the last row.

    All networks run where the teacher is.
    """
    device = device_of(teacher)
    students = read_students(folder, device=device)
    rows: list[Contestant | Given] = [
        *contestants(
            teacher, students, scale=scale, scales=scales,
            teacher_steps=teacher_steps, student_steps=student_steps, precision=precision,
        ),
        *manner.also,
        Given("real training images", Gallery.of(balanced_subset(judges.train, samples))),
    ]  # fmt: skip
    partial_path, path = folder / PARTIAL, folder / "evaluation.json"
    reference = teacher_row(teacher, scale=scale, steps=REFERENCE_STEPS, precision=precision).name

    def keep(so_far: Evaluation) -> None:
        so_far.save(partial_path)
        logger.info("evaluated %d of %d rows", len(so_far.rows), len(rows))

    evaluation = evaluate(
        rows,
        n=samples,
        seed=seed,
        real=Gallery.of(balanced_subset(judges.test, samples)),
        codec=judges.codec,
        shape=judges.shape,
        metrics=judges.metrics(),
        cond=judges.cond("test", samples),
        reference=reference,
        features={space.name: words for space, words in judges.spaces.items()} | dict(judges.words),
        labels=uniform_labels(samples, len(judges.test.classes), seed) if manner.uniform else None,
        notes=[*tables.warnings_of(judges.metrics(), judges.test.images[:1].float() / 255, samples), *manner.notes],
        groups=manner.groups,
        grouped=judges.usual_metrics(),
        latency=manner.latency,
        device=device,
        on_progress=manner.on_progress,
        done=resumable(partial_path, judges, manner, samples=samples, seed=seed),
        on_row=keep,
    )
    evaluation.save(path)
    tables.save(evaluation, folder)
    partial_path.unlink(missing_ok=True)
    draw_pictures(folder, judges, teacher, students, scale=scale, seed=seed, precision=precision)
    if discriminator is not None:
        shown = balanced_subset(judges.test, 10)
        maps = square_maps(attention_maps(judges, "test", teacher, discriminator, n=10))
        if maps is not None:
            save_attention(folder / "samples" / "attention.npz", images=shown.images.float() / 255, weights=maps)
    page.write(folder)


def resumable(path: Path, judges: Jury, manner: Manner, *, samples: int, seed: int) -> Evaluation | None:
    """The rows of an interrupted evaluation with the same settings, if there is one."""
    if not path.exists():
        return None
    done = Evaluation.load(path)
    same = (done.n, done.seed, list(done.judges)) == (samples, seed, [judge.name for judge in judges.metrics()])
    left = {len(values) for row in done.rows for values in row.left_out.values()} or {0}
    uniform = done.labels == "uniform"
    return done if same and uniform == manner.uniform and left == {manner.groups} else None


def read_students(folder: Path, *, device: str = "cpu") -> dict[str, Student]:
    """The flow maps that a run's stages left in its folder."""
    found = {name: folder / "models" / f"{name}.safetensors" for name in ("student", "sketch")}
    students = {name: read_student(path, device=device) for name, path in found.items() if path.exists()}
    if not students:
        raise ValueError(f"{folder} holds no student; expected {found['student']}: finish the run first")
    return students


def read_student(path: Path, *, device: str = "cpu") -> Student:
    """A flow map from its file: of our own DiT, or of another library's network."""
    stored = weights.read(path)
    if stored.family == FLOW_MAP:
        return student_from(stored, source=str(path)).to(device)
    stored = expect(path, "dit-flow-map")
    student = FlowMapDiT(DiT.from_config(dict(stored.config)))
    weights.load_into(student, stored.tensors, source=str(path))
    return student.to(device).eval().requires_grad_(False)


def read_teacher(path: Path) -> DiT:
    """A DiT teacher from its file."""
    stored = expect(path, "dit")
    teacher = DiT.from_config(dict(stored.config))
    weights.load_into(teacher, stored.tensors, source=str(path))
    return teacher.eval().requires_grad_(False)


def expect(path: Path, family: str) -> weights.Weights:
    """A weights file of a family."""
    stored = weights.read(path)
    if stored.family != family:
        raise ValueError(f"{path} holds a model of family {stored.family!r}; a {family!r} is needed here")
    return stored


def draw_pictures(
    folder: Path,
    judges: Jury,
    teacher: Teacher,
    students: Mapping[str, Student],
    *,
    scale: float,
    seed: int,
    precision: str,
    per_class: int = 6,
) -> None:
    """Samples of everybody from the same noise and classes, for the report's first picture.

    Real pictures stand beside them, as many of each class as the smallest has; a class without any leaves them out.
    """
    classes = min(max(1, len(judges.test.classes)), SHOWN_CLASSES)
    there = torch.bincount(judges.test.labels, minlength=classes)[:classes]
    n = min(per_class, max(1, int(there.min()))) * classes if classes > 1 else min(20, len(judges.test.images))
    labels, seeds = balanced_labels(n, classes), seeds_of(n, seed)
    cond = judges.cond("test", n)
    rows = {name: student_row(name, student, steps=1, precision=precision) for name, student in students.items()}
    rows["teacher"] = teacher_row(teacher, scale=scale, steps=REFERENCE_STEPS, precision=precision)
    kinds = {
        name: draw(
            row.sample,
            seeds=seeds,
            cond=labels if cond is None else cond,
            shape=judges.shape,
            codec=judges.codec,
            device=device_of(teacher),
        ).images
        for name, row in rows.items()
    }
    if there.min():
        by_class = [torch.nonzero(judges.test.labels == label).flatten()[: n // classes] for label in range(classes)]
        kinds["real"] = judges.test.images[torch.stack(by_class, dim=1).flatten()].float() / 255
    names, asked = judges.test.classes, "class"
    if judges.captions:
        names, asked, labels = judges.captions[:n], "prompt", torch.arange(n)
    save_grids(folder / "samples" / "grids.npz", kinds=kinds, labels=labels, classes=names, asked=asked)


@torch.no_grad()
def attention_maps(judges: Jury, part: str, teacher: Teacher, discriminator: Adaptive, *, n: int) -> list[Tensor]:
    """Where the discriminator looks on real images at t = 0.3: for each tapped layer (n, queries, tokens)."""
    device = device_of(discriminator)
    split, t = balanced_subset(judges.valid if part == "valid" else judges.test, n), 0.3
    x_0 = judges.codec.encode(split.images.float() / 255)
    times = torch.full((len(x_0),), t, device=device)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    asked = judges.cond(part, len(x_0))
    cond = cond_on(split.labels if asked is None else asked, device)
    features = teacher.features(interpolate(x_0.to(device), noise.to(device), times), t=times, cond=cond)
    return [weights.cpu() for weights in discriminator.attention(features, t=times, cond=cond)]


def square_maps(maps: Sequence[Tensor]) -> Tensor | None:
    """Attention as pictures (layers, n, queries, side, side); None where tokens are no square, or layers differ."""
    side = math.isqrt(maps[0].shape[-1])
    if any(layer.shape[-1] != side**2 for layer in maps):
        return None
    return torch.stack(list(maps)).unflatten(-1, (side, side))
