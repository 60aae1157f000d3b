"""Continuous-time consistency distillation (sCM): consistency in the limit of small steps, by a derivative."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hidistill.embedding import TimeEmbedding
from hidistill.path import interpolate, mean_per_sample, per_row
from hidistill.times import LogitNormal
from hidistill.types import Batch, Derivative, Loss, PerSample, Points, Student, TimeLaw, Times, VelocityField


def trigflow(velocity: Points, x_t: Points, t: Times) -> Points:
    """A velocity of the linear path as one of TrigFlow's: `F = (cos s - sin s) x_t + velocity / (cos s + sin s)`.

    TrigFlow's path is `x_s = cos(s) x_0 + sin(s) noise` (arXiv 2410.11081, section 3.1, here for data of unit size).
    With tan s = t / (1 - t), or t = sin s / (sin s + cos s), it is `x_s = (cos s + sin s) x_t`. The field's velocity
    becomes dx_s/ds; the mean velocity u(x_t, 0, t) becomes the network F of the consistency function
    `f = cos(s) x_s - sin(s) F`, which is x_t - t u.
    """
    size = unit(t)
    return per_row((1 - 2 * t) / size, x_t) * x_t + per_row(size, velocity) * velocity


def unit(t: Times) -> Times:
    """`1 / (cos s + sin s) = sqrt(t^2 + (1 - t)^2)`; cos s and sin s are 1 - t and t over it."""
    return torch.hypot(t, 1 - t)


class TimeWeight(nn.Module):
    """A learned logarithm of the loss's weight, w(t), zero at start (arXiv 2410.11081, section 4.2).

    Args:
        width: of the embedding of t.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, t: Times) -> PerSample:
        """w(t) of each row."""
        return self.last(F.silu(self.time(t)))[:, 0]


@dataclass(frozen=True)
class ContinuousConsistency:
    """sCM: regression of the student's F, in TrigFlow, onto itself plus a tangent.

    `e^w |F - constant(F) - g / (|g| + c)|^2 - w` with `g = cos s df/ds`, that is
    `g = -cos^2 s (F - dx_s/ds) - k cos s sin s (x_s + dF/ds)` (arXiv 2410.11081, section 4.2, algorithm 1), with the
    guided teacher for dx_s/ds, F of `trigflow`, and norms as root mean squares over the components. By the chain rule

    `F - dx_s/ds = size (u - v)` and `x_s + dF/ds = (cos s - sin s) size^2 (v - u) + size^3 du/dt`

    with size = 1 / (cos s + sin s), so that the terms in x_s cancel before they are rounded, and the house's derivative
    of u is all that is needed. g is zero at u(x_t, 0, t), and at t = 1 for every student. Only u(x_t, 0, t) learns.
    The loss's gradient is that of the objective; its value is g's normalized size and does not show progress.

    Args:
        field: whose trajectories are followed; a guided teacher.
        student: what learns.
        derivative: takes d/dt u.
        times: distribution that t is drawn from. A log-normal law of tan s is a logit-normal law of t. The default is
            the paper's, `tan s = e^n / std`, n ~ N(-1, 1.4^2), at its std of 1/2: -1 + log 2 = -0.31. It hardly comes
            near t = 1; a law for one step has a mean above 0, as LogitNormal(0.9, 1.6), that of arXiv 2503.09641.
        offset: c, against tangents of size 0.
        warmup_steps: steps over which k grows from 0 to 1; the paper takes 10,000 for networks that start from a
            teacher.
        weight: a module with w(t), as `TimeWeight()`, whose parameters the caller's optimizer holds; None is w = 0.

    Raises:
        ValueError: if the offset is not positive, or the warm-up negative.
    """

    field: VelocityField
    student: Student
    derivative: Derivative
    times: TimeLaw = LogitNormal(-0.31, 1.4)
    offset: float = 0.1
    warmup_steps: int = 0
    weight: nn.Module | None = None

    def __post_init__(self) -> None:
        """Refuse an offset that is not positive and a negative warm-up."""
        if not self.offset > 0 or self.warmup_steps < 0:
            raise ValueError(
                f"offset={self.offset}, warmup_steps={self.warmup_steps}: the offset must be positive, the warm-up not "
                "negative; use offset=0.1, and warmup_steps=0 for none"
            )

    def __call__(self, batch: Batch) -> Loss:
        """Draw times and noise, then regress."""
        return self.at(batch, t=self.times.sample(batch.x), noise=torch.randn_like(batch.x))

    def at(self, batch: Batch, *, t: Times, noise: Points) -> Loss:
        """The loss at given times and noise, and the root mean square of the tangent before it is normalized."""
        x_t = interpolate(batch.x, noise, t)
        u = self.student.mean_velocity(x_t, t=t, r=torch.zeros_like(t), cond=batch.cond)
        g = self.tangent(x_t, u.detach(), batch, t=t)
        norm = mean_per_sample(g.square()).sqrt()
        answer = trigflow(u, x_t, t)
        target = answer.detach() + g / per_row(norm + self.offset, g)
        value = mean_per_sample((answer - target).float().square())
        if self.weight is not None:
            w = self.weight(t).float()
            value = w.exp() * value - w
        return Loss(value, {"tangent": norm.float().square().mean().sqrt()})

    @torch.no_grad()
    def tangent(self, x_t: Points, u: Points, batch: Batch, *, t: Times) -> Points:
        """G of the student whose answer at `x_t` is `u`, not normalized."""
        v = self.field.velocity(x_t, t=t, cond=batch.cond)
        du = self.derivative(self.student, x_t, t=t, r=torch.zeros_like(t), cond=batch.cond, direction=v)
        ramp = min(1.0, (batch.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        size = unit(t)
        cos, sin = (1 - t) / size, t / size
        turn = per_row((cos - sin) * size**2, u) * (v - u) + per_row(size**3, du) * du
        return per_row(cos**2 * size, u) * (v - u) - ramp * per_row(cos * sin, turn) * turn
