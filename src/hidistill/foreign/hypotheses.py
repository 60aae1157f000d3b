"""Which convention explains a network's answers: the one that it is read with, or another.

Clean samples are mixed with noise, and the network is asked for them under its own convention and under others. A
hypothesis is an estimate of the clean samples; what counts is what it leaves of the error of the best linear guess.
This quotient does not depend on whether errors are those of the velocity, the noise or the data. It is near 1, or
above, where a network explains nothing, and can be compared between latents of different scale: under each hypothesis
the network is shown the same mixtures of data and noise, at the time that the hypothesis gives them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from hidistill.foreign.network import Network
from hidistill.foreign.questions import Question, asked, differing, own_reading, readings
from hidistill.path import interpolate, per_row, sum_per_sample, velocity_to_data
from hidistill.seeds import fold_in, normal
from hidistill.types import Cond, PerSample, Points, Teacher, Times

EARLY, LATE = 0.1, 0.9
"""Times between which the network is asked: nearer to the ends every convention is the same, or ill-conditioned."""
BETTER, SLIGHTLY = 1.25, 1.05
"""What the configured convention leaves over what another leaves: from the first on it is wrong, from the second on
worth a look. Schedules that differ little are told apart by little."""
ERRORS = 4.0
"""Standard errors of the paired difference by which it must do so: of some hundred hypotheses none does by chance."""
EXPLAINED = 0.8
"""A hypothesis explains the data if it leaves less than this of the linear guess's error."""
ALIKE = 1.1
"""Of hypotheses that leave the same within this factor, the one that changes least is believed."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Clean samples with the noise and the times that they are mixed with.

    Args:
        x_0: clean samples.
        cond: their conditions.
        t: one time per sample, spread evenly.
        noise: one noise per sample.
    """

    x_0: Points
    cond: Cond
    t: Times
    noise: Points

    @property
    def x_t(self) -> Points:
        """The mixtures."""
        return interpolate(self.x_0, self.noise, self.t)

    @cached_property
    def size(self) -> float:
        """Sum of the squares of the velocities that lead from noise to data."""
        return float((self.noise - self.x_0).square().sum())

    @cached_property
    def linear_error(self) -> PerSample:
        """Squared error per sample of the best linear guess of x_0 from x_t, by mean and variance of each channel."""
        over = (0, *range(2, self.x_0.ndim))
        mean = self.x_0.mean(over, keepdim=True)
        variance = (self.x_0 - mean).square().mean(over, keepdim=True)
        ratio = per_row(self.t / (1 - self.t), self.x_0)
        guess = mean + variance / (variance + ratio.square()) * (self.x_0 + ratio * self.noise - mean)
        return sum_per_sample((guess - self.x_0).square()).clamp(min=1e-12)


def draws(teacher: Teacher, x_0: Points, cond: Cond, *, seed: int) -> Draws:
    """The mixtures of a test; the same for the same seed."""
    last = teacher.convention.last if isinstance(teacher, Network) else 1.0
    order = torch.randperm(len(x_0), generator=torch.Generator().manual_seed(fold_in(seed, "times")))
    t = EARLY + (min(LATE, last) - EARLY) * (order + 0.5) / len(x_0)
    noise = normal([fold_in(seed, "inspection", row) for row in range(len(x_0))], x_0.shape[1:])
    return Draws(x_0, cond, t.to(x_0), noise.to(x_0))


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """How well the network explains the samples under one convention.

    Args:
        changes: what differs from the teacher's own convention: what it is instead, by what it concerns.
        left: per sample, the logarithm of its error over the linear guess's.
        loss: `E|velocity - (noise - x_0)|^2 / E|noise - x_0|^2` of the velocity that it gives.
        cure: what to do if it is true, where that depends on more than the changes.
    """

    changes: Mapping[str, str]
    left: PerSample
    loss: float
    cure: str = ""

    @cached_property
    def rest(self) -> float:
        """What it leaves of the linear guess's error, geometric mean over the samples."""
        return math.exp(float(self.left.mean()))

    @property
    def words(self) -> str:
        """What it leaves, in words."""
        return f"{self.rest:.0%}" if self.rest < 10 else f"{self.rest:.2g} times as much"

    @property
    def explains(self) -> bool:
        """Whether it explains the samples clearly better than the linear guess."""
        return self.rest < EXPLAINED and certain(-self.left)

    def beats(self, other: "Hypothesis", *, by: float) -> bool:
        """Whether it explains the samples, and leaves less than another by a factor that is no chance."""
        return by * self.rest < other.rest and self.explains and certain(other.left - self.left)


def certain(gain: PerSample) -> bool:
    """Whether the mean of a gain is above 0 by no chance."""
    return float(gain.mean()) > ERRORS * float(gain.std()) / math.sqrt(len(gain))


def best(own: Hypothesis, others: Iterable[Hypothesis], *, by: float = BETTER) -> Hypothesis | None:
    """The hypothesis to believe in the place of the configured one; None if that stands."""
    winners = [other for other in others if other.beats(own, by=by)]
    if not winners:
        return None
    least = min(winner.rest for winner in winners)
    return min(
        (winner for winner in winners if winner.rest <= ALIKE * least),
        key=lambda winner: (len(winner.changes), winner.rest),
    )


def configured(teacher: Teacher, drawn: Draws) -> Hypothesis:
    """The teacher's own convention; one pass through the network."""
    velocity = teacher.velocity(drawn.x_t, t=drawn.t, cond=drawn.cond)
    return judged(drawn, {}, velocity_to_data(velocity, drawn.x_t, drawn.t))


def hypotheses(teacher: Teacher, drawn: Draws, questions: Iterable[Question]) -> Iterator[Hypothesis]:
    """Every other reading of the answers to some questions, each of them one pass through the network."""
    own = own_reading(teacher)
    for question in questions:
        space, std = question.space, question.data_std
        alpha, sigma = per_row(question.alpha, drawn.x_0), per_row(question.sigma, drawn.x_0)
        mixture = (alpha / std) * space.of(drawn.x_0.double()) + sigma * drawn.noise.double()
        answer = asked(teacher, mixture.to(drawn.x_0), time=question.time, cond=drawn.cond).double()
        for reading, (kept, taken) in readings(alpha, sigma).items():
            changes = {**question.changes, **differing(own, reading, foreign="schedule" in question.changes)}
            if changes:
                guess = std * (kept * mixture + taken * answer)
                yield judged(drawn, changes, space.undone(guess), space.cure)


def judged(drawn: Draws, changes: Mapping[str, str], guess: Points, cure: str = "") -> Hypothesis:
    """A hypothesis by the clean samples that it makes of the answers."""
    errors = (guess.to(drawn.x_0) - drawn.x_0).square()
    loss = float((errors / per_row(drawn.t, errors).square()).sum()) / drawn.size
    # An answer beyond all numbers explains nothing, and must not make the average one.
    left = (sum_per_sample(errors).clamp(min=1e-30) / drawn.linear_error).log().nan_to_num(nan=50.0, posinf=50.0)
    return Hypothesis(changes, left, loss, cure)
