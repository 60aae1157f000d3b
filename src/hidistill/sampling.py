"""Samplers: a flow map in one or few jumps, a velocity field in many steps. Time falls from 1 (noise) to 0 (data)."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from hidistill.types import Cond, Points, Student, Times, VelocityField


def grid(steps: int) -> tuple[float, ...]:
    """Times of `steps` equal steps from 1 to 0, both ends included.

    Raises:
        ValueError: if there are no steps.
    """
    if steps < 1:
        raise ValueError(f"a sampler cannot make {steps} steps; use 1 or more")
    return tuple(1 - i / steps for i in range(steps + 1))


def jump(student: Student, noise: Points, *, cond: Cond, times: Sequence[float] = (1.0, 0.0)) -> Points:
    """Deterministic steps of a flow map: `x_r = x_t - (t - r) u(x_t, r, t)` (arXiv 2505.13447, eq. 12).

    Differentiable where gradients are enabled.

    Args:
        student: the flow map.
        noise: samples at the first of the times.
        cond: their conditions.
        times: falling times; (1, 0) is one step, `grid(n)` n equal ones.

    Raises:
        ValueError: if the times do not fall within [0, 1].
    """
    check(times)
    x_t = noise
    for t, r in pairwise(times):
        x_t = x_t - (t - r) * student.mean_velocity(x_t, t=all_rows(t, x_t), r=all_rows(r, x_t), cond=cond)
    return x_t


def renoise(student: Student, noise: Points, *, cond: Cond, times: Sequence[float], fresh: Sequence[Points]) -> Points:
    """Stochastic steps: jump to data, noise again to the next time (arXiv 2303.01469, algorithm 1).

    `x_0 = x_t - t u(x_t, 0, t)`, then `x_s = (1 - s) x_0 + s fresh` for the next time s. Differentiable where
    gradients are enabled.

    Args:
        student: the flow map.
        noise: samples at the first of the times.
        cond: their conditions.
        times: falling times, the last one 0.
        fresh: noise for each of the times but the first and the last.

    Raises:
        ValueError: if the times do not fall from 1 to 0, or there is more or less noise than needed.
    """
    check(times)
    if times[-1] != 0:
        raise ValueError(f"times {tuple(times)} end at {times[-1]}; re-noising ends with a jump to data, append 0.0")
    if len(fresh) != len(times) - 2:
        raise ValueError(f"{len(fresh)} fresh noises came for times {tuple(times)}; {len(times) - 2} are needed")
    x_t = x_0 = noise
    for step, t in enumerate(times[:-1]):
        if step:
            x_t = (1 - t) * x_0 + t * fresh[step - 1]
        x_0 = x_t - t * student.mean_velocity(x_t, t=all_rows(t, x_t), r=all_rows(0.0, x_t), cond=cond)
    return x_0


@torch.no_grad()
def euler(
    field: VelocityField,
    noise: Points,
    *,
    cond: Cond,
    steps: int | None = None,
    times: Sequence[float] | None = None,
) -> Points:
    """Euler's method: first order, one evaluation a step, no gradient.

    Args:
        field: the velocity field.
        noise: samples at the first of the times.
        cond: their conditions.
        steps: number of equal steps from t = 1 to 0.
        times: falling times, in the place of equal steps.

    Raises:
        ValueError: if there are no steps, the times do not fall within [0, 1], or not exactly one of both is given.
    """
    x_t = noise
    for t, r in pairwise(chosen(steps, times)):
        x_t = x_t - (t - r) * field.velocity(x_t, t=all_rows(t, x_t), cond=cond)
    return x_t


@torch.no_grad()
def heun(
    field: VelocityField,
    noise: Points,
    *,
    cond: Cond,
    steps: int | None = None,
    times: Sequence[float] | None = None,
) -> Points:
    """Heun's method: second order, two evaluations a step, no gradient.

    The last step is as the others: on the linear path the velocity is finite at t = 0.

    Args:
        field: the velocity field.
        noise: samples at the first of the times.
        cond: their conditions.
        steps: number of equal steps from t = 1 to 0.
        times: falling times, in the place of equal steps.

    Raises:
        ValueError: if there are no steps, the times do not fall within [0, 1], or not exactly one of both is given.
    """
    x_t = noise
    for t, r in pairwise(chosen(steps, times)):
        here = field.velocity(x_t, t=all_rows(t, x_t), cond=cond)
        there = field.velocity(x_t - (t - r) * here, t=all_rows(r, x_t), cond=cond)
        x_t = x_t - (t - r) / 2 * (here + there)
    return x_t


def chosen(steps: int | None, times: Sequence[float] | None) -> Sequence[float]:
    """The times themselves, or those of equal steps."""
    if (steps is None) == (times is None):
        raise ValueError(
            f"steps={steps} and times={times} came; exactly one of both is needed: steps for equal ones from 1 to 0, "
            "times for any others"
        )
    if times is None:
        assert steps is not None
        return grid(steps)
    check(times)
    return times


def all_rows(t: float, x: Points) -> Times:
    """One time for every row, in float32 at least: bfloat16 knows only 128 times between 1/2 and 1."""
    return torch.full((len(x),), t, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


def check(times: Sequence[float]) -> None:
    """Refuse times that do not fall within [0, 1]."""
    falling = all(t > r for t, r in pairwise(times))
    if len(times) < 2 or not falling or not (times[0] <= 1 and times[-1] >= 0):
        raise ValueError(
            f"times {tuple(times)} came; at least two times are needed, each below the one before, all in [0, 1]: "
            "use (1.0, 0.0) for one step or grid(n) for n"
        )
