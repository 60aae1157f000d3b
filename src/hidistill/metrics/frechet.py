"""Fréchet distance between Gaussians fitted to the features of generated and of real images."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hidistill.seeds import fold_in
from hidistill.types import Features, FeatureSpace, Samples

BLOCK = 1024
"""Rows whose sums are taken at once while statistics stream, so that batches leave no trace."""
AMPLE = 10
"""Images per dimension from which the bias of a distance is small against usual differences."""
Rows = Float[Tensor, "_n _d"]


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


class Running:
    """Moments of features that come in batches.

    Rows are gathered into blocks of 1,024 in the order that they come in, and blocks are joined by the update of means
    and scatters (Chan, Golub and LeVeque 1979): the result does not depend on the batches to the last bit.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.scatter = 0, torch.zeros(()), torch.zeros(())
        self.waiting: list[Tensor] = []

    def add(self, features: Rows) -> None:
        """Take in more rows.

        Raises:
            ValueError: if a feature is not finite, or rows have another width than those before.
        """
        refuse_infinite(features)
        width = self.waiting[0].shape[1] if self.waiting else self.mean.numel()
        if (self.count or self.waiting) and width != features.shape[1]:
            raise ValueError(f"features of width {features.shape[1]} came after some of width {width}; use one space")
        rows = torch.cat([*self.waiting, features.double()])
        whole = len(rows) - len(rows) % BLOCK
        for start in range(0, whole, BLOCK):
            self.join(*summed(rows[start : start + BLOCK]))
        self.waiting = [rows[whole:]]

    def join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Take in rows of which their number, their mean and the scatter around it are known."""
        if not self.count:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        total, shift = self.count + count, mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def moments(self) -> Moments:
        """Mean and unbiased covariance of all rows so far.

        Raises:
            ValueError: if there are fewer than two.
        """
        whole = Running()
        whole.count, whole.mean, whole.scatter = self.count, self.mean, self.scatter
        rest = torch.cat(self.waiting) if self.waiting else torch.zeros(0)
        if len(rest):
            whole.join(*summed(rest))
        if whole.count < 2:
            raise ValueError(f"a covariance of {whole.count} images came up; it needs at least 2: draw more images")
        return Moments(whole.mean, whole.scatter / (whole.count - 1))


def summed(rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number, mean and scatter of some rows."""
    mean = rows.mean(0)
    centered = rows - mean
    return len(rows), mean, centered.T @ centered


def refuse_infinite(features: Rows) -> None:
    """Raise if a feature is not finite."""
    if not features.isfinite().all():
        raise ValueError("some features are not finite; a mean needs finite ones: check the images for NaN")


def moments(features: Features) -> Moments:
    """Mean and unbiased covariance, in float64.

    Raises:
        ValueError: if there are fewer than two rows, or a feature is not finite.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance of {len(features)} images came up; it needs at least 2: draw more images")
    running = Running()
    running.add(features)
    return running.moments()


def frechet_distance(real: Moments, generated: Moments) -> float:
    """`|m - n|^2 + tr A + tr B - 2 tr sqrt(A^(1/2) B A^(1/2))` for N(m, A) and N(n, B) (arXiv 1706.08500, eq. 6).

    The matrix under the last root is symmetric, so that eigenvalues give its trace and nothing can become complex.

    Raises:
        ValueError: if both have different dimensions.
    """
    if real.mean.shape != generated.mean.shape:
        raise ValueError(
            f"statistics of {len(real.mean)} and {len(generated.mean)} features; both must come from one space: take "
            "the reference that was made with the same network"
        )
    inner = real.root @ generated.covariance @ real.root
    values = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0)
    spread = real.covariance.trace() + generated.covariance.trace() - 2 * values.sqrt().sum()
    return max(0.0, ((real.mean - generated.mean).square().sum() + spread).item())


def distance_of_few(real: Rows, generated: Rows) -> float:
    """`frechet_distance` of the moments of n and m rows, by singular values of an n x m matrix.

    With centered rows X and Y, `tr sqrt(A^(1/2) B A^(1/2))` is the sum of the singular values of `X Y^T` over
    `sqrt((n - 1) (m - 1))`: cheaper where there are fewer images than features.
    """
    x, y = real.double(), generated.double()
    m, n = x.mean(0), y.mean(0)
    x, y = (x - m) / (len(x) - 1) ** 0.5, (y - n) / (len(y) - 1) ** 0.5
    spread = x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    return max(0.0, ((m - n).square().sum() + spread).item())


def too_few(n: int, dim: int, name: str) -> str | None:
    """A warning where n images are few for a covariance of a dimension; None where they are enough."""
    if n <= dim:
        return (
            f"{n:,} images a row for {dim:,} features of {name}: the covariance is singular and the distance mostly "
            f"bias; compare rows of this table only, and draw more than {AMPLE * dim:,} for a number of its own "
            "and its limit"
        )
    if n < AMPLE * dim:
        return (
            f"{n:,} images a row for {dim:,} features of {name}: the distance is biased upwards by about the real "
            f"images' own, and no limit is given; more than {AMPLE * dim:,} make it small"
        )
    return None


@dataclass(frozen=True)
class FrechetDistance:
    """`frechet_distance` in a feature space; it is biased upwards by small samples, so compare equal sample counts.

    Args:
        space: where images are compared.
        called: name of the number: "fid" or "sfid" in the features of the original network alone.
    """

    space: FeatureSpace
    called: str = "fd"

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"frechet/{self.space.name}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The number `fd/SPACE`."""
        return {f"{self.called}/{self.space.name}": self.between(samples)}

    def between(self, samples: Samples) -> float:
        """The distance, by the cheaper of two ways that are equal."""
        generated = samples.generated.features(self.space)
        n, d = generated.shape
        if ("moments", self.space) not in samples.real.memory and max(n, len(samples.real.images)) <= d and n > 1:
            return distance_of_few(samples.real.features(self.space), generated)
        real = samples.real.once(("moments", self.space), lambda: moments(samples.real.features(self.space)))
        return frechet_distance(real, moments(generated))


@dataclass(frozen=True)
class FrechetLimit:
    """The Fréchet distance that infinitely many generated images would have (arXiv 1911.07023, section 3).

    The bias is nearly linear in 1/N where N is well above the dimension d: a line through the distances of random
    subsets of n/2 to n images meets 1/N = 0 there. Its next term, of the order of (d/N)^2, bends the line and would
    carry it below the truth, so that no limit is given below `AMPLE` d images. The bias by the finite number of real
    images stays.

    Args:
        space: where images are compared.
        points: numbers of images on the line.
        seed: of the subsets.
        called: name of the number without "_limit".
    """

    space: FeatureSpace
    points: int = 6
    seed: int = 0
    called: str = "fd"

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"frechet limit, {self.points} points/{self.space.name}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The number `fd_limit/SPACE`, which noise may bring below 0; nothing where images are few for the dimension.

        Raises:
            ValueError: if there are too few images for a line.
        """
        features = samples.generated.features(self.space)
        n, d = features.shape
        if n < AMPLE * d:
            return {}
        if n < 2 * self.points:
            raise ValueError(f"{n} images came; {self.points} points of a line need at least {2 * self.points}")
        counts = torch.linspace(n // 2, n, self.points).long().tolist()
        distance = FrechetDistance(self.space)
        values = []
        for i, count in enumerate(counts):
            order = torch.randperm(n, generator=torch.Generator().manual_seed(fold_in(self.seed, "limit", i)))
            part = samples.generated.rows(order[:count].sort().values)
            values.append(distance.between(Samples(part, samples.real)))
        line = torch.tensor([[1.0, 1 / count] for count in counts], dtype=torch.float64)
        fit = torch.linalg.lstsq(line, torch.tensor(values, dtype=torch.float64)[:, None]).solution
        return {f"{self.called}_limit/{self.space.name}": fit[0, 0].item()}
