"""Progressive distillation: one step of the student lands where two steps of the round before land."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hidistill.path import interpolate, mean_per_sample, per_row
from hidistill.sampling import grid
from hidistill.types import Batch, Cond, Loss, PerSample, Points, Student, Times, VelocityField


def rounds(steps: int) -> tuple[int, ...]:
    """Steps of the student in each round: half those of the round before, down to one; `rounds(8)` is (4, 2, 1).

    Args:
        steps: Euler steps of the teacher that the first round halves.

    Raises:
        ValueError: if they are not a power of two above 1.
    """
    if steps < 2 or steps & (steps - 1):
        raise ValueError(
            f"{steps} steps came; rounds halve a power of two from 2 on down to one step: use e.g. 2, 64 or 1024"
        )
    return tuple(steps >> k for k in range(1, steps.bit_length()))


@dataclass(frozen=True)
class EulerMap:
    """A velocity field as the flow map of one Euler step, `u(x_t, r, t) = v(x_t, t)`: what the first round halves.

    In the coordinates of this path DDIM is Euler's method: both move data and noise estimates held constant.
    """

    field: VelocityField

    def mean_velocity(self, x_t: Points, *, t: Times, r: Times, cond: Cond) -> Points:
        """See `Student.mean_velocity`."""
        del r
        return self.field.velocity(x_t, t=t, cond=cond)


@dataclass(frozen=True)
class Progressive:
    """One round: `u(x_t, r, t)` becomes the mean of the previous map's two answers on the way from t to r.

    `target = 1/2 [u'(x_t, m, t) + u'(x_m, r, m)]` with m = (t + r) / 2 and `x_m = x_t - (t - m) u'(x_t, m, t)`: the
    straight line to where two steps land (arXiv 2202.00512, section 3, algorithm 2). The paper's target for the
    denoised sample is x_t - t target, so its losses are this one's times a function of t; give it as `weight`.

    Rounds are stages. The first takes `EulerMap(teacher)` for `previous`, each further one a frozen copy of the student
    as the round before left it, from whose weights it starts; `rounds` says how many steps each has. After perfect
    rounds the last map's single step is that of all the teacher's Euler steps together.

    Args:
        previous: the map whose two steps become one; frozen.
        student: what learns.
        steps: equal steps of the student's grid, from 1 (noise) to 0 (data); the previous map takes twice as many.
        weight: of a sample's loss at time t; None weighs all velocities alike.

    Raises:
        ValueError: if there are no steps, or the student is its own previous map.
    """

    previous: Student
    student: Student
    steps: int
    weight: Callable[[Times], PerSample] | None = None

    def __post_init__(self) -> None:
        """Refuse a round without steps, and a target that moves with the student."""
        grid(self.steps)
        if self.previous is self.student:
            raise ValueError(
                "the student came as its own previous map; a round needs the map of the round before, held fixed: use "
                "copy.deepcopy(student), or EulerMap(teacher) in the first round"
            )

    def __call__(self, batch: Batch) -> Loss:
        """Draw a step of the grid and noise for each row, then regress."""
        times = torch.tensor(grid(self.steps), device=batch.x.device)
        n = torch.randint(self.steps, (len(batch.x),), device=batch.x.device)
        return self.at(batch, t=times[n], r=times[n + 1], noise=torch.randn_like(batch.x))

    def at(self, batch: Batch, *, t: Times, r: Times, noise: Points) -> Loss:
        """The loss of a step from t to r, at given noise."""
        x_t = interpolate(batch.x, noise, t)
        target = self.target(x_t, t=t, r=r, cond=batch.cond)
        answer = self.student.mean_velocity(x_t, t=t, r=r, cond=batch.cond)
        error = mean_per_sample((answer - target).float().square())
        return Loss(error if self.weight is None else self.weight(t).to(error.dtype) * error)

    @torch.no_grad()
    def target(self, x_t: Points, *, t: Times, r: Times, cond: Cond) -> Points:
        """The mean velocity of two steps of the previous map."""
        middle = (t + r) / 2
        first = self.previous.mean_velocity(x_t, t=t, r=middle, cond=cond)
        x_m = x_t - per_row(t - middle, x_t) * first
        return (first + self.previous.mean_velocity(x_m, t=middle, r=r, cond=cond)) / 2
