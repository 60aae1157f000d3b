"""AWD, the adaptive weighted discriminator: pools tokens by attention with learned queries (arXiv 2511.08930)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from hidistill.types import Logits, Tokens


class AdaptiveHead(nn.Module):
    """One tapped layer's head: `w = softmax(q K^T / sqrt(d))` over the tokens, `z = w V`, a verdict on z.

    K and V are spectrally normalized linear maps of the layer-normalized tokens, and so are the verdict's two layers.
    A query of zero weighs every token alike, which is average pooling. Keys have no bias: it would add the same to
    every token's score, which the softmax takes away again.

    Args:
        channels: of the tokens.
        width: d, of keys, values and the verdict's hidden layer.
        queries: number of learned queries, one logit each.
    """

    def __init__(self, channels: int, width: int, queries: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.key = spectral_norm(nn.Linear(channels, width, bias=False))
        self.value = spectral_norm(nn.Linear(channels, width))
        self.queries = nn.Parameter(0.02 * torch.randn(queries, width))
        self.norm_pooled = nn.LayerNorm(width)
        self.hidden = spectral_norm(nn.Linear(width, width))
        self.verdict = spectral_norm(nn.Linear(width, 1))

    def attention(self, tokens: Tokens) -> Tensor:
        """Weights (b, queries, n) of the tokens, which sum to 1."""
        return self.weights(self.norm(tokens))

    def weights(self, h: Tokens) -> Tensor:
        """Attention over normalized tokens."""
        scores = self.queries @ self.key(h).transpose(1, 2) / self.queries.shape[1] ** 0.5
        return scores.softmax(2, dtype=torch.promote_types(scores.dtype, torch.float32))

    def forward(self, tokens: Tokens) -> tuple[Logits, Tensor]:
        """One logit per query, and the attention."""
        h = self.norm(tokens)
        weights = self.weights(h)
        z = self.norm_pooled(weights.to(h.dtype) @ self.value(h))
        return self.verdict(F.leaky_relu(self.hidden(z), 0.2)).squeeze(2), weights


class Adaptive(nn.Module):
    """AWD: one attention-pooling head per tapped layer; all their logits.

    Args:
        channels: of each tapped layer, as `Teacher.feature_channels`.
        width: of keys, values and hidden layers.
        queries: learned queries per layer.

    Raises:
        ValueError: if there is no layer, or a number is not positive.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 64, queries: int = 2) -> None:
        super().__init__()
        if not channels or min(*channels, width, queries) < 1:
            raise ValueError(
                f"Adaptive(channels={list(channels)}, width={width}, queries={queries}): it needs at least one tapped "
                "layer, and positive numbers"
            )
        self.heads = nn.ModuleList(AdaptiveHead(c, width, queries) for c in channels)

    def forward(self, features: Sequence[Tokens]) -> Logits:
        """See `Discriminator`; (b, layers x queries)."""
        return torch.cat([head(tokens)[0] for head, tokens in zip(self.heads, features, strict=True)], 1)

    @torch.no_grad()
    def attention(self, features: Sequence[Tokens]) -> list[Tensor]:
        """The weights (b, queries, n) of each tapped layer.

        Looking changes nothing: in training mode a forward pass would move the spectral norms' estimates.
        """
        mode = self.training
        self.eval()
        try:
            return [head.attention(tokens) for head, tokens in zip(self.heads, features, strict=True)]  # type: ignore[operator]
        finally:
            self.train(mode)


def normalized_entropy(weights: Tensor) -> Tensor:
    """Entropy over the last dimension divided by log n: 1 is average pooling, 0 is one token of several."""
    if weights.shape[-1] == 1:
        return torch.ones_like(weights[..., 0])
    return torch.special.entr(weights).sum(-1) / math.log(weights.shape[-1])
