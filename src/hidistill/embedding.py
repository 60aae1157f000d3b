"""Embeddings of times in [0, 1], and of places in a row or a square."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidistill.types import Times


class TimeEmbedding(nn.Module):
    """Sinusoids of a time in [0, 1], then a two-layer perceptron; in float32 under autocast too.

    Eight bits of an embedding are too few: the derivative along t is the embedding's, and what it costs to take it in
    float32 is one row per sample. Weights that were lowered to bfloat16 are raised for it.

    Args:
        dim: of the embedding.
        sinusoids: cosines and sines together.
        highest: frequency in rad per unit of time; the lowest is 1.
    """

    frequencies: Tensor

    def __init__(self, dim: int, sinusoids: int = 64, highest: float = 32.0) -> None:
        super().__init__()
        ramp = torch.arange(sinusoids // 2) / (sinusoids // 2 - 1)
        self.register_buffer("frequencies", highest**ramp, persistent=False)
        self.layers = nn.Sequential(nn.Linear(sinusoids, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Times) -> Tensor:
        """(b,) -> (b, dim)."""
        lowers = t.device.type != "meta"  # which knows no autocast
        with torch.autocast(t.device.type, enabled=False) if lowers else nullcontext():
            angles = t[:, None] * self.frequencies.to(t.dtype)
            sinusoids = torch.cat([angles.cos(), angles.sin()], 1)
            return raised(self.layers[2], F.silu(raised(self.layers[0], sinusoids)))


def raised(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer in the precision of its input, where its own is bfloat16."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    if weight.dtype == torch.bfloat16:
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return F.linear(x, weight, bias)


def interval_embedding(dim: int) -> TimeEmbedding:
    """The embedding of an interval's length t - r, zero at start.

    Its frequencies are low, for the target of MeanFlow holds the derivative along them.
    """
    embedding = TimeEmbedding(dim, highest=4.0)
    last = embedding.layers[2]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return embedding


def sinusoids(count: int, dim: int) -> Tensor:
    """Fixed sines and cosines of the places 0 to count - 1 in a row, (count, dim) (arXiv 1706.03762, section 3.5)."""
    omega = 10_000 ** -(torch.arange(dim // 2) / (dim // 2))
    angles = torch.arange(count)[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], 1)


def position_embedding(grid: int, dim: int) -> Tensor:
    """Fixed sinusoids of row and column, (grid^2, dim), as in arXiv 2212.09748."""
    axis = sinusoids(grid, dim // 2)
    rows, columns = axis[:, None].expand(grid, grid, -1), axis[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], 2).reshape(grid * grid, dim)
