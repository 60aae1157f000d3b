"""Heads of equal size, so that a comparison is one of kinds."""

from collections.abc import Callable

import torch
from torch import nn


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def matched_width(build: Callable[[int], nn.Module], target: int, *, widest: int = 8192) -> int:
    """The width at which a head learns about as many numbers as another, the nearest that there is.

    Heads of several widths are built to be counted; torch's generator is left as it was.

    Args:
        build: the head of a width, which must learn more the wider it is; e.g. `lambda w: Pooled(channels, width=w)`.
        target: as `parameters` of the other head.
        widest: largest width that is tried.

    Raises:
        ValueError: if the narrowest head is larger than the target, or the widest smaller.
    """

    def count(width: int) -> int:
        with torch.random.fork_rng(devices=[]):
            return parameters(build(width))

    low, high = 1, 1
    while count(high) < target and high < widest:
        low, high = high, min(2 * high, widest)
    if not count(low) <= target <= count(high):
        raise ValueError(
            f"target={target}: this kind of head learns {count(low)} numbers at width {low} and {count(high)} at width "
            f"{high}, the last that was tried; give the size of a head on the same layers, or a larger widest"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= target else (low, middle)
    return min((low, high), key=lambda width: abs(count(width) - target))
