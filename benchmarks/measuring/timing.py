"""Wall-clock of calls that take turns, so that a busy machine slows them alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

Call = Callable[[], object]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Time that passes, or that this process had a processor: on a busy machine the second says more of the work."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of several measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one or more values; a single one is its own quartiles."""
        if not values:
            raise ValueError("no measurements came; time one round or more")
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
        return cls(median(values), low, high, len(values))

    def text(self, digits: int = 3) -> str:
        """E.g. `0.52 (0.50 to 0.55)`."""
        return f"{self.median:.{digits}g} ({self.low:.{digits}g} to {self.high:.{digits}g})"


def seconds(call: Call, clock: str = "wall") -> float:
    """Seconds of one call; a GPU is waited for."""
    now = CLOCKS[clock]
    settle()
    begin = now()
    call()
    settle()
    return now() - begin


def settle() -> None:
    """Wait for a GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(calls: Mapping[str, Call], rounds: int, warmup: int = 1, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds of each call in each round; the order turns round by round."""
    for _ in range(warmup):
        for call in calls.values():
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name].append(seconds(calls[name], clock))
    return taken


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratios of paired measurements."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
