"""Steps whose gradient is far above the usual one are skipped and counted."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Any


class TooManySpikes(ArithmeticError):
    """So many steps were skipped that skipping is no cure."""


@dataclass
class Spikes:
    """Skips the step of an update where a gradient's norm is more than `factor` times the median of recent ones.

    By the gradient and not by the loss: losses of a game go up and down and pass zero, and a clipped gradient has
    the length of any other but not its direction. Each role that the update moves has a history of its own, for the
    gradient of a discriminator may be a thousandth of the fake score's; where one spikes, the whole update is skipped.
    What was skipped does not count as recent.

    Args:
        factor: above which a step is skipped; 10 is far from what happens by chance.
        recent: norms of a role that the median is taken of; none is skipped before there are as many.
        most: steps that may be skipped in a row; one more ends the run.
    """

    factor: float = 10.0
    recent: int = 50
    most: int = 5
    norms: dict[str, deque[float]] = field(default_factory=dict, repr=False)
    skipped: int = 0
    in_a_row: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that skip everything, or never stop."""
        if self.factor <= 1 or self.recent < 1 or self.most < 1:
            raise ValueError(
                f"factor={self.factor}, recent={self.recent}, most={self.most}: the factor must be above 1 (10 is "
                "usual), the others at least 1"
            )

    def admits(self, norms: Mapping[str, float], *, where: str) -> bool:
        """Whether a step with gradients of these norms is taken; takes note of them.

        Args:
            norms: by role, before they are clipped.
            where: stage, step and update, for the message.

        Raises:
            TooManySpikes: if `most` steps in a row were skipped, and this is another one.
        """
        usual = {role: median(kept) for role, kept in self.norms.items() if len(kept) >= self.recent}
        usual = {role: norm for role, norm in usual.items() if norm > 0}  # a role that has only begun to move
        above = {role: norms[role] / usual[role] for role in norms if norms[role] > self.factor * usual.get(role, inf)}
        if not above:
            for role, norm in norms.items():
                self.norms.setdefault(role, deque()).append(norm)
                if len(self.norms[role]) > self.recent:
                    self.norms[role].popleft()
            self.in_a_row = 0
            return True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row > self.most:
            role = max(norms, key=lambda each: above.get(each, 0.0))
            whose = f" of {role}" if len(norms) > 1 else ""
            raise TooManySpikes(
                f"{where}: the gradient's norm{whose} is {norms[role]:.3g}, and {usual[role]:.3g} is usual; "
                f"{self.most} steps in a row were skipped for that already. Lower the learning rate, or look at the "
                "data of these steps"
            )
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        norms = {role: list(kept) for role, kept in self.norms.items()}
        return {"norms": norms, "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there; without the norms of a checkpoint that did not know them by role."""
        norms = state["norms"] if isinstance(state["norms"], Mapping) else {}
        self.norms = {role: deque(kept) for role, kept in norms.items()}
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
