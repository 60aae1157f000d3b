"""Distributions of features compared without a discriminator: what the adversarial term can be replaced by.

A statistic of two batches becomes a loss per sample by what each generated row adds to it: the rows' mean is the
statistic, and its gradient the statistic's. Rows are compared whatever their conditions are: what is compared is the
mixture over the batch's conditions, which are the same on both sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hidistill.path import interpolate
from hidistill.share import WHOLE, holding
from hidistill.types import Loss, Noised, NoiseLaw, PerSample, Points, Teacher, TimeLaw, Times, Tokens

Sets = Float[Tensor, "b k d"]
"""k sets of b points in d dimensions; the same row of all sets is one sample."""


@runtime_checkable
class SetDistance(Protocol):
    """How far a batch of features is from another, as what each row of the first adds to it."""

    def __call__(self, generated: Sets, real: Sets) -> PerSample:
        """One value per generated row, whose mean is the distance; the mean over the sets."""
        ...


def pooled(tokens: Tokens) -> Sets:
    """The mean of a sample's tokens: one set."""
    return tokens.mean(1, keepdim=True)


def each_token(tokens: Tokens) -> Sets:
    """Every token, compared with the tokens at its own place: n sets."""
    return tokens


@dataclass(frozen=True)
class Align:
    """A distance between real and generated samples' features, at noised inputs of the same times.

    Both are measured in the root mean square deviation of the real features from their mean, layer by layer, so that
    layers count alike. The real rows cost a pass of the teacher without gradient; the generated rows' features are
    those that the other terms see. The size of the gradient is set where the samples are noised
    (`OnNoised.feature_gradient`). Rows that are to be compared should share a time: `OneTime`.

    Args:
        teacher: gives the real samples' features; the network that the noised samples' come from.
        distance: compares a layer's features.
        read: what is compared of a layer's tokens: `pooled`, or `each_token` with the tokens at its own place.
        floor: smallest unit, against features that do not vary.
        noise: draws the path's end at t = 1 for the real samples; as the teacher has learned it.

    Raises:
        ValueError: when called, if there are no real samples, or fewer than two rows.
    """

    teacher: Teacher
    distance: SetDistance
    read: Callable[[Tokens], Sets] = pooled
    floor: float = 1e-6
    noise: NoiseLaw = torch.randn_like

    def __call__(self, noised: Noised) -> Loss:
        """Noise the real samples, then compare."""
        if noised.real is None or len(noised.x_t) < 2:
            raise ValueError(
                f"Align got {len(noised.x_t)} generated samples and {'no' if noised.real is None else 'as many'} real "
                "ones; a distance between batches needs real samples and two rows or more: let OnNoised judge a Rollout"
            )
        return self.at(noised, noise=self.noise(noised.real))

    def at(self, noised: Noised, *, noise: Points) -> Loss:
        """The loss where the real samples get a given noise."""
        assert noised.real is not None
        with torch.no_grad():
            x_t = interpolate(noised.real, noise, noised.t)
            layers = self.teacher.features(x_t, t=noised.t, cond=noised.cond)
        values = []
        with torch.autocast(noised.x_t.device.type, enabled=False):  # small differences of large numbers
            for generated, real in zip(noised.probe.features, layers, strict=True):
                g, r = self.read(generated.float()), self.read(real.float())
                unit = (r - r.mean(0)).square().mean().sqrt().clamp_min(self.floor)
                values.append(self.distance(g / unit, r / unit))
        return Loss(torch.stack(values).mean(0))


@dataclass(frozen=True)
class Discrepancy:
    """Maximum mean discrepancy `E k(g, g') + E k(r, r') - 2 E k(g, r)` (arXiv 0805.2368).

    Unbiased: no point is compared with itself, and so the value may fall below zero.

    Args:
        kernel: of the distance between two points, which is the root mean square of their difference's components.
    """

    kernel: Callable[[Tensor], Tensor]

    def __call__(self, generated: Sets, real: Sets) -> PerSample:
        """See `SetDistance`."""
        g, r, others = generated.transpose(0, 1), real.transpose(0, 1), len(generated) - 1
        own = self.kernel(torch.zeros((), device=g.device))
        within = (self.kernel(distances(g, g)).sum(2) - own) / others
        among_real = ((self.kernel(distances(r, r)).sum(2) - own) / others).mean(1, keepdim=True)
        return (within + among_real - 2 * self.kernel(distances(g, r)).mean(2)).mean(0)


def energy(distance: Tensor) -> Tensor:
    """The kernel of the energy distance `2 E|g - r| - E|g - g'| - E|r - r'|`, which has no width to choose."""
    return -distance


def gaussians(distance: Tensor) -> Tensor:
    """Five Gaussian kernels, of width 1/4 to 4 in the units of the points."""
    return torch.stack([(-0.5 * (distance / width).square()).exp() for width in (0.25, 0.5, 1.0, 2.0, 4.0)]).mean(0)


@dataclass(frozen=True)
class SlicedWasserstein:
    """Mean squared distance along random directions between points of equal rank (arXiv 1803.11188).

    Each row pays the squared distance to the real row of its rank. A shift of all points by s costs |s|^2 / d, on
    average over the directions.

    Args:
        directions: number of them, drawn anew each time.
    """

    directions: int = 128

    def __post_init__(self) -> None:
        """Refuse a projection on nothing."""
        if self.directions < 1:
            raise ValueError(f"directions={self.directions}: give 1 or more; 128 are usual")

    def __call__(self, generated: Sets, real: Sets) -> PerSample:
        """See `SetDistance`."""
        with holding(WHOLE):  # directions are no rows
            directions = torch.randn(generated.shape[2], self.directions, device=generated.device)
        return self.along(generated, real, directions)

    def along(self, generated: Sets, real: Sets, directions: Float[Tensor, "d n"]) -> PerSample:
        """The distance along given directions, of any length."""
        unit = directions / directions.norm(dim=0)
        g, r = generated @ unit, (real @ unit).sort(0).values
        rank = g.detach().argsort(0).argsort(0)
        return (g - r.gather(0, rank)).square().mean((1, 2))


@dataclass(frozen=True)
class Moments:
    """Squared distance of the means, and of the covariances: `(|m_g - m_r|^2 + w |C_g - C_r|^2) / d`.

    After arXiv 1702.08398, with given features in place of learned ones. The moments are the batch's own: between
    batches of one distribution the value is not zero but falls as 1 / b. Covariances take d^2 numbers for each set, so
    pool first.

    Args:
        covariance: w; 0 leaves covariances out.
    """

    covariance: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        if self.covariance < 0:
            raise ValueError(f"covariance={self.covariance}: the weight must not be negative; 0 compares means alone")

    def __call__(self, generated: Sets, real: Sets) -> PerSample:
        """See `SetDistance`."""
        d, mean_g, mean_r = generated.shape[2], generated.mean(0), real.mean(0)
        value = ((generated - mean_r) * (mean_g - mean_r)).sum(2) / d
        if self.covariance:
            g, r = generated - mean_g, real - mean_r
            difference = torch.einsum("bki,bkj->kij", g, g) / len(g) - torch.einsum("bki,bkj->kij", r, r) / len(r)
            along = torch.einsum("bki,kij,bkj->bk", g, difference, g)
            against = torch.einsum("bki,kij,bkj->bk", r, difference, r).mean(0)
            value = value + self.covariance * (along - against) / d
        return value.mean(1)


@dataclass(frozen=True)
class Drift:
    """Generated points are drawn to the real ones near them and pushed from one another (arXiv 2602.04770).

    `V(g) = sum w(g, r) r - sum w(g, g') g'` with weights `w ~ exp(-|g - .| / temperature)`, which sum to 1 over the
    real points, and over the other generated ones; the loss `1/2 |g - constant(g + V)|^2 / d` has the gradient -V / d.
    Where both are one distribution, V averages out. Weights are normalized for each point alone, where the paper's
    algorithm does so over the points as well.

    Args:
        temperature: in the units of the points; distances are root mean squares over components.
    """

    temperature: float = 0.3

    def __post_init__(self) -> None:
        """Refuse a temperature that is not positive."""
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: must be positive")

    def __call__(self, generated: Sets, real: Sets) -> PerSample:
        """See `SetDistance`."""
        drift = self.field(generated.detach(), real)
        return 0.5 * (generated - (generated.detach() + drift)).square().mean((1, 2))

    def field(self, generated: Sets, real: Sets) -> Sets:
        """V at each generated point."""
        g, r = generated.transpose(0, 1), real.transpose(0, 1)
        itself = torch.eye(g.shape[1], dtype=torch.bool, device=g.device)
        apart = distances(g, g).masked_fill(itself, float("inf"))
        attraction = (-distances(g, r) / self.temperature).softmax(2) @ r
        return (attraction - (-apart / self.temperature).softmax(2) @ g).transpose(0, 1)


def distances(x: Float[Tensor, "k b d"], y: Float[Tensor, "k c d"]) -> Float[Tensor, "k b c"]:
    """Root mean square difference of each pair, exact near zero."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[2] ** 0.5


@dataclass(frozen=True)
class OneTime:
    """One draw of a law for all rows of a batch, so that rows can be compared at equal noise."""

    law: TimeLaw

    def sample(self, like: Tensor) -> Times:
        """The same time for every row of `like`."""
        with holding(WHOLE):  # one for the rows of other processes too
            return self.law.sample(like[:1]).repeat(len(like))
