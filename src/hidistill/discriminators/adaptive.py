"""AWD, the adaptive weighted discriminator: pools tokens by attention with learned queries (arXiv 2511.08930)."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from hidistill.embedding import TimeEmbedding
from hidistill.types import Cond, Labels, Logits, Times, Tokens

QUERY_STD = 0.02
"""Of the queries' components at the start: nearly average pooling."""


def unbounded(layer: nn.Linear) -> nn.Linear:
    """The layer as it is: what stands in for spectral normalization where there is none."""
    return layer


class AdaptiveHead(nn.Module):
    """One tapped layer's head: `w = softmax(q K^T / sqrt(d))` over the tokens, `z = w V`, a verdict on z.

    K and V are spectrally normalized linear maps of the layer-normalized tokens, and so are the verdict's two layers.
    A query of zero weighs every token alike, which is average pooling. Keys have no bias: it would add the same to
    every token's score, which the softmax takes away again.

    Neither keys nor values are made of every token: `q (W_k h)^T = (q W_k) h^T`, and since weights sum to 1,
    `w (W_v h + b) = W_v (w h) + b`. Tokens are met by m queries and by m pooled vectors alone, d / m times cheaper.

    Args:
        channels: of the tokens.
        width: d, of keys, values and the verdict's hidden layer.
        queries: number of learned queries, one logit each.
        query_std: of the queries' components at the start; see `Adaptive`.
        bound: what holds a linear layer's slope down.
        norm: normalization of the tokens, and of what is pooled from them, for a number of channels.
        sinusoids: of the time in the query; 0 leaves the time out.
        classes: in the query, beside the null class; None leaves the condition out.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        queries: int,
        *,
        query_std: float = QUERY_STD,
        bound: Callable[[nn.Linear], nn.Module] = spectral_norm,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        sinusoids: int = 0,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.key = bound(nn.Linear(channels, width, bias=False))
        self.value = bound(nn.Linear(channels, width))
        self.queries = nn.Parameter(query_std * torch.randn(queries, width))
        self.norm_pooled = norm(width)
        self.hidden = bound(nn.Linear(width, width))
        self.verdict = bound(nn.Linear(width, 1))
        self.time = TimeEmbedding(width, sinusoids) if sinusoids else None
        self.label = nn.Embedding(classes + 1, width) if classes is not None else None
        # Small, like the queries: the head begins near average pooling at every time and for every class.
        if self.time is not None:
            last = self.time.layers[2]
            assert isinstance(last, nn.Linear)
            nn.init.normal_(last.weight, std=0.02)
            nn.init.zeros_(last.bias)
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)

    def attention(self, tokens: Tokens, *, t: Times, cond: Cond) -> Tensor:
        """Weights (b, queries, n) of the tokens, which sum to 1."""
        return self.weights(self.norm(tokens), t=t, cond=cond)

    def weights(self, h: Tokens, *, t: Times, cond: Cond) -> Tensor:
        """Attention over normalized tokens."""
        queries = self.queries
        if self.time is not None:
            queries = queries + self.time(t)[:, None]
        if self.label is not None:
            queries = queries + self.label(labels_of(cond))[:, None]
        projection = self.key.weight
        assert isinstance(projection, Tensor)
        scores = (queries @ projection) @ h.transpose(1, 2) / queries.shape[-1] ** 0.5
        return scores.softmax(2, dtype=torch.promote_types(scores.dtype, torch.float32))

    def forward(self, tokens: Tokens, *, t: Times, cond: Cond) -> tuple[Logits, Tensor]:
        """One logit per query, and the attention."""
        h = self.norm(tokens)
        weights = self.weights(h, t=t, cond=cond)
        z = self.norm_pooled(self.value(weights.to(h.dtype) @ h))
        return self.verdict(F.leaky_relu(self.hidden(z), 0.2)).squeeze(2), weights


class Adaptive(nn.Module):
    """AWD: one attention-pooling head per judged layer; all their logits.

    What the paper leaves open is an argument.

    Args:
        channels: of each tapped layer, as `Teacher.feature_channels`.
        width: of keys, values and hidden layers.
        queries: learned queries per layer.
        query_std: standard deviation of the queries' components at the start. A small one begins as average pooling,
            and stays near it: Adam moves a component by its learning rate a step, so that 0.02 needs thousands of steps
            to weigh tokens apart. 1 weighs them apart from the first step, and sees small defects far better
            (docs/results.md, `discriminator`).
        layers: indices of the tapped layers that are judged, in this order; None is all.
        shared: whether one head judges all layers, which must then have equal channels.
        bound: what holds a linear layer's slope down; `unbounded` for nothing.
        norm: normalization of the tokens, and of what is pooled from them; `nn.Identity` for none.
        sinusoids: of the time that is added to the queries (64 are usual); 0 leaves the time out.
        classes: that are added to the queries by an embedding, the null class besides; None leaves the condition out.

    Raises:
        ValueError: if there is no layer, a number is out of range, or a shared head would meet unequal channels; when
            called, if other layers came than were announced.
        TypeError: when called with classes in the queries, if the condition is no tensor of labels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        width: int = 64,
        queries: int = 2,
        query_std: float = QUERY_STD,
        layers: Sequence[int] | None = None,
        shared: bool = False,
        bound: Callable[[nn.Linear], nn.Module] = spectral_norm,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        sinusoids: int = 0,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        chosen = tuple(range(len(channels)) if layers is None else layers)
        if not channels or not chosen or min(*channels, width, queries) < 1 or not query_std >= 0:
            raise ValueError(
                f"Adaptive(channels={list(channels)}, layers={layers}, width={width}, queries={queries}, "
                f"query_std={query_std}): it needs at least one tapped layer, positive sizes, query_std >= 0"
            )
        if not set(chosen) <= set(range(len(channels))):
            raise ValueError(f"layers={list(chosen)}: tapped layers are 0 to {len(channels) - 1}; None judges them all")
        if shared and len({channels[layer] for layer in chosen}) > 1:
            raise ValueError(
                f"shared head for layers of {[channels[layer] for layer in chosen]} channels: they must be equal; "
                "choose layers that are, or give each its own head"
            )
        if not (sinusoids == 0 or (sinusoids >= 4 and sinusoids % 2 == 0)) or (classes is not None and classes < 0):
            raise ValueError(
                f"sinusoids={sinusoids}, classes={classes}: sinusoids are 0 or an even number from 4 on, classes None "
                "or not negative"
            )
        self.channels, self.layers = tuple(channels), chosen
        self.heads = nn.ModuleList(
            AdaptiveHead(
                channels[layer], width, queries, query_std=query_std, bound=bound, norm=norm,
                sinusoids=sinusoids, classes=classes,
            )
            for layer in (chosen[:1] if shared else chosen)
        )  # fmt: skip

    def pairs(self, features: Sequence[Tokens]) -> list[tuple[AdaptiveHead, Tokens]]:
        """Each judged layer's head and tokens."""
        if len(features) != len(self.channels):
            raise ValueError(
                f"features of {len(features)} layers came to a discriminator that was built for {len(self.channels)}; "
                "build it with the feature_channels of the network that gives them"
            )
        heads = list(self.heads) * (len(self.layers) if len(self.heads) == 1 else 1)
        return [(head, features[layer]) for head, layer in zip(heads, self.layers, strict=True)]  # type: ignore[misc]

    def forward(self, features: Sequence[Tokens], *, t: Times, cond: Cond) -> Logits:
        """See `Discriminator`; (b, judged layers x queries)."""
        return torch.cat([head(tokens, t=t, cond=cond)[0] for head, tokens in self.pairs(features)], 1)

    @torch.no_grad()
    def attention(self, features: Sequence[Tokens], *, t: Times, cond: Cond) -> list[Tensor]:
        """The weights (b, queries, n) of each judged layer.

        Looking changes nothing: in training mode a forward pass would move the spectral norms' estimates.
        """
        mode = self.training
        self.eval()
        try:
            return [head.attention(tokens, t=t, cond=cond) for head, tokens in self.pairs(features)]
        finally:
            self.train(mode)


def labels_of(cond: Cond) -> Labels:
    """The labels that are a condition.

    Raises:
        TypeError: if it is something else, which only its teacher's file can read.
    """
    if not isinstance(cond, Tensor) or cond.ndim != 1 or cond.is_floating_point():
        came = f"a tensor {tuple(cond.shape)} of {cond.dtype}" if isinstance(cond, Tensor) else type(cond).__name__
        raise TypeError(
            f"{came} came as the condition of a head with classes in its queries, which takes integer labels (b,); "
            "build it with classes=None for other conditions"
        )
    return cond


def normalized_entropy(weights: Tensor) -> Tensor:
    """Entropy over the last dimension divided by log n: 1 is average pooling, 0 is one token of several."""
    if weights.shape[-1] == 1:
        return torch.ones_like(weights[..., 0])
    return torch.special.entr(weights).sum(-1) / math.log(weights.shape[-1])
