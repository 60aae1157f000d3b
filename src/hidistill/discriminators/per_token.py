"""A verdict on every token, without pooling, as LADD has it (arXiv 2403.12015)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from hidistill.types import Logits, Tokens


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
    """One logit per token and tapped layer.

    Args:
        channels: of each tapped layer, as `Teacher.feature_channels`.
        width: of values and hidden layers.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        if not channels or min(*channels, width) < 1:
            raise ValueError(f"PerToken(channels={list(channels)}, width={width}): give at least one tapped layer")
        self.heads = nn.ModuleList(TokenHead(c, width) for c in channels)

    def forward(self, features: Sequence[Tokens]) -> Logits:
        """See `Discriminator`; (b, layers x tokens)."""
        return torch.cat([head(tokens) for head, tokens in zip(self.heads, features, strict=True)], 1)
