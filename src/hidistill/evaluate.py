"""Evaluation: every contestant draws from the same noise and classes, and the same metrics judge them all.

Image i of an evaluation has class `i % classes` and noise from `fold_in(seed, "evaluate", i)`, whoever draws it and in
whatever batches. Images are quantized to 8 bits, as a file would, before they are judged.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from hidistill.path import cond_on, rows_of
from hidistill.scores import Evaluation, Row
from hidistill.seeds import fold_in, normal, refuse_seed
from hidistill.types import Codec, Cond, Gallery, Images, Labels, Metric, Points, Samples, Split

BATCH = 64
"""Images drawn at once: a guided pass is then of 128. On CPUs larger passes are slower by the image, for their
activations leave the caches (benchmarks/batches.py)."""
Sample = Callable[[Points, Cond], Points]
"""Turns noise and conditions into samples; row i of its answer depends on row i of its input alone."""


@dataclass(frozen=True)
class Contestant:
    """Something that draws images.

    Args:
        name: name of its row.
        sample: turns noise and class labels into samples.
        nfe: forward passes of a network per image; a guided step counts two.
        steps: steps from noise to data.
        kind: "teacher" or "student".
        scale: guidance scale while sampling; None if there is no guidance.
    """

    name: str
    sample: Sample
    nfe: int
    steps: int
    kind: str = "student"
    scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown kind and counts below one."""
        if self.kind not in ("teacher", "student"):
            raise ValueError(f"contestant {self.name!r}: kind {self.kind!r} is unknown; use 'teacher' or 'student'")
        if min(self.nfe, self.steps) < 1:
            raise ValueError(f"contestant {self.name!r}: nfe {self.nfe} and steps {self.steps} must be at least 1")


@dataclass(frozen=True)
class Given:
    """A row for real images that are there already: real training images, say, are the floor of every metric."""

    name: str
    gallery: Gallery


class Drawn(NamedTuple):
    """Images, and what one of them took."""

    images: Images
    seconds_per_image: float


def seeds_of(n: int, seed: int) -> list[int]:
    """The noise seeds of the n images of an evaluation."""
    return [fold_in(seed, "evaluate", index) for index in range(n)]


def balanced_labels(n: int, classes: int) -> Labels:
    """`i % classes` for image i; all 0 where there are no classes."""
    return torch.arange(n) % max(1, classes)


def balanced_subset(split: Split, n: int) -> Split:
    """At most n images, the first of each class: a floor counts as many images as the contestants draw."""
    counts = torch.bincount(balanced_labels(n, len(split.classes)), minlength=len(split.classes)).tolist()
    picked = [(split.labels == label).nonzero().flatten()[:count] for label, count in enumerate(counts)]
    kept = torch.cat(picked).sort().values
    return replace(split, images=split.images[kept], labels=split.labels[kept])


@torch.no_grad()
def draw(
    sample: Sample,
    *,
    seeds: Sequence[int],
    cond: Cond,
    shape: Sequence[int],
    codec: Codec,
    batch_size: int = BATCH,
    device: str = "cpu",
    on_batch: Callable[[int], object] | None = None,
) -> Drawn:
    """Draw an image per seed, in batches, quantized to 8 bits. Only sampling and decoding are timed.

    Args:
        sample: turns noise and conditions into samples.
        seeds: one per image.
        cond: as many conditions.
        shape: of one sample, without the batch.
        codec: carries samples to pixels.
        batch_size: images per batch; does not change an image.
        device: where sampling happens; the images come back to the CPU.
        on_batch: is told the number of images drawn so far after each batch.

    Raises:
        ValueError: if there is nothing to draw, or an image is not finite.
    """
    if not seeds or batch_size < 1:
        raise ValueError(f"cannot draw {len(seeds)} images in batches of {batch_size}; both must be at least 1")
    images, seconds = [], 0.0
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        noise, part = normal(seeds[rows], shape).to(device), cond_on(rows_of(cond, rows), device)
        begin = time.perf_counter()
        pixels = codec.decode(sample(noise, part)).float().cpu()
        seconds += time.perf_counter() - begin
        broken = (~pixels.flatten(1).isfinite().all(1)).nonzero().flatten() + start
        if len(broken):
            raise ValueError(
                f"images {broken[:5].tolist()} are not finite; what draws them has diverged: use other weights"
            )
        images.append((pixels * 255).round() / 255)
        if on_batch:
            on_batch(start + len(pixels))
    return Drawn(torch.cat(images), seconds / len(seeds))


def evaluate(
    contestants: Sequence[Contestant | Given],
    *,
    n: int,
    seed: int,
    real: Gallery,
    codec: Codec,
    shape: Sequence[int],
    metrics: Sequence[Metric],
    cond: Cond | None = None,
    reference: str | None = None,
    features: Mapping[str, str] | None = None,
    labels: Labels | None = None,
    notes: Sequence[str] = (),
    groups: int = 0,
    grouped: Sequence[Metric] | None = None,
    latency: bool = False,
    batch_size: int = BATCH,
    device: str = "cpu",
    done: Evaluation | None = None,
    on_progress: Callable[[str, int, int], object] | None = None,
    on_row: Callable[[Evaluation], object] | None = None,
) -> Evaluation:
    """Let every contestant draw, and every metric judge.

    Args:
        contestants: what gives the rows, in their order.
        n: images per contestant.
        seed: the evaluation's own, from which noise comes.
        real: held-out real images; hand in the same object again to reuse what was computed from them.
        codec: carries samples to pixels.
        shape: of one sample, without the batch.
        metrics: the judges.
        cond: conditions of the n images; None is labels in turn.
        reference: name of the contestant, the teacher in many steps, whose images are everybody's ends.
        features: what each feature space is, in words, for the record.
        labels: classes that are asked for, one per image; None is in turn.
        notes: what a reader should know, for the record.
        groups: if 2 or more, every number is taken again without each of so many runs of images, for intervals.
        grouped: the judges that this is done with; None is all of them.
        latency: whether the time of a single image is measured too.
        batch_size: images per batch; does not change an image.
        device: where sampling happens.
        done: an evaluation that was interrupted; its rows are kept, and only the missing ones are made.
        on_progress: is told contestant, images drawn and images in all after each batch.
        on_row: gets the evaluation so far after each new row, to save it.

    Raises:
        ValueError: if names repeat, there are other than n conditions, the reference does not draw, or `done` is
            another evaluation than this one.
    """
    kind = "in turn" if labels is None else "uniform"
    judges = [metric.name for metric in metrics]
    blank = Evaluation(n, seed, identity(real), judges, dict(features or {}), labels=kind, notes=tuple(notes))
    refuse_groups(groups, n)
    refuse_seed(seed)
    rows = {row.name: row for row in done.rows} if done else {}
    check(contestants, reference, blank, done)
    seeds = seeds_of(n, seed)
    labels = balanced_labels(n, len(real.classes)) if labels is None else labels
    asked = labels if cond is None else cond
    given = len(asked) if isinstance(asked, Tensor) else len(next(iter(asked.values())))
    if given != n:
        raise ValueError(f"{given} conditions came for {n} images; give one per image")

    def drawn_by(one: Contestant) -> Drawn:
        def told(count: int) -> None:
            if on_progress:
                on_progress(one.name, count, n)

        settings = {"codec": codec, "batch_size": batch_size, "device": device}
        return draw(one.sample, seeds=seeds, cond=asked, shape=shape, **settings, on_batch=told)

    def so_far() -> Evaluation:
        names = [one.name for one in contestants] + list(rows)
        return replace(blank, rows=tuple(rows[name] for name in dict.fromkeys(names) if name in rows))

    first = cond_on(rows_of(asked, slice(0, 1)), device)
    missing = [one for one in contestants if one.name not in rows]
    wanted = any(isinstance(one, Contestant) for one in missing)
    ends = next(
        (drawn_by(c) for c in contestants if isinstance(c, Contestant) and c.name == reference and wanted), None
    )
    for one in missing:
        if isinstance(one, Given):
            row, samples = Row(one.name, "real", len(one.gallery.images)), Samples(one.gallery, real)
        else:
            images, seconds = ends if ends and one.name == reference else drawn_by(one)
            row = Row(one.name, one.kind, n, one.steps, one.nfe, one.scale, seconds)
            if latency:
                row = replace(row, latency_seconds=latency_of(one.sample, first, shape, codec))
            samples = Samples(Gallery(images, labels, real.classes), real, ends.images if ends else None)
        numbers = judged(samples, metrics, one.name)
        values = left_out(samples, metrics if grouped is None else grouped, groups, one.name)
        rows[one.name] = replace(row, metrics=numbers, left_out=values)
        if on_row:
            on_row(so_far())
    return so_far()


def left_out(samples: Samples, metrics: Sequence[Metric], groups: int, name: str) -> dict[str, list[float]]:
    """Every number without each of some groups of images, over which each class is dealt out evenly.

    Groups of consecutive images would each be of one class where a folder lists its classes one after the other, and
    far more apart than draws of the same size are.
    """
    found: dict[str, list[float]] = {}
    dealt = groups_of(samples.generated.labels, groups)
    for group in range(groups if groups > 1 else 0):
        index = (dealt != group).nonzero().flatten()
        ends = None if samples.ends is None else samples.ends[index]
        part = Samples(samples.generated.rows(index), samples.real, ends, index)
        for key, value in judged(part, metrics, name).items():
            found.setdefault(key, []).append(value)
    return found


def groups_of(labels: Labels, groups: int) -> Tensor:
    """A group for each image: the images of a class are shuffled, the same way each time, and dealt out in turn."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order].argsort(stable=True)]
    dealt = torch.empty_like(order)
    dealt[order] = torch.arange(len(order)) % max(1, groups)
    return dealt


@torch.no_grad()
def latency_of(sample: Sample, cond: Cond, shape: Sequence[int], codec: Codec, repeats: int = 5) -> float:
    """Median seconds from the noise of one image to its pixels, after one run that does not count."""
    device = (cond if isinstance(cond, Tensor) else next(iter(cond.values()))).device
    noise = normal(seeds_of(1, 0), shape).to(device)
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        codec.decode(sample(noise, cond)).float().cpu()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:])


def refuse_groups(groups: int, n: int) -> None:
    """Refuse groups that are too few for a spread or too many for the images."""
    if groups and not 2 <= groups <= n // 2:
        raise ValueError(f"{groups} groups of {n} images: intervals need 2 groups of 2 images at least; use 20")


def uniform_labels(n: int, classes: int, seed: int) -> Labels:
    """Classes drawn independently and uniformly, as the papers' FID-50K protocols do that do not balance them."""
    generator = torch.Generator().manual_seed(fold_in(seed, "labels"))
    return torch.randint(0, max(1, classes), (n,), generator=generator)


def identity(real: Gallery) -> dict[str, object]:
    """What tells one set of real images from another."""
    pixels = (real.images * 255).round().byte().numpy().tobytes()
    shape, digest = list(real.images.shape[1:]), hashlib.sha256(pixels).hexdigest()[:12]
    return {"n": len(real.images), "classes": len(real.classes), "shape": shape, "digest": digest}


def judged(samples: Samples, metrics: Sequence[Metric], name: str) -> dict[str, float]:
    """All numbers of all metrics."""
    numbers: dict[str, float] = {}
    for metric in metrics:
        for key, value in metric(samples).items():
            if key in numbers or not math.isfinite(value):
                raise ValueError(
                    f"row {name!r}: {key!r} = {value} came from metric {metric.name!r}; a number must be finite and "
                    "come once: look at the images, or rename the metric"
                )
            numbers[key] = value
    return numbers


def check(
    contestants: Sequence[Contestant | Given], reference: str | None, blank: Evaluation, done: Evaluation | None
) -> None:
    """Refuse what would mix up rows."""
    for names, what in (([one.name for one in contestants], "contestants"), (list(blank.judges), "metrics")):
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{what} share the names {repeated}; names must differ: give each its own")
    drawing = {one.name: one for one in contestants if isinstance(one, Contestant)}
    if reference is not None and reference not in drawing:
        raise ValueError(f"the reference {reference!r} does not draw here; those that do are {list(drawing)}")
    advice = "go on with the same settings, or delete the old file and evaluate anew"
    for what in ("n", "seed", "real", "judges", "labels") if done else ():
        old, new = getattr(done, what), getattr(blank, what)
        if old != new:
            raise ValueError(f"the evaluation to go on with has {what} = {old}, this one {new}; {advice}")
    for row in done.rows if done else ():
        one = drawing.get(row.name)
        if one and (row.kind, row.steps, row.nfe, row.scale) != (one.kind, one.steps, one.nfe, one.scale):
            raise ValueError(f"the row {row.name!r} was made as {row}, which is not {one}; {advice}")
