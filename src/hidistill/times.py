"""Distributions of t, and of pairs (t, r) with r <= t."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hidistill.share import leading
from hidistill.types import TimeLaw, Times


@dataclass(frozen=True)
class Uniform:
    """t uniform in [low, high]."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an interval outside [0, 1]."""
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(
                f"Uniform({self.low}, {self.high}): times need 0 <= low < high <= 1; t = 0 is data, t = 1 is noise"
            )

    def sample(self, like: Tensor) -> Times:
        """One time per row of `like`."""
        return self.low + (self.high - self.low) * torch.rand(len(like), device=like.device)


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(mean + std n), n standard normal (arXiv 2403.03206, section 3.1): a positive mean prefers noise."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a spread that is not positive."""
        if self.std <= 0:
            raise ValueError(f"LogitNormal(std={self.std}): std must be positive")

    def sample(self, like: Tensor) -> Times:
        """One time per row of `like`."""
        return torch.sigmoid(self.mean + self.std * torch.randn(len(like), device=like.device))


@dataclass(frozen=True)
class Arcsine:
    """t = sin^2(pi u / 2), u uniform: the ends of [0, 1] come often, the middle too (a third lies in [1/4, 3/4])."""

    def sample(self, like: Tensor) -> Times:
        """One time per row of `like`."""
        return torch.sin(torch.rand(len(like), device=like.device) * (torch.pi / 2)).square()


def sample_pair(law: TimeLaw, like: Tensor, *, instantaneous: float) -> tuple[Times, Times, int]:
    """Pairs r <= t: two draws, sorted; the first rows get r = t (arXiv 2505.13447, section 4.3).

    Which rows are instantaneous does not depend on chance, so that the rows that need a derivative are one slice.

    Args:
        law: distribution of both times.
        like: tensor whose rows get one pair each.
        instantaneous: share of rows with r = t, in [0, 1].

    Returns:
        t, r, and the number of leading rows that have r = t.
    """
    first, second = law.sample(like), law.sample(like)
    t, r = torch.maximum(first, second), torch.minimum(first, second)
    count = leading(len(like), instantaneous)
    return t, torch.cat([t[:count], r[count:]]), count
