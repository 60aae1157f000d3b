"""Steps whose gradient is far above the usual one are skipped and counted."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any


class TooManySpikes(ArithmeticError):
    """So many steps were skipped that skipping is no cure."""


@dataclass
class Spikes:
    """Skips the step of an update whose gradient's norm is more than `factor` times the median of recent ones.

    By the gradient and not by the loss: losses of a game go up and down and pass zero, and a clipped gradient has
    the length of any other but not its direction. What was skipped does not count as recent.

    Args:
        factor: above which a step is skipped; 10 is far from what happens by chance.
        recent: norms that the median is taken of; none is skipped before there are as many.
        most: steps that may be skipped in a row; one more ends the run.
    """

    factor: float = 10.0
    recent: int = 50
    most: int = 5
    norms: deque[float] = field(default_factory=deque, repr=False)
    skipped: int = 0
    in_a_row: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that skip everything, or never stop."""
        if self.factor <= 1 or self.recent < 1 or self.most < 1:
            raise ValueError(
                f"factor={self.factor}, recent={self.recent}, most={self.most}: the factor must be above 1 (10 is "
                "usual), the others at least 1"
            )

    def admits(self, norm: float, *, where: str) -> bool:
        """Whether a step with a gradient of this norm is taken; takes note of it.

        Args:
            norm: of the gradient, before it is clipped.
            where: stage, step and update, for the message.

        Raises:
            TooManySpikes: if `most` steps in a row were skipped, and this is another one.
        """
        usual = median(self.norms) if len(self.norms) >= self.recent else None
        if usual is None or norm <= self.factor * usual:
            self.norms.append(norm)
            if len(self.norms) > self.recent:
                self.norms.popleft()
            self.in_a_row = 0
            return True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row > self.most:
            raise TooManySpikes(
                f"{where}: the gradient's norm is {norm:.3g}, and {usual:.3g} is usual; {self.most} steps in a row "
                "were skipped for that already. Lower the learning rate, or look at the data of these steps"
            )
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"norms": list(self.norms), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.norms, self.skipped, self.in_a_row = deque(state["norms"]), state["skipped"], state["in_a_row"]
