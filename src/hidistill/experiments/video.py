"""Clips to distill on: moving digits, a small space-time DiT that draws them, and what is judged of a clip.

All cells of an experiment share one teacher and one classifier; cells of a seed draw from the same noise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from hidistill import weights
from hidistill.codecs import Pixels
from hidistill.data.digits import digits
from hidistill.data.moving import Motion, clips, ways
from hidistill.evaluate import Contestant, balanced_labels, draw, seeds_of
from hidistill.evaluate import judged as scores
from hidistill.experiments.methods import SCALE, Method, head_of, stages
from hidistill.experiments.toys import once, train
from hidistill.files import whole
from hidistill.metrics.agreement import ClassAgreement
from hidistill.metrics.classifier import Classifier, ClassifierFeatures, read_classifier, save_classifier
from hidistill.metrics.classifier import train_classifier as learn
from hidistill.metrics.diversity import IntraClassDiversity
from hidistill.metrics.endpoint import EndDistance
from hidistill.metrics.frechet import FrechetDistance, frechet_distance, moments
from hidistill.metrics.sharpness import HighFrequencyRatio
from hidistill.metrics.temporal import appearance_change, centroids, motion_error
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.recipes.samplers import student_row, teacher_row
from hidistill.seeds import fold_in
from hidistill.teachers.video import VideoDiT
from hidistill.times import Arcsine, LogitNormal
from hidistill.train.loop import NonFinite, steps
from hidistill.types import Batch, Gallery, Images, Labels, Points, Samples, Split

DIGIT, ENDS_STEPS, CLASSIFIER_CLIPS = 8, 50, 2000
"""Side of a digit, the teacher's steps, and the clips whose frames the judge learns from."""
SPACE = "frames-classifier-64"
FRAMES = {f"fd/{SPACE}": "fd", "agreement": "agreement", "high_frequency": "high frequency"}
CLIPS = {"end_distance": "end", "diversity": "diversity"}
"""Metrics of frames, each frame a picture, and of clips, all frames one picture; by their names here."""
SHOWN = 6
"""Clips of each kind in a cell's filmstrip."""

Strips = Float[Tensor, "n frames h w"]
"""Gray clips as pictures whose channels are the frames, in [0, 1]."""
Part = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Plan:
    """What clips there are, who draws them, and how many are judged.

    Args:
        classes: that there are, from 0 on; 10 are all.
        frames: of a clip.
        side: of the canvas in pixels.
        fastest: speed of a digit along each axis, in pixels a frame.
        patch: side of a patch in pixels.
        tubelet: frames that a token holds.
        dim: width of the network's tokens.
        depth: its blocks.
        heads: of its attention.
        teacher_steps: of flow matching; a third as many follow near the ends of time, as for images.
        teacher_lr: its largest learning rate.
        batch: clips per step, of teacher and student.
        judged: clips that each contestant draws.
        classifier_steps: of the training of the frames' judge.
    """

    classes: int
    frames: int
    side: int
    fastest: int
    patch: int
    tubelet: int
    dim: int
    depth: int
    heads: int
    teacher_steps: int
    teacher_lr: float
    batch: int
    judged: int
    classifier_steps: int = 300

    @property
    def motion(self) -> Motion:
        """How digits move."""
        return Motion(self.frames, self.side, self.fastest)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a clip, as the network sees it."""
        return (self.frames, 1, self.side, self.side)

    @property
    def labels(self) -> Labels:
        """Of the clips that are judged."""
        return balanced_labels(self.judged, self.classes)

    def digits(self, part: Part) -> Split:
        """The digits of a part that take part.

        Raises:
            ValueError: if there are no such classes.
        """
        split = digits(part)
        if not 2 <= self.classes <= len(split.classes):
            raise ValueError(
                f"classes={self.classes}: there are digits of 2 to {len(split.classes)} classes; use those"
            )
        kept = split.labels < self.classes
        return Split(split.images[kept], split.labels[kept], split.classes[: self.classes])


@dataclass(frozen=True)
class Frames:
    """Codec of gray clips: points (b, frames, 1, h, w) in [-1, 1], and pictures whose channels are the frames."""

    def encode(self, images: Images) -> Points:
        """(b, frames, h, w) -> (b, frames, 1, h, w)."""
        return Pixels().encode(images)[:, :, None]

    def decode(self, x_0: Points) -> Images:
        """(b, frames, 1, h, w) -> (b, frames, h, w)."""
        return Pixels().decode(x_0[:, :, 0])


def cell(
    *, seed: int, folder: Path, plan: Mapping[str, Any], real: bool = False, teacher_steps: int = 0, **method: Any  # noqa: ANN401
) -> Mapping[str, float]:  # fmt: skip
    """A student of a method; or the guided teacher in so many Euler steps; or clips of real digits of neither part.

    The rows of the latter two stand in the columns of one step.
    """
    planned = Plan(**plan)
    if real:
        return judged("1", strips(planned, "valid", planned.judged, seed=seed), planned, seed=seed, folder=folder)
    teacher = teacher_at(folder, planned)
    if teacher_steps:
        row = teacher_row(teacher, scale=SCALE, steps=teacher_steps, precision="float32")
        return judged("1", drawn(row, planned, seed=seed), planned, seed=seed, folder=folder)
    return measured(Method(**method), planned, seed=seed, folder=folder)


def batches(plan: Plan, *, seed: int) -> Callable[[int], Batch]:
    """Batches of clips of training digits as a function of the step; no clip comes twice."""
    split, motion = plan.digits("train"), plan.motion

    def batch_at(step: int) -> Batch:
        found = clips(split, range(step * plan.batch, (step + 1) * plan.batch), motion, seed=seed)
        return Batch(Frames().encode(found.pixels[:, :, 0]), found.labels, step)

    return batch_at


def strips(plan: Plan, part: Part, count: int, *, seed: int) -> Strips:
    """Clips of the real digits of a part, of the classes in turn, like those of an evaluation."""
    return clips(plan.digits(part), range(count), plan.motion, seed=fold_in(seed, part)).pixels[:, :, 0]


def teacher_at(folder: Path, plan: Plan) -> VideoDiT:
    """The teacher that all cells of an experiment share; trained by the first that comes."""

    def make(path: Path) -> None:
        torch.manual_seed(fold_in(0, "weights"))
        scale = strips(plan, "train", 1000, seed=0)
        spread = round(Frames().encode(scale).square().mean().sqrt().item(), 2)
        net = VideoDiT(
            frames=plan.frames, image_size=plan.side, channels=1, classes=plan.classes, patch=plan.patch,
            tubelet=plan.tubelet, dim=plan.dim, depth=plan.depth, heads=plan.heads, data_std=spread,
        )  # fmt: skip
        batch_at, length = batches(plan, seed=0), plan.teacher_steps
        shared: dict[str, Any] = {"null": net.null, "drop": 0.1}
        # What f frames share shows through sqrt(f) times the noise (arXiv 2403.03206, section 5.3.2, of resolutions).
        middle = LogitNormal(math.log(plan.frames) / 2, 1.2)
        train(net, FlowMatching(net, middle, **shared), batch_at, length=length, seed=0,
              name="teacher", lr=plan.teacher_lr, decay=0.999)  # fmt: skip
        train(net, FlowMatching(net, Arcsine(), **shared), batch_at, length=max(1, length // 3), seed=0,
              name="polish", lr=plan.teacher_lr / 2)  # fmt: skip
        weights.save(path, net, family="video-dit", config=net.config)

    path = once(folder.parents[1] / "teacher" / "teacher.safetensors", make)
    stored = weights.read(path)
    net = VideoDiT.from_config(dict(stored.config))
    sides = (net.shape[0], net.shape[-1], net.patch, net.tubelet, net.dim, len(net.blocks))
    if sides != (plan.frames, plan.side, plan.patch, plan.tubelet, plan.dim, plan.depth):
        raise ValueError(f"{path} is the teacher of another plan; remove it, or give another folder")
    weights.load_into(net, stored.tensors, source=str(path))
    return net.eval().requires_grad_(False)


def classifier_at(folder: Path, plan: Plan) -> Classifier:
    """The judge of frames that all cells share: trained on frames of training digits, wherever they are."""

    def make(path: Path) -> None:
        split = plan.digits("train")
        found = clips(split, range(CLASSIFIER_CLIPS), plan.motion, seed=fold_in(0, "classifier"))
        frames = (found.pixels.flatten(0, 1) * 255).round().byte()
        split = Split(frames, found.labels.repeat_interleave(plan.frames), split.classes)
        save_classifier(path, learn(split, steps=plan.classifier_steps, shift=0), {"data": "frames of moving digits"})

    return read_classifier(once(folder.parents[1] / "classifier" / "classifier.safetensors", make))


def measured(method: Method, plan: Plan, *, seed: int, folder: Path) -> dict[str, float]:
    """Train a student, and judge it in one and two steps; a run whose loss is not finite has diverged, and no more.

    Leaves `filmstrip.png` in the cell's folder: real clips, the teacher's, and the student's in one step.
    """
    teacher = teacher_at(folder, plan)
    torch.manual_seed(fold_in(seed, "student"))
    student = teacher.student()
    try:
        for stage, _ in stages(method, teacher, student, head_of(method, teacher)):
            for _ in steps(stage, batches(plan, seed=fold_in(seed, stage.name)), seed=seed):
                pass
            for average in stage.averages.values():
                average.install()
    except NonFinite:
        return {"diverged": 1.0}
    numbers = {"diverged": 0.0}
    ends = ends_at(folder, plan, teacher, seed=seed)
    for count in (1, 2):
        made = drawn(student_row("student", student, steps=count, precision="float32"), plan, seed=seed)
        numbers |= judged(str(count), made, plan, seed=seed, folder=folder, ends=ends)
        if count == 1:
            kinds = (strips(plan, "test", SHOWN, seed=seed), ends[:SHOWN], made[:SHOWN])
            filmstrip(folder / "filmstrip.png", kinds)
    return numbers


def drawn(row: Contestant, plan: Plan, *, seed: int) -> Strips:
    """The clips of a contestant, from the noise of a seed, for the classes in turn."""
    seeds = seeds_of(plan.judged, seed)
    return draw(
        row.sample, seeds=seeds, cond=plan.labels, shape=plan.shape, codec=Frames(), batch_size=plan.batch
    ).images


def ends_at(folder: Path, plan: Plan, teacher: VideoDiT, *, seed: int) -> Strips:
    """The teacher's own clips from the noise of a seed, which all cells of the seed share."""

    def make(path: Path) -> None:
        row = teacher_row(teacher, scale=SCALE, steps=ENDS_STEPS, precision="float32")
        with whole(path) as place:
            save_file({"clips": drawn(row, plan, seed=seed)}, place)

    return load_file(once(folder.parents[1] / f"ends-{seed}" / "clips.safetensors", make))["clips"]


def judged(
    steps: str, made: Strips, plan: Plan, *, seed: int, folder: Path, ends: Strips | None = None
) -> dict[str, float]:
    """Numbers of clips against those of held-out digits, under their steps, e.g. `fd, 1`."""
    classifier, classes = classifier_at(folder, plan), plan.digits("test").classes
    labels, real = plan.labels, strips(plan, "test", plan.judged, seed=seed)
    frames = [
        Gallery(each.flatten(0, 1)[:, None], labels.repeat_interleave(plan.frames), classes) for each in (made, real)
    ]
    space = ClassifierFeatures(classifier, name=SPACE)
    of_frames = scores(
        Samples(frames[0], frames[1]),
        [FrechetDistance(space), ClassAgreement(classifier), HighFrequencyRatio()],
        steps,
    )
    whole_clips = Samples(Gallery(made, labels, classes), Gallery(real, labels, classes), ends)
    of_clips = scores(whole_clips, [EndDistance(), IntraClassDiversity()], steps)
    one, other = made[:, :, None], real[:, :, None]
    numbers = {word: of_frames[name] for name, word in FRAMES.items()}
    numbers |= {word: of_clips[name] for name, word in CLIPS.items() if name in of_clips}
    theirs, ours = (moments(centroids(each).flatten(1)) for each in (other, one))
    numbers["fd motion"] = frechet_distance(theirs, ours)
    numbers["motion error"] = motion_error(one, ways(plan.motion, DIGIT))
    numbers["appearance change"] = appearance_change(one, real=other, labels=labels)
    return {f"{name}, {steps}": value for name, value in numbers.items()}


def filmstrip(path: Path, kinds: tuple[Strips, ...], *, zoom: int = 3) -> None:
    """A picture of clips: a row for each, its frames from left to right, kinds beside each other."""
    columns = []
    for kind in kinds:
        framed = torch.nn.functional.pad(kind, (1, 1, 1, 1), value=0.5)
        columns.append(framed.transpose(1, 2).flatten(2).flatten(0, 1))
        columns.append(torch.ones(len(columns[-1]), 6))
    levels = (torch.cat(columns[:-1], 1) * 255).round().byte()
    large = levels.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    with whole(path) as place:
        Image.fromarray(large.numpy()).save(place, format="PNG")
