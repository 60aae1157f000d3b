"""A space-time DiT: a transformer over the patches of a clip's frames, as a velocity field.

Each block attends within a frame, then along time at each place, then passes a perceptron: space and time factorized
(arXiv 2103.15691, model 3; arXiv 2204.03458), under adaptive layer norms of time and class (arXiv 2212.09748). Over f
frames of n patches, a token's attention costs n + f in place of n f. A token may hold the same patch of several frames
in a row, a tubelet (arXiv 2103.15691, section 3.2): what moves by less than a patch is then seen by one token.

Class labels are the condition; label `classes` is the null class. Times enter unscaled, and the network F is
preconditioned on the linear path, as in `dit.py`: with s^2 the mean square of the data,
`var = (1 - t)^2 s^2 + t^2` and `velocity = (t - (1 - t) s^2) / var x_t + s var^-1/2 F(var^-1/2 x_t)`.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hidistill.attention import attend
from hidistill.embedding import TimeEmbedding, interval_embedding, position_embedding, sinusoids
from hidistill.path import labels_of, per_row
from hidistill.types import Cond, Points, Probe, Times, Tokens

Grid = Float[Tensor, "b frames patches dim"]
"""Tokens of the patches of each frame."""


class Attention(nn.Module):
    """Multi-head self-attention along the last axis but one; every axis before it is a batch."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Grid) -> Grid:
        """Tokens of the same shape."""
        q, k, v = self.qkv(x).flatten(0, 1).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2)).unflatten(0, x.shape[:2])


class Block(nn.Module):
    """Attention in space, attention in time, perceptron, each modulated and gated; the identity at start."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 9 * dim)
        self.space, self.time = Attention(dim, heads), Attention(dim, heads)
        # SiLU takes a third of GELU's time on a CPU.
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Grid, c: Tensor) -> Grid:
        """Tokens under a condition (b, dim)."""
        space, time, mlp = self.modulation(F.silu(c)).chunk(3, 1)
        x = gated(x, space, self.space)
        x = gated(x.transpose(1, 2), time, self.time).transpose(1, 2)
        return gated(x, mlp, self.mlp)


def gated(x: Grid, modulation: Float[Tensor, "b three"], layer: nn.Module) -> Grid:
    """`x + gate layer(LN(x) (1 + scale) + shift)`, one shift, scale and gate per sample."""
    shift, scale, gate = modulation[:, None, None].chunk(3, -1)
    return x + gate * layer(modulate(x, shift, scale))


def modulate(x: Grid, shift: Tensor, scale: Tensor) -> Grid:
    """`LN(x) (1 + scale) + shift`."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class VideoDiT(nn.Module):
    """The network: class-conditional velocity of clips (b, frames, channels, size, size).

    The features of a tapped block are tokens (b, frames / tubelet x patches, dim), tubelet by tubelet.

    Args:
        frames: of a clip.
        image_size: height and width of a frame in pixels (or latents).
        channels: of a frame.
        patch: side of a patch; must divide `image_size`.
        tubelet: frames that a token holds; must divide `frames`.
        classes: number of classes; 0 means that there is only the null class.
        dim: width of a token.
        depth: number of blocks.
        heads: of each attention.
        taps: indices of the blocks whose outputs are the features; None taps three, spread over the depth.
        data_std: root mean square of the data, for the preconditioning.

    Raises:
        ValueError: if a size is less than 1, the patch does not divide the image, heads do not divide the width, or a
            tap is not a block; when called, if clips have another shape.
    """

    place: Tensor

    def __init__(
        self,
        *,
        frames: int,
        image_size: int,
        channels: int,
        classes: int,
        patch: int = 4,
        tubelet: int = 1,
        dim: int = 96,
        depth: int = 4,
        heads: int = 3,
        taps: Sequence[int] | None = None,
        data_std: float = 0.5,
    ) -> None:
        super().__init__()
        if min(frames, image_size, channels, patch, tubelet, dim, depth, heads) < 1 or classes < 0 or data_std <= 0:
            raise ValueError(
                f"VideoDiT(frames={frames}, image_size={image_size}, channels={channels}, patch={patch}, "
                f"tubelet={tubelet}, dim={dim}, depth={depth}, heads={heads}, classes={classes}, data_std={data_std}): "
                "sizes must be 1 or more, classes 0 or more, the root mean square of the data positive"
            )
        if image_size % patch:
            fits = [p for p in range(1, image_size + 1) if image_size % p == 0]
            raise ValueError(f"patch {patch} does not divide frames of {image_size} pixels; use one of {fits}")
        if frames % tubelet:
            fits = [k for k in range(1, frames + 1) if frames % k == 0]
            raise ValueError(f"tubelet {tubelet} does not divide clips of {frames} frames; use one of {fits}")
        if dim % heads or dim % 4:
            raise ValueError(f"dim {dim} must be a multiple of 4 and of the {heads} heads")
        self.taps = tuple(taps) if taps is not None else tuple(sorted({depth // 4, depth // 2, (3 * depth) // 4}))
        if not self.taps or not all(0 <= tap < depth for tap in self.taps):
            raise ValueError(f"taps {self.taps}: name one block or more; blocks are 0 to {depth - 1}")
        self.config: dict[str, Any] = {"frames": frames, "image_size": image_size, "channels": channels}
        self.config |= {"classes": classes, "patch": patch, "tubelet": tubelet}
        self.config |= {"dim": dim, "depth": depth, "heads": heads}
        self.config |= {"taps": list(self.taps), "data_std": data_std}
        self.shape = (frames, channels, image_size, image_size)
        self.dim, self.classes, self.data_std = dim, classes, data_std
        self.patch, self.grid, self.tubelet = patch, image_size // patch, tubelet
        self.patchify = nn.Linear(tubelet * channels * patch**2, dim)
        where = position_embedding(self.grid, dim) + sinusoids(frames // tubelet, dim)[:, None]
        self.register_buffer("place", where, persistent=False)
        self.time = TimeEmbedding(dim)
        self.label = nn.Embedding(classes + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.last_modulation = nn.Linear(dim, 2 * dim)
        self.unpatchify = nn.Linear(dim, tubelet * channels * patch**2)
        self.reset()

    def reset(self) -> None:
        """Initialize: Xavier for weights, zero for biases, modulations and the last layer (arXiv 2212.09748, 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.label.weight, std=0.02)
        for layer in (self.time.layers[0], self.time.layers[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        for layer in (*(block.modulation for block in self.blocks), self.last_modulation, self.unpatchify):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def embed(self, t: Times, cond: Cond) -> Tensor:
        """The conditioning vector (b, dim) of a time and a label."""
        return self.time(t) + self.label(labels_of(cond, owner="a VideoDiT"))

    def enter(self, x_t: Points, t: Times) -> Grid:
        """Tokens of the patches of each frame."""
        if x_t.shape[1:] != self.shape:
            raise ValueError(
                f"clips of shape {tuple(x_t.shape[1:])} came; this VideoDiT takes {self.shape}, which are frames, "
                "channels, height and width: build it for others"
            )
        b, g, p, k = len(x_t), self.grid, self.patch, self.tubelet
        scaled = x_t * self.variance(x_t, t).rsqrt()
        patches = scaled.reshape(b, -1, k, self.shape[1], g, p, g, p).permute(0, 1, 4, 6, 2, 3, 5, 7)
        return self.patchify(patches.reshape(b, self.shape[0] // k, g * g, -1)) + self.place.to(x_t.dtype)

    def trunk(self, x: Grid, c: Tensor, last: int | None = None) -> tuple[Grid, list[Tokens]]:
        """Tokens after block `last` (all blocks if None), and the features of the taps on the way."""
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x, c)
            if index in self.taps:
                features.append(x.flatten(1, 2))
            if index == last:
                break
        return x, features

    def variance(self, x_t: Points, t: Times) -> Tensor:
        """Mean square of x_t at time t, shaped to broadcast over its rows."""
        t = per_row(t, x_t)
        return ((1 - t) * self.data_std).square() + t.square()

    def head(self, x: Grid, x_t: Points, t: Times, c: Tensor) -> Points:
        """Velocity, of the shape and dtype of x_t, from the last tokens."""
        b, g, p, k = len(x), self.grid, self.patch, self.tubelet
        shift, scale = self.last_modulation(F.silu(c))[:, None, None].chunk(2, -1)
        y = self.unpatchify(modulate(x, shift, scale))
        y = y.reshape(b, -1, g, g, k, self.shape[1], p, p).permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(x_t.shape)
        variance, t = self.variance(x_t, t), per_row(t, x_t)
        skip = (t - (1 - t) * self.data_std**2) / variance
        return (skip * x_t + self.data_std * variance.rsqrt() * y).to(x_t.dtype)

    @property
    def feature_channels(self) -> Sequence[int]:
        """Channels of each tapped block."""
        return (self.dim,) * len(self.taps)

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """See `VelocityField.velocity`."""
        return self.probe(x_t, t=t, cond=cond).velocity

    def features(self, x_t: Points, *, t: Times, cond: Cond) -> Sequence[Tokens]:
        """See `Teacher.features`; stops after the last tapped block."""
        return self.trunk(self.enter(x_t, t), self.embed(t, cond), last=max(self.taps))[1]

    def probe(self, x_t: Points, *, t: Times, cond: Cond) -> Probe:
        """See `Teacher.probe`."""
        c = self.embed(t, cond)
        x, features = self.trunk(self.enter(x_t, t), c)
        return Probe(self.head(x, x_t, t, c), features)

    def null(self, cond: Cond) -> Cond:
        """The null class, `classes`, for every sample."""
        return torch.full_like(labels_of(cond, owner="a VideoDiT"), self.classes)

    def student(self) -> "FlowMapVideoDiT":
        """A flow map that starts as this teacher: `u(x_t, r, t) = velocity(x_t, t)` for every r."""
        return FlowMapVideoDiT(deepcopy(self))

    @classmethod
    def from_config(cls, config: dict) -> "VideoDiT":
        """The network that `config` (as kept in `.config`) describes, freshly initialized."""
        return cls(**config)


class FlowMapVideoDiT(nn.Module):
    """A VideoDiT as a flow map: the length of the interval, t - r, is embedded and added to the condition.

    `u = velocity(x_t, t; c + interval(t - r)) + gain(c) x_t` with one gain per sample, as for images: how much of x_t a
    mean velocity passes through depends on the interval. Embedding and gain are zero at start, so that the student
    begins as its teacher.
    """

    def __init__(self, net: VideoDiT) -> None:
        super().__init__()
        self.net = net
        self.interval = interval_embedding(net.dim).to(net.patchify.weight)
        self.gain = nn.Linear(net.dim, 1).to(net.patchify.weight)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.gain.bias)

    @property
    def config(self) -> dict:
        """The configuration of the network inside."""
        return self.net.config

    def mean_velocity(self, x_t: Points, *, t: Times, r: Times, cond: Cond) -> Points:
        """See `Student.mean_velocity`."""
        c = self.net.embed(t, cond) + self.interval(t - r)
        x, _ = self.net.trunk(self.net.enter(x_t, t), c)
        gain = per_row(self.gain(F.silu(c)).squeeze(1), x_t).to(x_t.dtype)
        return self.net.head(x, x_t, t, c) + gain * x_t
