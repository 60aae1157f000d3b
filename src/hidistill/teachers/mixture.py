"""Gaussian mixtures: teachers whose velocity is known in closed form, and their exact flow maps.

They are the yardstick for everything else, and a two-dimensional toy to watch distillation on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hidistill.path import labels_of, per_row
from hidistill.types import Cond, Labels, Points, Probe, Student, Times, Tokens, VelocityField

Vectors = Float[Tensor, "b dim"]


class Mixture(nn.Module):
    """A Gaussian mixture with diagonal covariances; a class is a subset of its components, the null class all of them.

    With D = (1 - t)^2 std^2 + t^2 and e = x_t - (1 - t) mean, component k has velocity
    `(t - (1 - t) std^2) / D e - mean`, and the mixture their mean under the components' posterior.

    Args:
        means: (k, d).
        stds: positive; (k,), or (k, d) for one per axis.
        classes: components of each class; none: there is only the null class. Label `len(classes)` is the null class.
        weights: (k,), relative; equal if None.

    Raises:
        ValueError: if shapes disagree, a std or weight is not positive, or a class names no or unknown components.
    """

    means: Tensor
    stds: Tensor
    log_weights: Tensor
    """(classes + 1, k); minus infinity for components outside the class."""

    def __init__(
        self, means: Tensor, stds: Tensor, *, classes: Sequence[Sequence[int]] = (), weights: Tensor | None = None
    ) -> None:
        super().__init__()
        share = torch.ones_like(means[:, 0]) if weights is None else weights
        if stds.shape not in (means.shape[:1], means.shape) or share.shape != means.shape[:1]:
            raise ValueError(
                f"means {tuple(means.shape)}, stds {tuple(stds.shape)}, weights {tuple(share.shape)} came; "
                "they must be (k, d), (k,) or (k, d), and (k,)"
            )
        if (stds <= 0).any() or (share <= 0).any():
            raise ValueError("stds and weights must be positive; leave a component out instead of giving it weight 0")
        everything = range(len(means))
        for index, members in enumerate(classes):
            if not members or not set(members) <= set(everything):
                raise ValueError(f"class {index} has components {list(members)}; use some of 0 to {len(means) - 1}")
        inside = torch.tensor([[k in members for k in everything] for members in [*classes, everything]])
        self.register_buffer("means", means)
        self.register_buffer("stds", stds.reshape(len(means), -1).expand_as(means).contiguous())
        self.register_buffer("log_weights", share.log().where(inside, -math.inf).log_softmax(1))

    def resolve(self, x_t: Vectors, t: Times, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior of the components (b, k), residuals e (b, k, d) and variances D (b, k, d) at `x_t`."""
        t = t.to(x_t.dtype)[:, None, None]
        means, stds = self.means.to(x_t.dtype), self.stds.to(x_t.dtype)
        residuals = x_t[:, None] - (1 - t) * means
        variances = ((1 - t) * stds).square() + t.square()
        log_density = -0.5 * (residuals.square() / variances + variances.log()).sum(2)
        log_weights = self.log_weights.to(x_t.dtype)[labels_of(cond, owner="a mixture")]
        return (log_density + log_weights).softmax(1), residuals, variances

    def velocity(self, x_t: Vectors, *, t: Times, cond: Cond) -> Vectors:
        """See `VelocityField.velocity`."""
        posterior, residuals, variances = self.resolve(x_t, t, cond)
        t = t.to(x_t.dtype)[:, None, None]
        slopes = (t - (1 - t) * self.stds.to(x_t.dtype).square()) / variances
        return (posterior[:, :, None] * (slopes * residuals - self.means.to(x_t.dtype))).sum(1)

    def score(self, x_t: Vectors, *, t: Times, cond: Cond) -> Vectors:
        """The gradient of the log-density of `x_t`."""
        posterior, residuals, variances = self.resolve(x_t, t, cond)
        return -(posterior[:, :, None] * residuals / variances).sum(1)

    def sample(self, labels: Labels, *, generator: torch.Generator | None = None) -> Vectors:
        """One data point per label, in the dtype of the means."""
        components = torch.multinomial(self.log_weights[labels].exp(), 1, generator=generator)[:, 0]
        means = self.means[components]
        noise = torch.randn(means.shape, generator=generator, device=means.device, dtype=means.dtype)
        return means + self.stds[components] * noise

    @property
    def feature_channels(self) -> Sequence[int]:
        """Number of components, and of dimensions."""
        return tuple(self.means.shape)

    def features(self, x_t: Vectors, *, t: Times, cond: Cond) -> Sequence[Tokens]:
        """The posterior of the components and the point itself, each as one token."""
        return [self.resolve(x_t, t, cond)[0][:, None], x_t[:, None]]

    def probe(self, x_t: Vectors, *, t: Times, cond: Cond) -> Probe:
        """See `Teacher.probe`."""
        return Probe(self.velocity(x_t, t=t, cond=cond), self.features(x_t, t=t, cond=cond))

    def null(self, cond: Cond) -> Cond:
        """The null class, `len(classes)`, for every sample."""
        return torch.full_like(labels_of(cond, owner="a mixture"), len(self.log_weights) - 1)

    def student(self, steps: int = 100) -> Student:
        """The exact flow map of this teacher; it has nothing to learn."""
        return ExactFlowMap(self, steps)


@dataclass(frozen=True)
class ExactFlowMap:
    """The flow map of a field by fine integration: what a perfect student answers.

    `u(x_t, r, t)` is the mean of the increments of the classical Runge-Kutta method from t to r: there is no division
    by t - r, so it is the velocity itself at r = t, and has a derivative there.

    Args:
        field: what is integrated; a cheap one.
        steps: steps of four evaluations each; the error falls sixteen times when they double.

    Raises:
        ValueError: if there are no steps.
    """

    field: VelocityField
    steps: int = 100

    def __post_init__(self) -> None:
        """Refuse an integration without steps."""
        if self.steps < 1:
            raise ValueError(f"ExactFlowMap(steps={self.steps}): integration needs 1 step or more; 100 are usual")

    def mean_velocity(self, x_t: Points, *, t: Times, r: Times, cond: Cond) -> Points:
        """See `Student.mean_velocity`."""
        h, x, total = (t - r) / self.steps, x_t, torch.zeros_like(x_t)
        for step in range(self.steps):
            slope = self.slope(x, t=t - step * h, h=h, cond=cond)
            x, total = x - per_row(h, x) * slope, total + slope
        return total / self.steps

    def slope(self, x: Points, *, t: Times, h: Times, cond: Cond) -> Points:
        """The velocity that carries `x` from t to t - h, to fifth order in h."""
        half = per_row(h / 2, x)
        first = self.field.velocity(x, t=t, cond=cond)
        second = self.field.velocity(x - half * first, t=t - h / 2, cond=cond)
        third = self.field.velocity(x - half * second, t=t - h / 2, cond=cond)
        fourth = self.field.velocity(x - 2 * half * third, t=t - h, cond=cond)
        return (first + 2 * second + 2 * third + fourth) / 6
