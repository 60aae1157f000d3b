"""Which of two a person prefers, with an exact interval.

Of n votes that were no tie, k went to the first. k is binomial if votes are independent; the interval for its
probability is that of Clopper and Pearson (Biometrika 26, 1934), which covers at least as often as it says for every n.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

CONFIDENCE = 0.95


class Preference(NamedTuple):
    """Votes for the first, for the second, and for neither."""

    first: int
    second: int
    ties: int = 0

    @property
    def decided(self) -> int:
        """Votes that were no tie."""
        return self.first + self.second

    @property
    def share(self) -> float:
        """Of the decided votes, those for the first; 0.5 where there are none."""
        return self.first / self.decided if self.decided else 0.5

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies with 95 % confidence, exactly."""
        return exact_interval(self.first, self.decided)

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves out one half."""
        low, high = self.interval
        return low > 0.5 or high < 0.5


def tail(k: int, n: int, p: float) -> float:
    """P(X >= k) of a binomial law with n trials of probability p."""
    if k <= 0 or p >= 1:
        return 1.0
    if k > n or p <= 0:
        return 0.0
    log_n = math.lgamma(n + 1)
    return min(
        1.0,
        math.fsum(
            math.exp(log_n - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p))
            for i in range(k, n + 1)
        ),
    )


def exact_interval(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of Clopper and Pearson for k successes of n; (0, 1) where there are no trials.

    Raises:
        ValueError: if there cannot be so many successes.
    """
    if not 0 <= k <= n or not 0 < confidence < 1:
        raise ValueError(f"{k} of {n} at confidence {confidence}: successes are 0 to n, confidence is within (0, 1)")
    beyond = (1 - confidence) / 2
    low = 0.0 if k == 0 else crossing(lambda p: tail(k, n, p) - beyond)
    high = 1.0 if k == n else crossing(lambda p: beyond - (1 - tail(k + 1, n, p)))
    return low, high


def crossing(rising: Callable[[float], float]) -> float:
    """Where a function that rises on [0, 1] is zero, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def sign_test(first: int, second: int) -> float:
    """Two-sided probability of votes as uneven as these if both were liked alike: twice the exact tail, at most 1."""
    n = first + second
    return min(1.0, 2 * tail(max(first, second), n, 0.5)) if n else 1.0


def sentence(votes: Preference, first: str, second: str) -> str:
    """The preference in words, with its interval and what it does not say."""
    ties = f" {votes.ties} more saw no difference." if votes.ties else ""
    if not votes.decided:
        return f"No vote has decided between {first} and {second} yet.{ties}"
    low, high = votes.interval
    chance = sign_test(votes.first, votes.second)
    said = (
        f"{first} was preferred in {votes.first} of {votes.decided} votes: {votes.share:.1%}, "
        f"95 % interval {low:.1%} to {high:.1%} (exact binomial).{ties} "
    )
    if votes.resolved:
        better, worse = (first, second) if votes.first > votes.second else (second, first)
        return said + f"{better} is preferred to {worse} (sign test, p = {chance:.2g})."
    return said + f"That does not resolve which is preferred (sign test, p = {chance:.2g})."
