"""MeanFlow distillation: the student learns the mean velocity along a teacher's trajectories (the sketch stage)."""

from dataclasses import dataclass

import torch

from hidistill.path import interpolate, per_row, rows_of, sum_per_sample
from hidistill.share import anywhere
from hidistill.times import LogitNormal, sample_pair
from hidistill.types import Batch, Derivative, Loss, NoiseLaw, Points, Student, TimeLaw, Times, VelocityField


@dataclass(frozen=True)
class MeanFlow:
    """Regression of the MeanFlow identity along a field.

    `u(x_t, r, t) = v(x_t, t) - (t - r) d/dt u(x_t, r, t)` (arXiv 2505.13447, eq. 6), with the guided teacher for v
    (arXiv 2511.08930, stage 1), so that the target is a function of (x_t, r, t). The right side is held constant. Each
    sample's squared error e, summed over its components, is divided by `(e + offset)^power`, held constant too
    (arXiv 2505.13447, section 4.3).

    Without a field it is MeanFlow from data alone, the control of a distillation: v is the conditional velocity
    noise - x_0, as the target and as the direction of the derivative (arXiv 2505.13447, eq. 9 and 10). In expectation,
    without the weight, its gradient is that with the marginal field of the data; each sample's scatters about it.

    Args:
        field: whose trajectories are followed; a guided teacher. None learns from data.
        student: what learns.
        derivative: takes d/dt u, only for the rows with r < t.
        times: distribution that t and r are drawn from, and sorted.
        instantaneous: share of the rows with r = t, whose target is v itself.
        power: 0 is the plain squared error; with 1 every sample counts alike in the loss, so that small errors, those
            of short intervals, pull hardest; with 1/2 all gradients are of a size.
        offset: keeps small errors from pulling without limit.
        warmup_steps: steps over which the derivative's term grows from 0 to its full size (arXiv 2410.11081, 4.2).
        noise: draws the path's end at t = 1; as the field has learned it.
    """

    field: VelocityField | None
    student: Student
    derivative: Derivative
    times: TimeLaw = LogitNormal(-0.4, 1.0)
    instantaneous: float = 0.75
    power: float = 1.0
    offset: float = 1e-2
    warmup_steps: int = 0
    noise: NoiseLaw = torch.randn_like

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1] and negative numbers."""
        if not 0.0 <= self.instantaneous <= 1.0:
            raise ValueError(f"instantaneous={self.instantaneous}: the share of rows with r = t must be in [0, 1]")
        if self.power < 0 or self.offset <= 0 or self.warmup_steps < 0:
            raise ValueError(
                f"power={self.power}, offset={self.offset}, warmup_steps={self.warmup_steps}: "
                "power and warmup_steps must not be negative, offset must be positive"
            )

    def __call__(self, batch: Batch) -> Loss:
        """Draw times and noise, then regress."""
        t, r, count = sample_pair(self.times, batch.x, instantaneous=self.instantaneous)
        return self.at(batch, t=t, r=r, noise=self.noise(batch.x), first=count)

    def at(self, batch: Batch, *, t: Times, r: Times, noise: Points, first: int = 0) -> Loss:
        """The loss at given times and noise; rows before `first` have r = t and need no derivative."""
        x_t = interpolate(batch.x, noise, t)
        target = self.target(x_t, batch, t=t, r=r, first=first, noise=noise)
        answer = self.student.mean_velocity(x_t, t=t, r=r, cond=batch.cond)
        error = sum_per_sample((answer - target).float().square())
        weight = (error.detach() + self.offset) ** -self.power
        return Loss(weight * error, {"mse": error.detach().mean() / batch.x[0].numel()})

    @torch.no_grad()
    def target(
        self, x_t: Points, batch: Batch, *, t: Times, r: Times, first: int, noise: Points | None = None
    ) -> Points:
        """`v - k (t - r) du/dt`, with k the warm-up's factor; `noise` is needed where there is no field."""
        v = self.direction(x_t, batch, t=t, noise=noise)
        ramp = min(1.0, (batch.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if not anywhere(first < len(x_t)):
            return v
        first = min(first, len(x_t) - 1)  # another process needs a derivative: this one takes it where t - r is 0
        cond = rows_of(batch.cond, slice(first, None))
        du = self.derivative(self.student, x_t[first:], t=t[first:], r=r[first:], cond=cond, direction=v[first:])
        correction = ramp * per_row((t - r)[first:], du) * du
        return torch.cat([v[:first], v[first:] - correction])

    def direction(self, x_t: Points, batch: Batch, *, t: Times, noise: Points | None) -> Points:
        """The field's velocity, or that of data and noise."""
        if self.field is not None:
            return self.field.velocity(x_t, t=t, cond=batch.cond)
        if noise is None:
            raise ValueError(
                "neither a field nor noise came; the velocity is the field's or noise - x_0: give target(noise=...) "
                "the noise of x_t, or MeanFlow a field"
            )
        return noise - batch.x
