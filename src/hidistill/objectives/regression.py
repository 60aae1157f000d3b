"""Direct regression: the student's jump from noise ends where the teacher's whole trajectory ends."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from hidistill import sampling
from hidistill.path import mean_per_sample
from hidistill.types import Batch, Cond, Loss, NoiseLaw, PerSample, Points, Student, VelocityField


@runtime_checkable
class Solver(Protocol):
    """An ODE solver on equal steps from t = 1 to 0: `sampling.euler` or `sampling.heun`."""

    def __call__(self, field: VelocityField, noise: Points, /, *, cond: Cond, steps: int) -> Points:
        """Where the noise ends, without gradient."""
        ...


@runtime_checkable
class Distance(Protocol):
    """How far an answer is from its target."""

    def __call__(self, answer: Points, target: Points, /) -> PerSample:
        """One distance per sample, in float32."""
        ...


@runtime_checkable
class Pairs(Protocol):
    """Where pairs come from."""

    def __call__(self, batch: Batch) -> tuple[Points, Points]:
        """Noise, and the end of the teacher's trajectory from it, for the conditions of the batch."""
        ...


@dataclass(frozen=True)
class Paired(Batch):
    """A batch of stored pairs: `x` are the ends of the teacher's trajectories, `noise` is where they began."""

    noise: Points = field(kw_only=True)


@dataclass(frozen=True)
class Solved:
    """Pairs that are made when they are needed: noise is drawn, and the field integrated. No data takes part.

    Args:
        field: whose ends are learned; a guided teacher.
        steps: of the solver, for each batch anew.
        solver: `sampling.heun`, two evaluations a step, or `sampling.euler`, one.
        noise: draws the path's end at t = 1; as the field has learned it.

    Raises:
        ValueError: if there are no steps.
    """

    field: VelocityField
    steps: int
    solver: Solver = sampling.heun
    noise: NoiseLaw = torch.randn_like

    def __post_init__(self) -> None:
        """Refuse an integration without steps."""
        sampling.grid(self.steps)

    def __call__(self, batch: Batch) -> tuple[Points, Points]:
        """See `Pairs`."""
        noise = self.noise(batch.x)
        return noise, self.solver(self.field, noise, cond=batch.cond, steps=self.steps)


def stored(batch: Batch) -> tuple[Points, Points]:
    """The pairs that a `Paired` batch brings.

    Raises:
        TypeError: if the batch brings none.
    """
    if not isinstance(batch, Paired):
        raise TypeError(
            f"a {type(batch).__name__} came; stored pairs need the noise of each end: give batches as "
            "Paired(x=ends, cond=cond, noise=noise), or make pairs on the way by Solved(field, steps=...)"
        )
    return batch.noise, batch.x


def squared(answer: Points, target: Points) -> PerSample:
    """Squared error, mean over the components."""
    return mean_per_sample((answer - target).float().square())


@dataclass(frozen=True)
class Regression:
    """Regression of pairs: `distance(noise - u(noise, 0, 1), end)` (arXiv 2101.02388; 2311.18828, section 3.3).

    The plainest distillation, and with a deterministic teacher one without bias; but it costs the whole trajectory for
    a sample, and only the jump from 1 to 0 learns.

    Args:
        student: what learns.
        pairs: where the pairs come from: `stored`, or `Solved(field, steps=...)`.
        distance: `squared`, or a perceptual one, as the papers take.
    """

    student: Student
    pairs: Pairs
    distance: Distance = squared

    def __call__(self, batch: Batch) -> Loss:
        """Take the pairs, then regress."""
        noise, end = self.pairs(batch)
        return self.at(batch, noise=noise, end=end)

    def at(self, batch: Batch, *, noise: Points, end: Points) -> Loss:
        """The loss of given pairs."""
        return Loss(self.distance(sampling.jump(self.student, noise, cond=batch.cond), end))
