"""DiT: a transformer over image patches, conditioned by adaptive layer norm (arXiv 2212.09748), as a velocity field.

Class labels are the condition; label `classes` is the null class. Times enter unscaled, in [0, 1], through frequencies
of at most 32 rad: an embedding of 1000 t multiplies the derivative along t by a thousand.

The network F is preconditioned as in arXiv 2206.00364 (section 5), carried over to the velocity on the linear path.
With s^2 the mean square of the data and `var = (1 - t)^2 s^2 + t^2`,

    velocity = c_skip x_t + c_out F(c_in x_t),  c_in = var^-1/2,  c_skip = (t - (1 - t) s^2) / var,  c_out = s var^-1/2:

the best linear guess of the velocity, and a rest of unit size. At t = 1 this is x_t + s F, so that a sample in one
step, `x_1 - u = -s F`, has none of the noise that F would otherwise have to carry through and cancel.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidistill.attention import attend
from hidistill.embedding import TimeEmbedding, interval_embedding, position_embedding
from hidistill.path import labels_of, per_row
from hidistill.types import Cond, Points, Probe, Times, Tokens


class Size(NamedTuple):
    """Width, depth and heads of a DiT."""

    dim: int
    depth: int
    heads: int


SIZES = {
    "mini": Size(96, 4, 3),
    "slim": Size(128, 4, 4),
    "tiny": Size(128, 6, 4),
    "compact": Size(192, 8, 6),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "XL": Size(1152, 28, 16),
}
"""S to XL are the sizes of arXiv 2212.09748, table 1; the smaller ones are ours, for CPUs (0.7 M to 5.6 M weights)."""


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": partial(nn.GELU, approximate="tanh"), "silu": nn.SiLU}
"""Of the blocks' perceptrons. GELU with tanh is the paper's; SiLU takes a third of its time on a CPU."""


def modulate(x: Tokens, shift: Tensor, scale: Tensor) -> Tokens:
    """`LN(x) (1 + scale) + shift`, one shift and scale per sample."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Self-attention and perceptron, each modulated and gated by the condition; the identity at start (adaLN-zero)."""

    def __init__(self, dim: int, heads: int, activation: str = "gelu") -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(dim, 6 * dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), ACTIVATIONS[activation](), nn.Linear(4 * dim, dim))

    def forward(self, x: Tokens, c: Tensor) -> Tokens:
        """Tokens (b, n, dim) under a condition (b, dim)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(c)).chunk(6, 1)
        x = x + gate_a[:, None] * self.attend(modulate(x, shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(modulate(x, shift_m, scale_m))

    def attend(self, x: Tokens) -> Tokens:
        """Multi-head self-attention."""
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class PixelLayers(nn.Module):
    """Convolutions at the image's own resolution, before and behind the blocks; zero at start.

    Args:
        channels: of the image.
        width: of the convolutions.
        dim: of the condition.
    """

    def __init__(self, channels: int, width: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.join = nn.Conv2d(2 * width, width, 3, padding=1)
        self.modulation = nn.Linear(dim, 2 * width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def enter(self, image: Tensor) -> Tensor:
        """The image that patches are cut from, (b, width, size, size)."""
        return F.silu(self.first(image))

    def leave(self, y: Tensor, image: Tensor, c: Tensor) -> Tensor:
        """What the blocks made, joined with what they were given, under a condition (b, dim)."""
        shift, scale = self.modulation(F.silu(c))[:, :, None, None].chunk(2, 1)
        return self.last(F.silu(self.join(torch.cat([y, image], 1)) * (1 + scale) + shift))


class DiT(nn.Module):
    """The network: class-conditional velocity of square images, with features after any blocks.

    Args:
        image_size: height and width in pixels (or latents).
        channels: channels of the image.
        patch: side of a patch; must divide `image_size`.
        classes: number of classes; 0 means that there is only the null class.
        size: a name in `SIZES` or a `Size`.
        taps: indices of the blocks whose outputs are the features; None taps three, spread over the depth.
        data_std: root mean square of the data, for the preconditioning.
        activation: of the blocks' perceptrons, a name in `ACTIVATIONS`.
        pixel_channels: channels of the convolutions around the blocks; 0 is without them, the plain DiT.

    Raises:
        ValueError: if the patch does not divide the image, a name is unknown, or a tap is not a block.
    """

    position: Tensor

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        classes: int,
        patch: int = 4,
        size: str | Size = "tiny",
        taps: Sequence[int] | None = None,
        data_std: float = 0.5,
        activation: str = "gelu",
        pixel_channels: int = 0,
    ) -> None:
        super().__init__()
        if image_size % patch:
            fits = [p for p in range(1, image_size + 1) if image_size % p == 0]
            raise ValueError(f"patch {patch} does not divide images of {image_size} pixels; use one of {fits}")
        if isinstance(size, str) and size not in SIZES:
            raise ValueError(f"unknown size {size!r}; known are {', '.join(SIZES)}, or give a Size(dim, depth, heads)")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known are {', '.join(ACTIVATIONS)}")
        if pixel_channels < 0:
            raise ValueError(f"pixel_channels={pixel_channels}: give 0 for a DiT without convolutions, or 8 and more")
        dim, depth, heads = SIZES[size] if isinstance(size, str) else size
        if dim % heads or dim % 4:
            raise ValueError(f"dim {dim} must be a multiple of 4 and of the {heads} heads")
        self.taps = tuple(taps) if taps is not None else tuple(sorted({depth // 4, depth // 2, (3 * depth) // 4}))
        if not all(0 <= tap < depth for tap in self.taps):
            raise ValueError(f"taps {self.taps} name blocks that do not exist; blocks are 0 to {depth - 1}")
        self.config: dict[str, Any] = {
            "image_size": image_size,
            "channels": channels,
            "classes": classes,
            "patch": patch,
        }
        self.config |= {"size": [dim, depth, heads], "taps": list(self.taps), "data_std": data_std}
        self.config |= {"activation": activation, "pixel_channels": pixel_channels}
        if data_std <= 0:
            raise ValueError(f"data_std={data_std}: the root mean square of the data must be positive, 0.5 is usual")
        self.data_std = data_std
        self.dim, self.patch, self.grid, self.channels, self.classes = (
            dim,
            patch,
            image_size // patch,
            channels,
            classes,
        )
        depicted = pixel_channels or channels
        self.pixels = PixelLayers(channels, pixel_channels, dim) if pixel_channels else None
        self.patchify = nn.Linear(depicted * patch**2, dim)
        self.register_buffer("position", position_embedding(self.grid, dim), persistent=False)
        self.time = TimeEmbedding(dim)
        self.label = nn.Embedding(classes + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, activation) for _ in range(depth))
        self.last_modulation = nn.Linear(dim, 2 * dim)
        self.unpatchify = nn.Linear(dim, depicted * patch**2)
        self.reset()

    def reset(self) -> None:
        """Initialize: Xavier for weights, zero for biases, modulations and the last layer (arXiv 2212.09748, 3.2).

        Convolutions, but the last one, keep torch's own.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.label.weight, std=0.02)
        for layer in (self.time.layers[0], self.time.layers[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        zero = [block.modulation for block in self.blocks] + [self.last_modulation]
        zero += [self.unpatchify] if self.pixels is None else [self.pixels.modulation, self.pixels.last]
        for layer in zero:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
        if self.pixels is not None:
            nn.init.zeros_(self.pixels.last.bias)  # type: ignore[arg-type]

    def embed(self, t: Times, cond: Cond) -> Tensor:
        """The conditioning vector (b, dim) of a time and a label."""
        return self.time(t) + self.label(labels_of(cond, owner="a DiT"))

    def enter(self, x_t: Points, t: Times) -> tuple[Tokens, Tensor]:
        """Tokens of the patches, and the image (b, any, size, size) that they were cut from."""
        b, p, g = len(x_t), self.patch, self.grid
        if x_t.shape[1:] != (self.channels, g * p, g * p):
            raise ValueError(
                f"images of shape {tuple(x_t.shape[1:])} came; this DiT takes {(self.channels, g * p, g * p)}"
            )
        image = x_t * self.variance(x_t, t).rsqrt()
        if self.pixels is not None:
            image = self.pixels.enter(image)
        patches = image.reshape(b, -1, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, -1)
        return self.patchify(patches) + self.position.to(x_t.dtype), image

    def trunk(self, x: Tokens, c: Tensor, last: int | None = None) -> tuple[Tokens, list[Tokens]]:
        """Tokens after block `last` (all blocks if None), and the features of the taps on the way."""
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x, c)
            if index in self.taps:
                features.append(x)
            if index == last:
                break
        return x, features

    def variance(self, x_t: Points, t: Times) -> Tensor:
        """Mean square of x_t at time t, shaped to broadcast over its rows."""
        t = per_row(t, x_t)
        return ((1 - t) * self.data_std).square() + t.square()

    def head(self, x: Tokens, image: Tensor, x_t: Points, t: Times, c: Tensor) -> Points:
        """Velocity (b, channels, size, size), of the dtype of x_t, from the last tokens and their image."""
        b, p, g = len(x), self.patch, self.grid
        shift, scale = self.last_modulation(F.silu(c)).chunk(2, 1)
        y = self.unpatchify(modulate(x, shift, scale))
        y = y.reshape(b, g, g, -1, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, g * p, g * p)
        if self.pixels is not None:
            y = self.pixels.leave(y, image, c)
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
        return self.trunk(self.enter(x_t, t)[0], self.embed(t, cond), last=max(self.taps))[1]

    def probe(self, x_t: Points, *, t: Times, cond: Cond) -> Probe:
        """See `Teacher.probe`."""
        c = self.embed(t, cond)
        x, image = self.enter(x_t, t)
        x, features = self.trunk(x, c)
        return Probe(self.head(x, image, x_t, t, c), features)

    def null(self, cond: Cond) -> Cond:
        """The null class, `classes`, for every sample."""
        return torch.full_like(labels_of(cond, owner="a DiT"), self.classes)

    def student(self) -> "FlowMapDiT":
        """A flow map that starts as this teacher: `u(x_t, r, t) = velocity(x_t, t)` for every r."""
        return FlowMapDiT(deepcopy(self))

    @classmethod
    def from_config(cls, config: dict) -> "DiT":
        """The network that `config` (as kept in `.config`) describes, freshly initialized."""
        return cls(**{**config, "size": Size(*config["size"])})


class FlowMapDiT(nn.Module):
    """A DiT as a flow map: the length of the interval, t - r, is embedded and added to the condition.

    `u = velocity(x_t, t; c + interval(t - r)) + gain(c) x_t`, where the gain is one number per sample. How much of x_t
    a mean velocity passes through depends on the interval, not on the pixel: a network that learns it by its tokens is
    left with a few percent of the noise in its one-step samples, which this number takes away.

    The last layer of the embedding and the gain are zero at start, so that the student begins as its teacher.
    """

    def __init__(self, net: DiT) -> None:
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
        x, image = self.net.enter(x_t, t)
        x, _ = self.net.trunk(x, c)
        gain = per_row(self.gain(F.silu(c)).squeeze(1), x_t).to(x_t.dtype)
        return self.net.head(x, image, x_t, t, c) + gain * x_t
