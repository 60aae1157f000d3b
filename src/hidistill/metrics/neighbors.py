"""What nearest neighbors in a feature space tell: fidelity, variety, and copies of training images.

Distances are Euclidean and computed in float64, a block of rows at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hidistill.types import Features, FeatureSpace, Gallery, Samples

BLOCK = 1024
Rows = Float[Tensor, "m d"]
"""Features of other images: as many as there are."""


def distances(a: Rows, b: Features) -> Iterator[Float64[Tensor, "block n"]]:
    """Distances from each row of `a` to all rows of `b`, for blocks of rows of `a` in their order."""
    center = b.double().mean(0)
    x, y = a.double() - center, b.double() - center
    for block in x.split(BLOCK):
        yield torch.cdist(block, y)


def radii(features: Features, k: int) -> Float64[Tensor, " n"]:
    """Distance from each row to its k-th nearest other row.

    Raises:
        ValueError: if there are not more than k rows.
    """
    if len(features) <= k:
        raise ValueError(f"{len(features)} images came; {k} neighbors of each need at least {k + 1}: draw more images")
    found, start = [], 0
    for block in distances(features, features):
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        found.append(block.kthvalue(k, dim=1).values)
        start += len(block)
    return torch.cat(found)


def nearest(a: Rows, b: Features) -> Float64[Tensor, " m"]:
    """Distance from each row of `a` to the nearest row of `b`."""
    return torch.cat([block.amin(1) for block in distances(a, b)])


@dataclass(frozen=True)
class Neighbors:
    """Precision, recall, density and coverage by k-nearest-neighbor balls.

    A ball reaches from an image to its k-th nearest neighbor among its own kind. Precision: share of generated images
    within a ball of a real one; recall: share of real images within a ball of a generated one (arXiv 1904.06991,
    eq. 1-2). Density: mean number of balls of real images around a generated one, over k; coverage: share of real
    images with a generated one within their ball (arXiv 2002.09797, eq. 3-4).

    Args:
        space: where images are compared.
        k: the neighbor that a ball reaches to.
    """

    space: FeatureSpace
    k: int = 5

    def __post_init__(self) -> None:
        """Refuse less than one neighbor."""
        if self.k < 1:
            raise ValueError(f"k={self.k}: neighbors are counted from 1; use 3 to 10")

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"neighbors-{self.k}/{self.space.name}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The numbers `precision/SPACE`, `recall/SPACE`, `density/SPACE` and `coverage/SPACE`."""
        real, generated = samples.real.features(self.space), samples.generated.features(self.space)
        reach_real = samples.real.once(("radii", self.k, self.space), lambda: radii(real, self.k))
        reach_generated = radii(generated, self.k)
        around = torch.zeros(len(generated), dtype=torch.int64)
        recalled, covered, start = 0, 0, 0
        for block in distances(real, generated):
            inside = block <= reach_real[start : start + len(block), None]
            around += inside.sum(0)
            covered += int(inside.any(1).sum())
            recalled += int((block <= reach_generated).any(1).sum())
            start += len(block)
        numbers = {
            "precision": (around > 0).double().mean().item(),
            "recall": recalled / len(real),
            "density": around.double().mean().item() / self.k,
            "coverage": covered / len(real),
        }
        return {f"{key}/{self.space.name}": value for key, value in numbers.items()}


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
