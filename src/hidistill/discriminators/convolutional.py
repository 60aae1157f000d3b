"""A strided convolution over the tokens' grid, then average pooling: the usual head on an image transformer."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hidistill.types import Cond, Logits, Times, Tokens


class ConvolutionalHead(nn.Module):
    """One tapped layer's head: a convolution that halves the grid, a verdict at each of its places, their mean.

    Normalization is by groups of at least 8 channels, 32 groups at most, so that a grid of one place is not
    normalized away.

    Args:
        channels: of the tokens.
        width: channels of the convolution.
        grid: rows and columns of the tokens; None is the square that they fill.
    """

    def __init__(self, channels: int, width: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid = grid
        groups = next(
            count for count in (32, 16, 8, 4, 2, 1) if width % count == 0 and (width >= 8 * count or count == 1)
        )
        self.convolution = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups, width)
        self.verdict = nn.Conv2d(width, 1, 1)

    def forward(self, tokens: Tokens) -> Logits:
        """(b, n, channels) -> (b, 1)."""
        rows, columns = self.grid or square(tokens.shape[1])
        if rows * columns != tokens.shape[1] or min(rows, columns) < 2:
            raise ValueError(
                f"{tokens.shape[1]} tokens came for a grid of {rows} x {columns}; the grid must hold them all, and a "
                "convolution with stride 2 needs 2 x 2 or more: give grid=(rows, columns), or take a pooling head"
            )
        image = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return self.verdict(F.leaky_relu(self.norm(self.convolution(image)), 0.2)).mean((2, 3))


class Convolutional(nn.Module):
    """One convolution with kernel 4 and stride 2 per judged layer, average pooling, one logit each.

    It sees how neighboring tokens lie to each other, which attention pooling and plain averages do not. Weights are
    not bounded, as in public implementations of distribution matching: R1 is what holds its slope down.

    Args:
        channels: of each tapped layer, as `Teacher.feature_channels`.
        width: channels of the convolution.
        layers: indices of the tapped layers that are judged, in this order; None is all.
        grid: rows and columns of the tokens; None is the square that they fill.

    Raises:
        ValueError: if there is no layer or a number is out of range; when called, if the tokens fill no such grid.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        width: int = 64,
        layers: Sequence[int] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        chosen = tuple(range(len(channels)) if layers is None else layers)
        if not channels or not chosen or min(*channels, width) < 1 or not set(chosen) <= set(range(len(channels))):
            raise ValueError(
                f"Convolutional(channels={list(channels)}, width={width}, layers={layers}): give at least one tapped "
                "layer, positive numbers, and layers that exist"
            )
        self.channels, self.layers = tuple(channels), chosen
        self.heads = nn.ModuleList(ConvolutionalHead(channels[layer], width, grid) for layer in chosen)

    def forward(self, features: Sequence[Tokens], *, t: Times, cond: Cond) -> Logits:
        """See `Discriminator`; (b, judged layers)."""
        del t, cond
        if len(features) != len(self.channels):
            raise ValueError(f"features of {len(features)} layers came to a head on {len(self.channels)}; rebuild it")
        return torch.cat([head(features[i]) for head, i in zip(self.heads, self.layers, strict=True)], 1)


def square(tokens: int) -> tuple[int, int]:
    """The square that a number of tokens fills.

    Raises:
        ValueError: if there is none.
    """
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ValueError(f"{tokens} tokens fill no square; give grid=(rows, columns), whose product is {tokens}")
    return side, side
