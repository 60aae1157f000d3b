"""GAP: pools tokens by their average; what AWD is compared with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from hidistill.types import Cond, Logits, Times, Tokens


class PooledHead(nn.Module):
    """One tapped layer's head: the value of the tokens' mean (the mean of their values), and a verdict on it."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.value = spectral_norm(nn.Linear(channels, width))
        self.norm_pooled = nn.LayerNorm(width)
        self.hidden = spectral_norm(nn.Linear(width, width))
        self.verdict = spectral_norm(nn.Linear(width, 1))

    def forward(self, tokens: Tokens) -> Logits:
        """(b, n, channels) -> (b, 1)."""
        z = self.norm_pooled(self.value(self.norm(tokens).mean(1)))
        return self.verdict(F.leaky_relu(self.hidden(z), 0.2))


class Pooled(nn.Module):
    """Global average pooling: one head per judged layer, one logit each.

    Args:
        channels: of each tapped layer, as `Teacher.feature_channels`.
        width: of values and hidden layers.
        layers: indices of the tapped layers that are judged, in this order; None is all.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 64, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        chosen = tuple(range(len(channels)) if layers is None else layers)
        if not channels or not chosen or min(*channels, width) < 1 or not set(chosen) <= set(range(len(channels))):
            raise ValueError(
                f"Pooled(channels={list(channels)}, width={width}, layers={layers}): give at least one tapped layer, "
                "positive numbers, and layers that exist"
            )
        self.channels, self.layers = tuple(channels), chosen
        self.heads = nn.ModuleList(PooledHead(channels[layer], width) for layer in chosen)

    def forward(self, features: Sequence[Tokens], *, t: Times, cond: Cond) -> Logits:
        """See `Discriminator`; (b, judged layers)."""
        del t, cond
        if len(features) != len(self.channels):
            raise ValueError(f"features of {len(features)} layers came to a head on {len(self.channels)}; rebuild it")
        return torch.cat([head(features[i]) for head, i in zip(self.heads, self.layers, strict=True)], 1)
