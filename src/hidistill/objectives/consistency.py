"""Consistency distillation: the student gives the same end from neighboring points of a teacher's trajectory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from hidistill import sampling
from hidistill.path import interpolate, mean_per_sample, per_row, velocity_to_data
from hidistill.types import Batch, Cond, Loss, PerSample, Points, Student, Times, VelocityField


@runtime_checkable
class Step(Protocol):
    """One step of an ODE solver, with times of its own for each row."""

    def __call__(self, field: VelocityField, x_t: Points, *, t: Times, s: Times, cond: Cond) -> Points:
        """Where the field carries `x_t` from t to s, without gradient."""
        ...


@runtime_checkable
class Distance(Protocol):
    """How far an answer is from its target."""

    def __call__(self, answer: Points, target: Points, /) -> PerSample:
        """One distance per sample, in float32."""
        ...


@torch.no_grad()
def euler_step(field: VelocityField, x_t: Points, *, t: Times, s: Times, cond: Cond) -> Points:
    """`x_t - (t - s) v(x_t, t)`: one evaluation, an error of second order in t - s."""
    return x_t - per_row(t - s, x_t) * field.velocity(x_t, t=t, cond=cond)


@torch.no_grad()
def heun_step(field: VelocityField, x_t: Points, *, t: Times, s: Times, cond: Cond) -> Points:
    """The mean of the velocities at both ends of an Euler step: two evaluations, an error of third order in t - s."""
    here = field.velocity(x_t, t=t, cond=cond)
    there = field.velocity(x_t - per_row(t - s, x_t) * here, t=s, cond=cond)
    return x_t - per_row((t - s) / 2, x_t) * (here + there)


def squared(answer: Points, target: Points) -> PerSample:
    """Squared error, mean over the components."""
    return mean_per_sample((answer - target).float().square())


@dataclass(frozen=True)
class PseudoHuber:
    """`sqrt(m + c^2) - c` with m the mean squared error: squared near 0, linear far away.

    arXiv 2310.14189, section 3.3, divided by the root of the number of components, which makes c independent of it.

    Args:
        c: where the square goes over into the line, in units of the data.

    Raises:
        ValueError: if c is not positive.
    """

    c: float = 5.4e-4

    def __post_init__(self) -> None:
        """Refuse a corner, which has no gradient at 0."""
        if not (math.isfinite(self.c) and self.c > 0):
            raise ValueError(f"PseudoHuber(c={self.c}): c must be positive and finite; 5.4e-4 suits data of unit size")

    def __call__(self, answer: Points, target: Points, /) -> PerSample:
        """See `Distance`."""
        return (squared(answer, target) + self.c**2).sqrt() - self.c


def edm_grid(steps: int) -> tuple[float, ...]:
    """The times of EDM's sampler on this path: `t = sigma / (1 + sigma)`, narrow steps near data.

    sigma^(1/7) falls evenly from 80^(1/7) to 0.002^(1/7), then sigma = 0 (arXiv 2206.00364, eq. 5). The first time,
    80/81, is put to 1, which is where the student starts.

    Raises:
        ValueError: if there are no steps.
    """
    equal = sampling.grid(steps)
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    sigmas = [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(1, steps)]
    return (equal[0], *(sigma / (1 + sigma) for sigma in sigmas), equal[-1])


@dataclass(frozen=True)
class Consistency:
    """Ends agree along a trajectory: `distance(f(x_t, t), f'(x_s, s))`, with `f(x_t, t) = x_t - t u(x_t, 0, t)`.

    x_s is one solver step of the field from x_t, to the next time s of a grid; f' is the target network, held constant
    (arXiv 2303.01469, eq. 6 and 7, algorithm 2). The boundary condition f(x_0, 0) = x_0 (eq. 5) holds by the form of f.
    Only u(x_t, 0, t) learns: such a student makes its further steps by new noise (`sampling.renoise`), not by jumps to
    a time above 0.

    The target network is an average of the student (`train.ema.Average(student, decay).module`, in the stage's
    averages), as in the first paper, or the student itself, as arXiv 2310.14189, section 3.2 finds better.

    Args:
        field: whose trajectories are followed; a guided teacher.
        student: what learns.
        target: gives the end from x_s; the student's average, or the student.
        steps: number of the grid's steps; the published 40 of ImageNet at 64 pixels, with Heun.
        grid: falling times from 1 to 0 for a number of steps; `sampling.grid` has equal ones. Each of the steps is
            drawn as often.
        solver: one step of the field's ODE: `heun_step` or `euler_step`.
        distance: `squared`, `PseudoHuber()`, or a perceptual one.
        weight: of a sample's loss at time t; None weighs all alike.

    Raises:
        ValueError: if the grid's times do not fall from 1 to 0 in so many steps.
    """

    field: VelocityField
    student: Student
    target: Student
    steps: int = 40
    grid: Callable[[int], Sequence[float]] = sampling.grid
    solver: Step = heun_step
    distance: Distance = squared
    weight: Callable[[Times], PerSample] | None = None

    def __post_init__(self) -> None:
        """Refuse a grid that does not lead from noise to data."""
        times = self.grid(self.steps)
        sampling.check(times)
        if len(times) != self.steps + 1 or times[0] != 1 or times[-1] != 0:
            raise ValueError(
                f"the grid gave {len(times)} times from {times[0]} to {times[-1]} for steps={self.steps}; "
                f"{self.steps + 1} are needed, from 1 (noise) to 0 (data, where the end is known): use sampling.grid"
            )

    def __call__(self, batch: Batch) -> Loss:
        """Draw a step of the grid and noise for each row, then compare."""
        times = torch.tensor(self.grid(self.steps), device=batch.x.device)
        n = torch.randint(self.steps, (len(batch.x),), device=batch.x.device)
        return self.at(batch, t=times[n], s=times[n + 1], noise=torch.randn_like(batch.x))

    def at(self, batch: Batch, *, t: Times, s: Times, noise: Points) -> Loss:
        """The loss at given times s < t and noise, and the root mean square of the gap between the ends."""
        x_t = interpolate(batch.x, noise, t)
        with torch.no_grad():
            x_s = self.solver(self.field, x_t, t=t, s=s, cond=batch.cond)
            target = end(self.target, x_s, t=s, cond=batch.cond)
        answer = end(self.student, x_t, t=t, cond=batch.cond)
        value = self.distance(answer, target)
        gap = (answer.detach() - target).float().square().mean().sqrt()
        return Loss(value if self.weight is None else self.weight(t).to(value.dtype) * value, {"gap": gap})


def end(student: Student, x_t: Points, *, t: Times, cond: Cond) -> Points:
    """`f(x_t, t) = x_t - t u(x_t, 0, t)`: where the trajectory through `x_t` ends."""
    return velocity_to_data(student.mean_velocity(x_t, t=t, r=torch.zeros_like(t), cond=cond), x_t, t)
