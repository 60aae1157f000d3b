"""A verdict on every token, without pooling, as LADD has it (arXiv 2403.12015)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from hidistill.types import Cond, Logits, Times, Tokens


class TokenHead(nn.Module):
    """One tapped layer's head: the same verdict for each token by itself."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.value = spectral_norm(nn.Linear(channels, width))
        self.hidden = spectral_norm(nn.Linear(width, width))
        self.verdict = spectral_norm(nn.Linear(width, 1))

    def forward(self, tokens: Tokens) -> Logits:
        """(b, n, channels) -> (b, n)."""
        z = F.leaky_relu(self.value(self.norm(tokens)), 0.2)
        return self.verdict(F.leaky_relu(self.hidden(z), 0.2)).squeeze(2)


class PerToken(nn.Module):
    """One logit per token and judged layer.

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
                f"PerToken(channels={list(channels)}, width={width}, layers={layers}): give at least one tapped layer, "
                "positive numbers, and layers that exist"
            )
        self.channels, self.layers = tuple(channels), chosen
        self.heads = nn.ModuleList(TokenHead(channels[layer], width) for layer in chosen)

    def forward(self, features: Sequence[Tokens], *, t: Times, cond: Cond) -> Logits:
        """See `Discriminator`; (b, judged layers x tokens)."""
        del t, cond
        if len(features) != len(self.channels):
            raise ValueError(f"features of {len(features)} layers came to a head on {len(self.channels)}; rebuild it")
        return torch.cat([head(features[i]) for head, i in zip(self.heads, self.layers, strict=True)], 1)
