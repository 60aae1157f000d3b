"""Judges pictures that are there already, whoever drew them: folders and `.npz` batches against a reference."""

import hashlib
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from hidistill.data.judged import BLOCK, Judged, read, statistics
from hidistill.evaluate import judged, left_out, refuse_groups
from hidistill.files import facts
from hidistill.metrics.cached import Cached
from hidistill.metrics.efficientnet import EfficientNetLite0
from hidistill.metrics.frechet import FrechetDistance, FrechetLimit, Moments, too_few
from hidistill.metrics.inception import InceptionScore, Spatial
from hidistill.metrics.kernel import KernelDistance
from hidistill.metrics.neighbors import Neighbors
from hidistill.metrics.sharpness import HighFrequencyRatio
from hidistill.metrics.spectrum import LEAST, RadialSpectrum
from hidistill.recipes import tables
from hidistill.recipes.opinions import LITE, Protocol, dinov2_protocol, inception_protocol, space_protocol
from hidistill.scores import Evaluation, Row
from hidistill.types import Gallery, Metric, Samples

logger = logging.getLogger(__name__)

PIXELS = 400_000_000
"""Pixel values up to which pictures are held in memory, for the judges that look at pixels."""
CONTENT = "content"
"""Under which a gallery remembers the sum of its pixels, in the order of their names."""
QUICK = 5000
"""Pictures up to which neighbors are looked for again without each group."""
Progress = Callable[[str, int, int], object]


def score(
    samples: tuple[Path, ...],
    *,
    reference: Path,
    out: Path = Path("scores"),
    inception: Path | None = None,
    dinov2: Path | None = None,
    count: int | None = None,
    groups: int = 0,
    device: str = "cpu",
    on_progress: Annotated[Progress | None, tyro.conf.Suppress] = None,
) -> Evaluation:
    """Judge pictures against a reference; the table goes to OUT as evaluation.json, .md and .tex.

    Without weights the features are EfficientNet-Lite0's, and distances are not FID. Features are kept in OUT/features,
    by the content of the pictures: the same command goes on where it stopped.

    Args:
        samples: folders of pictures, or .npz batches with arr_0 (and labels arr_1) as the ADM evaluator takes them.
        reference: the same of real pictures, or an .npz file of their mu and sigma.
        out: where the table goes.
        inception: weights of the original FID network: FID, sFID, Inception Score, kernel distance, precision, recall.
        dinov2: folder of a DINOv2 of transformers.
        count: the first so many of each set; by default all, which must then be equally many.
        groups: intervals by leaving out so many groups of pictures, as `hidistill compare` needs them.
        device: where the networks run.
        on_progress: is told what is looked at, pictures done and pictures in all.
    """
    sets = opened(samples, count)
    n = sets[0].count if count is None else count
    refuse_groups(groups, n)
    known = statistics(reference)
    real = reference_of(reference, known, sets[0])
    judges = judges_of(inception, dinov2, known, real=real is not None, device=device)
    spaces, metrics = [Cached(space, out / "features") for space in judges.spaces], [*judges.metrics]
    words = {space.name: text for space, text in judges.spaces.items()}
    tell = on_progress or (lambda *_: None)
    refuse_classes(sets, real)
    pixels = too_many([(real, real.count), *((each, n) for each in sets)]) if real else None
    if pixels:
        logger.info("%s", pixels)
    elif real:
        metrics += [HighFrequencyRatio(), *([RadialSpectrum()] if min(real.shape[1:]) >= LEAST else [])]
    found = {} if inception is None else moments_of(known, spaces, reference)
    notes = [] if pixels is None else [pixels]
    notes += [note for space in spaces if (note := too_few(n, dimension(space), space.name))]
    notes += [f"{each.path.name}: {labels_in_words(each, n)}" for each in sets]
    if real and any(each.shape[0] != real.shape[0] for each in sets):
        notes.append("gray pictures meet pictures in color; features of color count that as a difference")
    shown = gallery(real, None, spaces, tell) if real else Gallery(torch.zeros(0, 1, 1, 1), torch.zeros(0).long())
    shown.memory.update(found)
    rows = []
    for each in sets:
        drawn = gallery(each, n, spaces, tell)
        row_samples = Samples(drawn, shown)
        numbers = judged(row_samples, metrics, each.path.name)
        left = left_out(row_samples, [metric for metric in metrics if quick(metric, n)], groups, each.path.name)
        rows.append(Row(each.path.name, "samples", n, metrics=numbers, left_out=left))
    names = [metric.name for metric in metrics]
    about = named(reference, real, shown)
    evaluation = Evaluation(n, None, about, names, words, tuple(rows), "as given", tuple(notes))
    tables.replace_by(evaluation, out)
    return evaluation


def opened(samples: Sequence[Path], count: int | None) -> list[Judged]:
    """The sets, of equal counts and one shape.

    Raises:
        ValueError: if there are none, or they differ.
    """
    if not samples:
        raise ValueError("no samples came; give folders of pictures, or .npz batches")
    sets = [read(path) for path in samples]
    names = [each.path.name for each in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"samples have the names {', '.join(names)}; rows need different ones: rename the folders")
    for each in sets:
        if count is not None and not 2 <= count <= each.count:
            raise ValueError(f"count={count}: {each.path} has {each.count:,} pictures; choose 2 to {each.count:,}")
        if count is None and each.count != sets[0].count:
            raise ValueError(
                f"{each.path} has {each.count:,} pictures, {sets[0].path} {sets[0].count:,}; distances depend on the "
                "count: say --count N for the first N of each"
            )
        refuse_shape(each, sets[0])
    return sets


def refuse_shape(one: Judged, other: Judged) -> None:
    """Refuse pictures of another resolution; gray and color may meet."""
    if one.shape[1:] != other.shape[1:]:
        sides = [" x ".join(map(str, each.shape[:0:-1])) for each in (one, other)]
        raise ValueError(
            f"{one.path} has pictures of {sides[0]}, {other.path} of {sides[1]}; features depend on the resolution: "
            "bring both to one, the same way for everybody you compare with"
        )


def reference_of(path: Path, known: Mapping[str, tuple[Tensor, Tensor]], samples: Judged) -> Judged | None:
    """The reference's pictures; None where it has statistics alone.

    Raises:
        ValueError: if it has neither, or pictures of another resolution.
    """
    try:
        found = read(path)
    except ValueError:
        if not known:
            raise
        if "pooled" not in known:
            raise ValueError(f"{path} has mu_s and sigma_s alone; a reference has mu and sigma, or pictures") from None
        return None
    refuse_shape(found, samples)
    return found


def judges_of(
    inception: Path | None,
    dinov2: Path | None,
    known: Mapping[str, tuple[Tensor, Tensor]],
    *,
    real: bool,
    device: str,
) -> Protocol:
    """Judges and their spaces, Inception's two first: those that a reference of pictures or of statistics allows.

    Raises:
        ValueError: if the reference has statistics alone, of which nobody knows in which space they are.
    """
    if inception is None and not real:
        raise ValueError(
            "the reference has mu and sigma alone, which belong to one network; say --inception WEIGHTS, of the "
            "network that they were made with"
        )
    found = [] if inception is None else [inception_protocol(inception, device=device)]
    if real and dinov2 is not None:
        found.append(dinov2_protocol(dinov2, device=device))
    if real and inception is None:
        found.append(space_protocol(EfficientNetLite0(), LITE))

    def possible(metric: Metric) -> bool:
        if isinstance(metric, FrechetDistance) and isinstance(metric.space, Spatial):
            return "spatial" in known if known else real
        return real or isinstance(metric, FrechetDistance | FrechetLimit | InceptionScore)

    metrics = [metric for protocol in found for metric in protocol.metrics if possible(metric)]
    return Protocol(metrics, {space: words for protocol in found for space, words in protocol.spaces.items()})


def moments_of(
    known: Mapping[str, tuple[Tensor, Tensor]], spaces: Sequence[Cached], path: Path
) -> dict[Hashable, Moments]:
    """The reference's statistics by the space that they are of, as a gallery remembers them.

    Raises:
        ValueError: if they are of another space than the network's, which would else come out after hours.
    """
    found: dict[Hashable, Moments] = {}
    for kind, space in zip(("pooled", "spatial"), spaces, strict=False):
        if kind in known:
            there, wanted = len(known[kind][0]), dimension(space)
            if there != wanted:
                raise ValueError(
                    f"{path} has statistics of {there} features, {space.name} has {wanted}; both must come from one "
                    "network: take the reference that was made with the same"
                )
            found["moments", space.space] = Moments(*known[kind])
    return found


def quick(metric: Metric, n: int) -> bool:
    """Whether a judge is asked again for every left-out group."""
    dear = isinstance(metric, KernelDistance | FrechetLimit) or (isinstance(metric, Neighbors) and n > QUICK)
    return not dear


def dimension(space: Cached) -> int:
    """Number of features."""
    return space.space(torch.zeros(1, 3, 32, 32)).shape[1]


def too_many(sets: Sequence[tuple[Judged, int]]) -> str | None:
    """Why no pixels are judged: so many pictures of a set have more of them than are held; None if all are held."""
    for each, count in sets:
        values = count * math.prod(each.shape)
        if values > PIXELS:
            return (
                f"no frequencies of pixels: {count:,} pictures of {each.path.name} have {values:,} values, of which "
                f"{PIXELS:,} are held"
            )
    return None


def gallery(pictures: Judged, count: int | None, spaces: Sequence[Cached], tell: Progress) -> Gallery:
    """The pictures with their features in every space, block by block; without the pixels where they are too many."""
    n = pictures.count if count is None else count
    whole, parts, features = n * math.prod(pictures.shape) <= PIXELS, [], {space: [] for space in spaces}
    content = hashlib.sha256(repr(pictures.shape).encode())
    for number, block in enumerate(islice(pictures.blocks(), -(-n // BLOCK))):
        content.update(block.contiguous().numpy().tobytes())
        images = block[: n - number * BLOCK].float() / 255
        for space in spaces:
            features[space].append(space(images))
        if whole:
            parts.append(images)
        tell(pictures.path.name, number * BLOCK + len(images), n)
    images = torch.cat(parts) if parts else torch.zeros(n, pictures.shape[0], 0, 0)
    labels = torch.zeros(n, dtype=torch.long) if pictures.labels is None else pictures.labels[:n]
    found = Gallery(images, labels)
    for space, values in features.items():
        found.memory["features", space.space] = torch.cat(values)
    found.memory[CONTENT] = content.hexdigest()
    return found


def refuse_classes(sets: Sequence[Judged], real: Judged | None) -> None:
    """Refuse pictures of fewer classes, or of more, than the reference has, where both say of which they are.

    Raises:
        ValueError: if the numbers of classes differ.
    """
    if real is None or real.labels is None:
        return
    wanted = len(real.labels.unique())
    for each in sets:
        if each.labels is not None and (found := len(each.labels.unique())) != wanted:
            raise ValueError(
                f"{each.path} has pictures of {found} classes, and the reference {real.path} of {wanted}; a distance "
                "between different classes says nothing: give both the same classes, or leave the labels out"
            )


def labels_in_words(pictures: Judged, n: int) -> str:
    """Whether classes are equally many, as far as anybody knows.

    Raises:
        ValueError: if a class of the set has no picture among the first n.
    """
    if pictures.labels is None:
        return "nobody says of which classes"
    counts = torch.bincount(pictures.labels[:n], minlength=int(pictures.labels.max()) + 1)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{pictures.path}: {len(empty)} of {len(counts)} classes have no picture, {empty[:5]} first; a distance "
            f"over all classes needs all: draw them, take more than the first {n:,}, or write the batch without labels"
        )
    spread = f"{int(counts.min())} to {int(counts.max())}"
    return f"{len(counts)} classes, " + (
        "equally many of each" if counts.min() == counts.max() else f"{spread} of each"
    )


def named(path: Path, real: Judged | None, shown: Gallery) -> dict[str, object]:
    """What tells one reference from another: a file's own sum, for it may hold statistics, and a folder's pixels."""
    digest = str(facts(path)["sha256"] if path.is_file() else shown.memory[CONTENT])[:12]
    count, shape = (real.count, list(real.shape)) if real else (None, None)
    return {"n": count, "classes": 0, "shape": shape, "digest": digest, "path": path.name}
