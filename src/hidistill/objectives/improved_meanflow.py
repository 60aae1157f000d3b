"""Improved MeanFlow (iMF): the mean velocity learns through a regression of the velocity itself."""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from hidistill.path import interpolate, per_row, rows_of, sum_per_sample
from hidistill.share import anywhere
from hidistill.times import LogitNormal, sample_pair
from hidistill.types import Batch, Derivative, Loss, Points, Student, TimeLaw, Times, VelocityField


@dataclass(frozen=True)
class ImprovedMeanFlow:
    """Regression of a velocity that is composed of the student's mean velocity and its derivative.

    `|V - v|^2` with `V = u(x_t, r, t) + (t - r) constant(d/dt u(x_t, r, t))`, the derivative along the student's own
    velocity `u(x_t, t, t)` (arXiv 2512.02012, section 4, with the boundary value of u as the predicted velocity).
    Unlike MeanFlow's, the target holds nothing of the student, and the prediction nothing but x_t, r and t. With
    v = noise - x_0 the noise of the target does not pass through the derivative, which in MeanFlow multiplies it by
    dx_r/dx_t; where the flow contracts that is below 1, and the scatter here is the larger one. Each sample's squared
    error e, summed over its components, is divided by `(e + offset)^power`, held constant.

    The student's own velocity costs one more forward without gradient, for the rows with r < t. The paper's auxiliary
    head for it, and its guidance as an input, are not here: guidance is the field's.

    Args:
        field: whose trajectories are followed, a guided teacher; None learns from data alone, with v = noise - x_0.
        student: what learns.
        derivative: takes d/dt u, only for the rows with r < t.
        times: distribution that t and r are drawn from, and sorted.
        instantaneous: share of the rows with r = t, where V = u.
        power: 0 is the plain squared error; with 1 every sample counts alike in the loss.
        offset: keeps small errors from pulling without limit.

    Raises:
        ValueError: if the share is outside [0, 1], the power negative, or the offset not positive.
    """

    field: VelocityField | None
    student: Student
    derivative: Derivative
    times: TimeLaw = LogitNormal(-0.4, 1.0)
    instantaneous: float = 0.5
    power: float = 1.0
    offset: float = 1e-2

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1] and numbers of the wrong sign."""
        if not 0.0 <= self.instantaneous <= 1.0:
            raise ValueError(
                f"instantaneous={self.instantaneous}: the share of rows with r = t must be in [0, 1]; use 0.5"
            )
        if not (self.power >= 0 and self.offset > 0):
            raise ValueError(
                f"power={self.power}, offset={self.offset}: the power must not be negative, the offset must be "
                "positive; use 1.0 and 1e-2, or power=0.0 for the plain squared error"
            )

    def __call__(self, batch: Batch) -> Loss:
        """Draw times and noise, then regress."""
        t, r, count = sample_pair(self.times, batch.x, instantaneous=self.instantaneous)
        return self.at(batch, t=t, r=r, noise=torch.randn_like(batch.x), first=count)

    def at(self, batch: Batch, *, t: Times, r: Times, noise: Points, first: int = 0) -> Loss:
        """The loss at given times and noise; rows before `first` have r = t and need no derivative."""
        x_t = interpolate(batch.x, noise, t)
        answer = self.student.mean_velocity(x_t, t=t, r=r, cond=batch.cond)
        composed = answer + self.rest(x_t, batch, t=t, r=r, first=first)
        error = sum_per_sample((composed - self.target(x_t, batch, t=t, noise=noise)).float().square())
        weight = (error.detach() + self.offset) ** -self.power
        return Loss(weight * error, {"mse": error.detach().mean() / batch.x[0].numel()})

    @torch.no_grad()
    def target(self, x_t: Points, batch: Batch, *, t: Times, noise: Points) -> Points:
        """The field's velocity, or that of data and noise."""
        return noise - batch.x if self.field is None else self.field.velocity(x_t, t=t, cond=batch.cond)

    @torch.no_grad()
    def rest(self, x_t: Points, batch: Batch, *, t: Times, r: Times, first: int) -> Points:
        """`(t - r) du/dt` along the student's own velocity; zero in the rows before `first`."""
        if not anywhere(first < len(x_t)):
            return torch.zeros_like(x_t)
        first = min(first, len(x_t) - 1)  # another process needs a derivative: this one takes it where t - r is 0
        cond = rows_of(batch.cond, slice(first, None))
        x, t, r = x_t[first:], t[first:], r[first:]
        own = self.student.mean_velocity(x, t=t, r=t, cond=cond)
        du = self.derivative(self.student, x, t=t, r=r, cond=cond, direction=own)
        return pad(per_row(t - r, du) * du, [0, 0] * (du.ndim - 1) + [first, 0])
