"""What nearest neighbors in a feature space tell: fidelity, variety, and copies of training images.

Distances are Euclidean and computed in float64, a tile of rows and columns at a time: 50,000 images against 50,000 need
the features and two hundred megabytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hidistill.types import Features, FeatureSpace, Gallery, Samples

BLOCK = 2048
SAME = 1e-12
"""Differences of squared distances below this share of both squared lengths are rounding: equal features are at
distance 0, and at equal distances from a third."""
Rows = Float[Tensor, "m d"]
"""Features of other images: as many as there are."""
Center = Float64[Tensor, " d"]


class Tile(NamedTuple):
    """Some rows, some columns, the squared distances between them, and up to which differences these are rounding."""

    rows: slice
    columns: slice
    squared: Tensor
    rounding: Tensor


def blocks(n: int) -> list[slice]:
    """Consecutive rows."""
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def center_of(features: Features) -> Center:
    """The mean, from which lengths are measured: products of features far from 0 would lose their differences."""
    start = torch.zeros(features.shape[1], dtype=torch.float64)
    return sum((features[part].double().sum(0) for part in blocks(len(features))), start) / len(features)


def tiles(a: Rows, b: Features, *, center: Center, upper: bool = False) -> Iterator[Tile]:
    """Squared distances from rows of `a` to rows of `b`; `upper` leaves out tiles below the diagonal."""
    for rows in blocks(len(a)):
        x = a[rows].double() - center
        for columns in blocks(len(b)):
            if upper and columns.start < rows.start:
                continue
            y = b[columns].double() - center
            lengths = x.square().sum(1)[:, None] + y.square().sum(1)
            squared = torch.addmm(lengths, x, y.T, alpha=-2)
            rounding = lengths.mul_(SAME)
            yield Tile(rows, columns, squared.masked_fill_(squared < rounding, 0.0), rounding)


def squared_radii(features: Features, k: int, *, center: Center) -> Float64[Tensor, " n"]:
    """Squared distance from each row to its k-th nearest other row; each pair of tiles is computed once.

    Raises:
        ValueError: if there are not more than k rows.
    """
    n = len(features)
    if n <= k:
        raise ValueError(f"{n} images came; {k} neighbors of each need at least {k + 1}: draw more images")
    best = torch.full((n, k), torch.inf, dtype=torch.float64)

    def take(rows: slice, squared: Tensor) -> None:
        found = squared.topk(min(k, squared.shape[1]), dim=1, largest=False).values
        best[rows] = torch.cat([best[rows], found], 1).topk(k, dim=1, largest=False).values

    for rows, columns, squared, _ in tiles(features, features, center=center, upper=True):
        if rows == columns:
            squared.fill_diagonal_(torch.inf)
        else:
            take(columns, squared.T)
        take(rows, squared)
    return best.amax(1)


def radii(features: Features, k: int) -> Float64[Tensor, " n"]:
    """Distance from each row to its k-th nearest other row; see `squared_radii`."""
    return squared_radii(features, k, center=center_of(features)).sqrt()


def nearest(a: Rows, b: Features) -> Float64[Tensor, " m"]:
    """Distance from each row of `a` to the nearest row of `b`."""
    least = torch.full((len(a),), torch.inf, dtype=torch.float64)
    for rows, _, squared, _ in tiles(a, b, center=center_of(b)):
        least[rows] = torch.minimum(least[rows], squared.amin(1))
    return least.sqrt()


@dataclass(frozen=True)
class Neighbors:
    """Precision, recall, density and coverage by k-nearest-neighbor balls.

    A ball reaches from an image to its k-th nearest neighbor among its own kind. Precision: share of generated images
    within a ball of a real one; recall: share of real images within a ball of a generated one (arXiv 1904.06991,
    eq. 1-2). Density: mean number of balls of real images around a generated one, over k; coverage: share of real
    images with a generated one within their ball (arXiv 2002.09797, eq. 3-4). A ball holds its border: a generated
    image that is a real one lies in the balls that reach to that one. So all distances have one center.

    Args:
        space: where images are compared.
        k: the neighbor that a ball reaches to; published numbers of precision and recall have 3.
        references: how many real images are looked at, evenly chosen of all; None is all of them.
    """

    space: FeatureSpace
    k: int = 5
    references: int | None = None

    def __post_init__(self) -> None:
        """Refuse less than one neighbor."""
        if self.references is not None and self.references <= self.k:
            raise ValueError(
                f"references={self.references}: {self.k} neighbors need more; published numbers have 10,000"
            )
        if self.k < 1:
            raise ValueError(f"k={self.k}: neighbors are counted from 1; use 3 to 10")

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        of = f" of {self.references:,}" if self.references else ""
        return f"neighbors-{self.k}{of}/{self.space.name}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The numbers `precision/SPACE`, `recall/SPACE`, `density/SPACE` and `coverage/SPACE`."""
        real, generated = self.reference(samples.real), samples.generated.features(self.space)
        key = ("radii", self.k, self.references, self.space)
        center = center_of(real)
        reach_real = samples.real.once(key, lambda: squared_radii(real, self.k, center=center))
        reach_generated = squared_radii(generated, self.k, center=center)
        around = torch.zeros(len(generated), dtype=torch.int64)
        recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
        for rows, columns, squared, rounding in tiles(real, generated, center=center):
            squared -= rounding
            inside = squared <= reach_real[rows, None]
            around[columns] += inside.sum(0)
            covered[rows] |= inside.any(1)
            recalled[rows] |= (squared <= reach_generated[columns]).any(1)
        numbers = {
            "precision": (around > 0).double().mean().item(),
            "recall": recalled.double().mean().item(),
            "density": around.double().mean().item() / self.k,
            "coverage": covered.double().mean().item(),
        }
        return {f"{key}/{self.space.name}": value for key, value in numbers.items()}

    def reference(self, real: Gallery) -> Features:
        """Features of the real images that are looked at."""
        features = real.features(self.space)
        if self.references is None or self.references >= len(features):
            return features
        return features[torch.linspace(0, len(features) - 1, self.references).round().long()]


@dataclass(frozen=True)
class Copying:
    """Mean distance of a generated image to the nearest training image, over that of a held-out real image.

    About 1 is what fresh images have; far below 1, images are copies of training images (or blurred: blur is close to
    everything).

    Args:
        space: where images are compared.
        training: what the teacher was trained on.
    """

    space: FeatureSpace
    training: Gallery

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"copying/{self.space.name}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The number `nearest/SPACE`."""
        training = self.training.features(self.space)
        key = ("nearest", self.training, self.space)
        usual = samples.real.once(key, lambda: nearest(samples.real.features(self.space), training).mean().item())
        if usual == 0:
            raise ValueError("all held-out images are among the training images; they must differ: use another split")
        return {
            f"nearest/{self.space.name}": nearest(samples.generated.features(self.space), training).mean().item()
            / usual
        }
