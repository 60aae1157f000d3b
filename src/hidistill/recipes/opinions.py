"""Further judges: the protocols of papers where their weights are given, and opinions unrelated to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hidistill.metrics.dinov2 import DINOv2
from hidistill.metrics.frechet import FrechetDistance, FrechetLimit
from hidistill.metrics.inception import InceptionScore, Pooled, Spaces, Spatial
from hidistill.metrics.kernel import KernelDistance
from hidistill.metrics.neighbors import Copying, Neighbors
from hidistill.metrics.spectrum import RadialSpectrum
from hidistill.recipes.judging import Jury
from hidistill.types import FeatureSpace, Gallery, Metric

REFERENCES, NEAREST = 10_000, 3
"""Real images and neighbors of precision and recall as papers have them."""
ORIGINAL = "the original FID network"
NOT_ORIGINAL = "an Inception graph whose sum is not known: not FID"
TOKEN = "the class token of a DINOv2, named by width and weights' sum"
LITE = "1280 features of EfficientNet-Lite0 at 64 pixels: not FID"
"""What feature spaces are, in words."""


@dataclass(frozen=True)
class Protocol:
    """Judges of papers, and their spaces in words."""

    metrics: Sequence[Metric]
    spaces: Mapping[FeatureSpace, str]


def inception_protocol(path: Path, *, device: str = "cpu") -> Protocol:
    """FID, its limit, sFID, Inception Score, kernel distance, precision, recall; FID is the original's alone."""
    spaces = Spaces.of(path, device=device)
    pooled, spatial = Pooled(spaces), Spatial(spaces)
    fid, sfid = ("fid", "sfid") if spaces.original else ("fd", "fd")
    metrics: list[Metric] = [
        FrechetDistance(pooled, fid),
        FrechetDistance(spatial, sfid),
        FrechetLimit(pooled, called=fid),
        InceptionScore(pooled),
        KernelDistance(pooled),
        Neighbors(pooled, NEAREST, REFERENCES),
    ]
    words = ORIGINAL if spaces.original else NOT_ORIGINAL
    return Protocol(metrics, {pooled: words, spatial: f"{words}, 7 channels of its middle with their places"})


def dinov2_protocol(folder: Path, *, device: str = "cpu") -> Protocol:
    """The judges of one space, in DINOv2's features."""
    return space_protocol(DINOv2(folder, device=device), TOKEN)


def space_protocol(space: FeatureSpace, words: str) -> Protocol:
    """Fréchet distance and its limit, kernel distance, precision and recall in another space than the original's."""
    metrics = [
        FrechetDistance(space),
        FrechetLimit(space),
        KernelDistance(space),
        Neighbors(space, NEAREST, REFERENCES),
    ]
    return Protocol(metrics, {space: words})


def with_opinions(judges: Jury, *, full: bool, inception: Path | None, dinov2: Path | None, device: str) -> Jury:
    """The jury with further judges.

    Args:
        judges: the usual jury.
        full: kernel distance and the limit of the Fréchet distance in each space, copies of training images in the
            first one, and the power spectrum.
        inception: weights of the network behind FID.
        dinov2: folder of a DINOv2.
        device: where these networks run.
    """
    extra, words = list(judges.extra), {}
    if full:
        for space in judges.spaces:
            extra += [KernelDistance(space), FrechetLimit(space)]
        extra += [Copying(next(iter(judges.spaces)), Gallery.of(judges.train)), RadialSpectrum()]
    for path, protocol in ((inception, inception_protocol), (dinov2, dinov2_protocol)):
        if path is not None:
            found = protocol(path, device=device)
            extra += found.metrics
            words |= {space.name: text for space, text in found.spaces.items()}
    return replace(judges, extra=extra, words=words)
