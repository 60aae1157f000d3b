"""GAP: pools tokens by their average; what AWD is compared with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from hidistill.types import Logits, Tokens


class PooledHead(nn.Module):
    """One tapped layer's head: the mean of the tokens' values, and a verdict on it."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.value = spectral_norm(nn.Linear(channels, width))
        self.norm_pooled = nn.LayerNorm(width)
        self.hidden = spectral_norm(nn.Linear(width, width))
        self.verdict = spectral_norm(nn.Linear(width, 1))

    def forward(self, tokens: Tokens) -> Logits:
        """(b, n, channels) -> (b, 1)."""
        z = self.norm_pooled(self.value(self.norm(tokens)).mean(1))
        return self.verdict(F.leaky_relu(self.hidden(z), 0.2))


class Pooled(nn.Module):
    """Global average pooling: one head per tapped layer, one logit each.

    Args:
        channels: of each tapped layer, as `Teacher.feature_channels`.
        width: of values and hidden layers.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        if not channels or min(*channels, width) < 1:
            raise ValueError(f"Pooled(channels={list(channels)}, width={width}): give at least one tapped layer")
        self.heads = nn.ModuleList(PooledHead(c, width) for c in channels)

    def forward(self, features: Sequence[Tokens]) -> Logits:
        """See `Discriminator`; (b, layers)."""
        return torch.cat([head(tokens) for head, tokens in zip(self.heads, features, strict=True)], 1)
