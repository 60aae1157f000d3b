"""Flow matching: a velocity field learns from data, or a fake score from a student's samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hidistill.path import interpolate, mean_per_sample, per_row
from hidistill.times import Uniform
from hidistill.types import Batch, Cond, Loss, NoiseLaw, PerSample, Points, TimeLaw, Times, VelocityField


@dataclass(frozen=True)
class FlowMatching:
    """Regression of the conditional velocity.

    `|velocity(x_t, t) - (noise - x_0)|^2`, mean over the components (arXiv 2210.02747, eq. 23; 2209.03003, eq. 1).

    Args:
        field: what learns.
        times: distribution of t.
        null: gives the null condition; needed when `drop` is not 0.
        drop: share of samples that are trained without their condition (arXiv 2207.12598). Drawn here and not in the
            network, so that a network is a function.
        teacher: another field of the same conditions, whose velocity at x_t is regressed in place of `noise - x_0`: the
            target then has no variance given x_t. This is how a velocity moves into another architecture.
        weight: of a sample's loss at time t; None weighs all alike.
        noise: draws the path's end at t = 1.
    """

    field: VelocityField
    times: TimeLaw = Uniform()
    null: Callable[[Cond], Cond] | None = None
    drop: float = 0.0
    teacher: VelocityField | None = None
    weight: Callable[[Times], PerSample] | None = None
    noise: NoiseLaw = torch.randn_like

    def __post_init__(self) -> None:
        """Refuse a share outside [0, 1), and dropping without a null condition."""
        if not 0.0 <= self.drop < 1.0:
            raise ValueError(f"drop={self.drop}: the share of dropped conditions must be in [0, 1)")
        if self.drop and self.null is None:
            raise ValueError("drop > 0 needs null=..., the function that gives the null condition, e.g. teacher.null")

    def __call__(self, batch: Batch) -> Loss:
        """Draw times, noise and dropped conditions, then regress."""
        t, noise = self.times.sample(batch.x), self.noise(batch.x)
        cond = batch.cond
        if self.drop and self.null is not None:
            dropped = torch.rand(len(batch.x), device=batch.x.device) < self.drop
            cond = replaced(cond, self.null(cond), dropped)
        return self.at(Batch(batch.x, cond, batch.step), t=t, noise=noise)

    def at(self, batch: Batch, *, t: Times, noise: Points) -> Loss:
        """The loss at given times and noise."""
        x_t = interpolate(batch.x, noise, t)
        answer = self.field.velocity(x_t, t=t, cond=batch.cond)
        if self.teacher is None:
            target = noise - batch.x
        else:
            with torch.no_grad():
                target = self.teacher.velocity(x_t, t=t, cond=batch.cond)
        loss = mean_per_sample((answer - target).float().square())
        return Loss(loss if self.weight is None else self.weight(t).to(loss.dtype) * loss)


def replaced(cond: Cond, other: Cond, rows: Tensor) -> Cond:
    """`cond` with the rows of a mask (b,) taken from `other`."""
    if isinstance(cond, Mapping) and isinstance(other, Mapping):
        return {name: torch.where(per_row(rows, value), other[name], value) for name, value in cond.items()}
    assert isinstance(cond, Tensor)
    assert isinstance(other, Tensor)
    return torch.where(per_row(rows, cond), other, cond)
