"""The feature spaces of FID and sFID, and the Inception Score: the original network, or none."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hidistill.metrics.inception.network import Inception, Rows
from hidistill.metrics.inception.reading import PUBLISHED, Published, Read, read
from hidistill.types import Features, Images, Labels, Samples

__all__ = ["PUBLISHED", "Inception", "InceptionScore", "Pooled", "Published", "Read", "Spaces", "Spatial", "read"]


class Spaces:
    """The two spaces of one network, which share its pass over the same images.

    Args:
        found: the network and its name.
        batch_size: images per pass; no result depends on it beyond rounding.
        device: where it runs.
    """

    def __init__(self, found: Read, batch_size: int = 50, device: str = "cpu") -> None:
        self.network, self.name, self.original = found.network.to(device), found.name, found.original
        self.batch_size, self.device = batch_size, device
        self.last: tuple[weakref.ref[Tensor], Tensor, Tensor] | None = None

    @classmethod
    def of(cls, path: Path, *, device: str = "cpu") -> "Spaces":
        """From a weights file; see `read`."""
        return cls(read(path), device=device)

    @torch.no_grad()
    def passed(self, images: Images) -> tuple[Rows, Rows]:
        """Pooled and spatial features; gray images are repeated to three channels.

        Raises:
            ValueError: if the images are neither gray nor color.
        """
        if self.last is not None and self.last[0]() is images:
            return self.last[1:]
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images of shape {tuple(images.shape)}: give (b, 1, h, w) or (b, 3, h, w)")
        parts = [self.network(chunk.to(self.device).expand(-1, 3, -1, -1)) for chunk in images.split(self.batch_size)]
        pooled, spatial = (torch.cat([part[i].float().cpu() for part in parts]) for i in (0, 1))
        self.last = (weakref.ref(images), pooled, spatial)
        return pooled, spatial


@dataclass(frozen=True, eq=False)
class Pooled:
    """2,048 pooled features: the space of FID, if the weights are the original ones."""

    spaces: Spaces

    @property
    def name(self) -> str:
        """See `FeatureSpace.name`."""
        return self.spaces.name

    def __call__(self, images: Images) -> Features:
        """float32 (b, 2048)."""
        return self.spaces.passed(images)[0]


@dataclass(frozen=True, eq=False)
class Spatial:
    """2,023 features with their places: the space of sFID (arXiv 2103.03841)."""

    spaces: Spaces

    @property
    def name(self) -> str:
        """See `FeatureSpace.name`."""
        return f"{self.spaces.name}-spatial"

    def __call__(self, images: Images) -> Features:
        """float32 (b, 2023)."""
        return self.spaces.passed(images)[1]


@dataclass(frozen=True, eq=False)
class InceptionScore:
    """`exp E[KL(p(y|x) | p(y))]` over splits, p from the logits without their bias (arXiv 1606.03498, section 4).

    Splits are runs of images in the order that they came in, as in the original and the ADM evaluator: labels must be
    mixed, not sorted.

    Args:
        space: the pooled features.
        splits: parts whose scores are averaged; their sample standard deviation is given too.
    """

    space: Pooled
    splits: int = 10

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"inception score, {self.splits} splits/{self.space.name}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The numbers `is/SPACE` and `is_std/SPACE`.

        Raises:
            ValueError: if there are fewer images than splits.
        """
        features = samples.generated.features(self.space)
        network = self.space.spaces.network
        if self.splits < 2 or len(features) < self.splits:
            raise ValueError(f"{len(features)} images in {self.splits} splits: each split needs one; draw more images")
        weight = network.head.weight.double().cpu()
        parts = [features[rows].double() for rows in in_splits(samples.generated.labels, self.splits)]
        scores = torch.stack([score(part @ weight.T) for part in parts])
        return {f"is/{self.space.name}": scores.mean().item(), f"is_std/{self.space.name}": scores.std().item()}


def in_splits(labels: Labels, splits: int) -> list[torch.Tensor]:
    """Rows of each split: runs of consecutive images, or each class dealt out where its images lie together.

    A run of a folder that lists its classes one after the other has few of them, and its score would be about 1.
    """
    runs = list(torch.arange(len(labels)).tensor_split(splits))
    classes = len(labels.unique())
    if all(2 * len(labels[rows].unique()) >= min(classes, len(rows)) for rows in runs):
        return runs
    order = labels.argsort(stable=True)
    return [order[i::splits] for i in range(splits)]


def score(logits: Features) -> torch.Tensor:
    """`exp` of the mean divergence of each row's classes from those of all rows."""
    log_p = logits.log_softmax(1)
    log_mean = log_p.logsumexp(0) - torch.log(torch.tensor(float(len(log_p)), dtype=log_p.dtype))
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp()
