"""Fréchet distance between Gaussians fitted to the features of generated and of real images."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from hidistill.types import Features, FeatureSpace, Samples


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of features."""

    mean: Float64[Tensor, " d"]
    covariance: Float64[Tensor, "d d"]

    @cached_property
    def root(self) -> Float64[Tensor, "d d"]:
        """The symmetric square root of the covariance; eigenvalues that rounding made negative count as 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def moments(features: Features) -> Moments:
    """Mean and unbiased covariance, in float64.

    Raises:
        ValueError: if there are fewer than two rows, or a feature is not finite.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance of {len(features)} images came up; it needs at least 2: draw more images")
    if not features.isfinite().all():
        raise ValueError("some features are not finite; a mean needs finite ones: check the images for NaN")
    x = features.double()
    mean = x.mean(0)
    x = x - mean
    return Moments(mean, x.T @ x / (len(x) - 1))


def frechet_distance(real: Moments, generated: Moments) -> float:
    """`|m - n|^2 + tr A + tr B - 2 tr sqrt(A^(1/2) B A^(1/2))` for N(m, A) and N(n, B) (arXiv 1706.08500, eq. 6).

    The matrix under the last root is symmetric, so that eigenvalues give its trace and nothing can become complex.
    """
    inner = real.root @ generated.covariance @ real.root
    values = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0)
    spread = real.covariance.trace() + generated.covariance.trace() - 2 * values.sqrt().sum()
    return max(0.0, ((real.mean - generated.mean).square().sum() + spread).item())


@dataclass(frozen=True)
class FrechetDistance:
    """`frechet_distance` in a feature space; it is biased upwards by small samples, so compare equal sample counts.

    Args:
        space: where images are compared.
    """

    space: FeatureSpace

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"frechet/{self.space.name}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The number `fd/SPACE`."""
        real = samples.real.once(("moments", self.space), lambda: moments(samples.real.features(self.space)))
        generated = moments(samples.generated.features(self.space))
        return {f"fd/{self.space.name}": frechet_distance(real, generated)}
