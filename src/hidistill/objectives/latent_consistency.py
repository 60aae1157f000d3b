"""Latent consistency distillation (LCM): consistency over several steps of a guided solver, at drawn scales."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hidistill import sampling
from hidistill.guidance import Guided
from hidistill.path import concatenate, interpolate, mean_per_sample, per_row, velocity_to_data
from hidistill.types import Batch, Cond, Loss, PerSample, Points, Student, Teacher, Times


@dataclass(frozen=True)
class GuidedByRow:
    """A teacher under classifier-free guidance (arXiv 2207.12598) with a scale per row, in one batched call.

    It is a velocity field, `null + scale (conditional - null)`, for the rows that the scales belong to.

    Args:
        teacher: what is guided.
        scale: (b,); 0 is unconditional, 1 is no guidance.
    """

    teacher: Teacher
    scale: PerSample

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """See `VelocityField.velocity`."""
        both = concatenate(cond, self.teacher.null(cond))
        velocity = self.teacher.velocity(torch.cat([x_t, x_t]), t=torch.cat([t, t]), cond=both)
        conditional, null = velocity.chunk(2)
        return (null + per_row(self.scale, null) * (conditional - null)).to(null.dtype)


@dataclass(frozen=True)
class LatentConsistency:
    """Ends agree over one long step of the guided ODE: `huber(f(x_t, t, w), f'(x_s, s, w))`.

    t and s lie `skip` times apart on a grid, `x_s = x_t - (t - s) v_w(x_t, t)`, and f' is held constant (arXiv
    2310.04378, sections 4.2 and 4.3, algorithm 1). Two things are put into this path's words:

    - The solver is DDIM, which moves along `(1 - s) x0_hat + s noise_hat` with both estimates held constant. With
      velocity = noise_hat - x0_hat that is one Euler step from t to s, exactly, once a variance-preserving teacher is
      matched in signal-to-noise (`conventions.py`); guiding the two solver steps is guiding the velocity. The paper's
      grid is even in the steps of such a schedule, the default here in t; the other one is a `grid` of yours.
    - f = x_t - t u(x_t, 0, t) for the paper's `c_skip x_t + c_out x0_hat`. Both give x_0 at t = 0. With
      x0_hat = x_t - t u the paper's scalings are 0 and 1 but for the smallest t, where c_skip + c_out is not 1: u would
      no longer be the mean velocity that every sampler here takes it for.

    A student cannot know a scale that it is not told. So a fixed scale is built in, as by `Guided`, and a drawn one
    goes into the condition of student and target under `key`, for which the condition must be a mapping; that the
    student reads it is the student's affair. The teacher is not told.

    Args:
        teacher: whose guided trajectories are followed; without guidance of its own.
        student: what learns.
        target: gives the end from x_s: the student's average (the paper's decay is 0.95) or the student.
        scale: guidance scale w, 1 is none; a pair (low, high) draws it uniformly for each row.
        steps: number of the grid's steps.
        skip: how many of them one comparison spans; the paper's 20 of 1,000.
        grid: falling times from 1 to 0 for a number of steps.
        huber: c of `sqrt(e^2 + c^2) - c`, mean over the components; the published 1e-3.
        weight: of a sample's loss at time t; None weighs all alike.
        key: under which a drawn scale stands in the condition.

    Raises:
        TypeError: if the teacher is guided or has no null condition; when called, if a scale is drawn and the condition
            is not a mapping.
        ValueError: if scales are negative or fall, the grid does not lead from 1 to 0, the skip does not fit into it,
            or c is not positive; when called, if the condition has the key already.
    """

    teacher: Teacher
    student: Student
    target: Student
    scale: float | tuple[float, float]
    steps: int = 1000
    skip: int = 20
    grid: Callable[[int], Sequence[float]] = sampling.grid
    huber: float = 1e-3
    weight: Callable[[Times], PerSample] | None = None
    key: str = "scale"

    def __post_init__(self) -> None:
        """Refuse what cannot be guided, scales that cannot be drawn, and steps that do not fit."""
        if isinstance(self.teacher, Guided) or not isinstance(self.teacher, Teacher):
            raise TypeError(
                f"a {type(self.teacher).__name__} came as the teacher; LatentConsistency guides by itself and needs "
                "the teacher with its null condition: give the one inside Guided, or use Consistency with a field"
            )
        low, high = self.bounds()
        if not (math.isfinite(high) and 0 <= low <= high):
            raise ValueError(
                f"scale={self.scale}: a scale is a finite number >= 0, an interval (low, high) has low <= high; use "
                "1.0 for no guidance"
            )
        times = self.grid(self.steps)
        sampling.check(times)
        if len(times) != self.steps + 1 or times[0] != 1 or times[-1] != 0 or not 1 <= self.skip <= self.steps:
            raise ValueError(
                f"the grid gave {len(times)} times from {times[0]} to {times[-1]} for steps={self.steps}, "
                f"skip={self.skip}: {self.steps + 1} times from 1 to 0 are needed, and a skip from 1 to {self.steps}"
            )
        if not self.huber > 0:
            raise ValueError(f"huber={self.huber}: c must be positive, for its root has no gradient at 0; use 1e-3")

    def bounds(self) -> tuple[float, float]:
        """Least and greatest scale."""
        return self.scale if isinstance(self.scale, tuple) else (self.scale, self.scale)

    def __call__(self, batch: Batch) -> Loss:
        """Draw a place on the grid, a scale and noise for each row, then compare."""
        device, (low, high) = batch.x.device, self.bounds()
        times = torch.tensor(self.grid(self.steps), device=device)
        n = torch.randint(self.steps - self.skip + 1, (len(batch.x),), device=device)
        scale = low + (high - low) * torch.rand(len(batch.x), device=device)
        noise = torch.randn_like(batch.x)
        return self.at(batch, t=times[n], s=times[n + self.skip], scale=scale, noise=noise)

    def at(self, batch: Batch, *, t: Times, s: Times, scale: PerSample, noise: Points) -> Loss:
        """The loss at given times s < t, scales and noise, and the root mean square of the gap between the ends."""
        x_t, cond = interpolate(batch.x, noise, t), self.told(batch.cond, scale)
        with torch.no_grad():
            velocity = GuidedByRow(self.teacher, scale).velocity(x_t, t=t, cond=batch.cond)
            x_s = x_t - per_row(t - s, x_t) * velocity
            target = end(self.target, x_s, t=s, cond=cond)
        error = (end(self.student, x_t, t=t, cond=cond) - target).float()
        value = mean_per_sample((error.square() + self.huber**2).sqrt() - self.huber)
        gap = error.detach().square().mean().sqrt()
        return Loss(value if self.weight is None else self.weight(t).to(value.dtype) * value, {"gap": gap})

    def told(self, cond: Cond, scale: PerSample) -> Cond:
        """The student's condition: with the scale, if it is drawn."""
        if not isinstance(self.scale, tuple):
            return cond
        if not isinstance(cond, Mapping):
            raise TypeError(
                f"the scale is drawn from {self.scale} and the condition is a {type(cond).__name__}; only a mapping "
                f"can carry the scale, as {self.key!r}, to the student: give a mapping, or one scale"
            )
        if self.key in cond:
            raise ValueError(
                f"the condition has the key {self.key!r} already, among {sorted(cond)}; the drawn scale needs one of "
                "its own: give another key=..."
            )
        return {**cond, self.key: scale}


def end(student: Student, x_t: Points, *, t: Times, cond: Cond) -> Points:
    """`f(x_t, t) = x_t - t u(x_t, 0, t)`: where the trajectory through `x_t` ends."""
    return velocity_to_data(student.mean_velocity(x_t, t=t, r=torch.zeros_like(t), cond=cond), x_t, t)
