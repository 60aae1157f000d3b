"""From noise to image: where a flow map lands at every time, and where its teacher is then."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from hidistill.guidance import Guided
from hidistill.sampling import all_rows, euler, grid
from hidistill.seeds import normal
from hidistill.types import Cond, Images, Points, Student, VelocityField
from hidistill.view.cast import Match
from hidistill.view.pairs import seeds_of
from hidistill.view.wishes import Wish, conditions

FRAMES = 21
"""Times on the slider, both ends included."""


class Frames(NamedTuple):
    """Images at each time.

    Args:
        times: falling from 1 (noise) to 0 (data).
        teacher: images (times, b, c, h, w) along the guided teacher's trajectory.
        student: images (times, b, c, h, w) where one jump from the noise lands.
        teacher_steps: that the teacher made.
        asked: what each of the b images was asked for.
    """

    times: Sequence[float]
    teacher: torch.Tensor
    student: torch.Tensor
    teacher_steps: int
    asked: Sequence[str]


@torch.no_grad()
def along_map(student: Student, noise: Points, *, cond: Cond, times: Sequence[float]) -> list[Points]:
    """One jump from the noise to each time: `x_r = x_1 - (1 - r) u(x_1, r, 1)` (arXiv 2505.13447, eq. 12)."""
    t = all_rows(1.0, noise)
    return [
        noise - (1 - r) * student.mean_velocity(noise, t=t, r=all_rows(r, noise), cond=cond) if r < 1 else noise
        for r in times
    ]


def along_field(
    field: VelocityField, noise: Points, *, cond: Cond, times: Sequence[float], between: int = 1
) -> list[Points]:
    """Points of Euler's method at each time, with `between` steps from one to the next."""
    points = [noise]
    for t, r in pairwise(times):
        inner = [t + (r - t) * i / between for i in range(between)] + [r]
        points.append(euler(field, points[-1], cond=cond, times=inner))
    return points


def frames(match: Match, made: Wish) -> Frames:
    """The images of a wish at each of `FRAMES` times.

    Raises:
        ValueError: if an image is not finite.
    """
    times, (cond, asked) = grid(FRAMES - 1), conditions(match.space, made)
    noise = normal(seeds_of(made), match.space.shape)
    between = math.ceil(made.teacher_steps / (FRAMES - 1))
    guided = Guided(match.teacher, scale=made.scale)
    teacher = along_field(guided, noise, cond=cond, times=times, between=between)
    student = along_map(match.student, noise, cond=cond, times=times)
    return Frames(times, shown(match, teacher), shown(match, student), between * (FRAMES - 1), asked)


def shown(match: Match, points: Sequence[Points]) -> torch.Tensor:
    """Points as pixels, time by time."""
    images: list[Images] = [match.space.codec.decode(x).float().cpu() for x in points]
    stacked = torch.stack(images)
    if not stacked.isfinite().all():
        raise ValueError("an image is not finite; the weights that drew it have diverged: use others")
    return stacked
