"""How long the rest will take."""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from hidistill.train.stage import Stage


class Pace:
    """Seconds per step of a stage: the median over the recent periods of its updates.

    A step in which every update runs may cost several times the others, so the median of single steps would forget it.

    Args:
        stage: the stage that is timed.
        recent: number of periods that count.
    """

    def __init__(self, stage: Stage, recent: int = 20) -> None:
        self.period = min(64, math.lcm(*(update.every for update in stage.updates.values())))
        self.begun: list[float] = []
        self.periods: deque[float] = deque(maxlen=recent)

    def add(self, seconds: float) -> None:
        """Take in one step."""
        self.begun.append(seconds)
        if len(self.begun) == self.period:
            self.periods.append(sum(self.begun) / self.period)
            self.begun.clear()

    @property
    def seconds_per_step(self) -> float | None:
        """The estimate; None before the first step."""
        if self.periods:
            return median(self.periods)
        return sum(self.begun) / len(self.begun) if self.begun else None


class Clock:
    """Estimates the seconds that are left of a run.

    Args:
        stages: all stages of the run.
        probe_every: steps between two probes; 0 is never.
    """

    def __init__(self, stages: Sequence[Stage], probe_every: int) -> None:
        self.stages, self.probe_every = stages, probe_every
        self.paces = [Pace(stage) for stage in stages]
        self.probes: deque[float] = deque(maxlen=5)

    def seconds_left(self, stage: int, step: int) -> float | None:
        """Seconds until the last stage's end; a stage without a step so far is taken to be as fast as this one."""
        here = self.paces[stage].seconds_per_step if stage < len(self.stages) else 0.0
        if here is None:
            return None
        left, probes = 0.0, 0
        for index in range(stage, len(self.stages)):
            done = step if index == stage else 0
            rest = self.stages[index].steps - done
            left += rest * (self.paces[index].seconds_per_step or here)
            probes += math.ceil(rest / self.probe_every) if self.probe_every else 0
        return left + (probes * median(self.probes) if self.probes else 0.0)
