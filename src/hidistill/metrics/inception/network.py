"""The network behind FID: Inception of December 2015 as its graph computes it, batch norms folded (arXiv 1512.00567).

It is not the Inception v3 of other libraries. Images are resized by TensorFlow 1's bilinear rule, averages at the
border count only pixels that exist, the last block pools by maxima, and there are 1,008 logits.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hidistill.types import Features, Images, Logits

Rows = Float[Tensor, "b _d"]
"""Features of one kind, an image a row."""
SIDE = 299
POOLED, LOGITS = 2048, 1008
SPATIAL_CHANNELS = 7
"""Of the 192 of the first branch of `mixed_6`, as sFID takes them: 7 * 17 * 17 = 2,023 numbers (arXiv 2103.03841)."""
EPS = 1e-3
"""Of the graph's batch norms."""


class Layer(NamedTuple):
    """A convolution, its batch norm and a rectifier.

    Args:
        name: in the state that torch-fidelity and pytorch-fid read.
        graph: in TensorFlow's graph.
        before: channels that come.
        after: channels that leave.
        kernel: rows and columns.
        stride: along both.
        padded: whether the picture keeps its size at stride 1.
    """

    name: str
    graph: str
    before: int
    after: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


class Convolution(nn.Conv2d):
    """A layer with its batch norm folded in."""

    def __init__(self, layer: Layer) -> None:
        rows, columns = layer.kernel
        padding = (rows // 2, columns // 2) if layer.padded else (0, 0)
        super().__init__(layer.before, layer.after, layer.kernel, layer.stride, padding)
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        """Convolve and rectify."""
        return F.relu(super().forward(input))


class Branches(nn.ModuleList):
    """Branches side by side, their channels one after another."""

    def forward(self, x: Tensor) -> Tensor:
        """Each branch sees the same input."""
        return torch.cat([branch(x) for branch in self], 1)


def average() -> nn.Module:
    """The mean over 3 x 3 pixels; at the border, over those that exist."""
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


class Chain:
    """Builds a branch, a convolution after another.

    Args:
        block: name of the block in the state.
        graph: name of the branch in the graph.
        before: channels that come.
    """

    def __init__(self, block: str, graph: str, before: int) -> None:
        self.block, self.graph, self.channels, self.count = block, graph, before, 0
        self.parts: list[nn.Module] = []

    def then(
        self, name: str, after: int, kernel: tuple[int, int] = (1, 1), *, stride: int = 1, padded: bool = True
    ) -> "Chain":
        """One more convolution."""
        step = "conv" if self.count == 0 else f"conv_{self.count}"
        layer = Layer(f"{self.block}.{name}", f"{self.graph}/{step}", self.channels, after, kernel, stride, padded)
        self.parts.append(Convolution(layer))
        self.channels, self.count = after, self.count + 1
        return self

    def fork(self, names: Sequence[str], after: int) -> "Chain":
        """Two convolutions on the same input: a row of three, and a column of three."""
        ends = [
            Convolution(Layer(f"{self.block}.{name}", f"{self.graph}/mixed/{step}", self.channels, after, kernel))
            for name, step, kernel in zip(names, ("conv", "conv_1"), ((1, 3), (3, 1)), strict=True)
        ]
        self.parts.append(Branches(ends))
        return self

    def after(self, pool: nn.Module) -> nn.Module:
        """The branch, behind a pooling."""
        return nn.Sequential(pool, *self.parts)

    @property
    def branch(self) -> nn.Module:
        """The branch."""
        return nn.Sequential(*self.parts)


def block_a(name: str, graph: str, before: int, pooled: int) -> Branches:
    """1 x 1, 5 x 5, two 3 x 3, and an average."""
    five = Chain(name, f"{graph}/tower", before).then("branch5x5_1", 48).then("branch5x5_2", 64, (5, 5))
    three = Chain(name, f"{graph}/tower_1", before).then("branch3x3dbl_1", 64)
    three.then("branch3x3dbl_2", 96, (3, 3)).then("branch3x3dbl_3", 96, (3, 3))
    pool = Chain(name, f"{graph}/tower_2", before).then("branch_pool", pooled)
    one = Chain(name, graph, before).then("branch1x1", 64)
    return Branches([one.branch, five.branch, three.branch, pool.after(average())])


def block_b(name: str, graph: str, before: int) -> Branches:
    """Halves the picture: 3 x 3, two 3 x 3, and a maximum."""
    one = Chain(name, graph, before).then("branch3x3", 384, (3, 3), stride=2, padded=False)
    two = Chain(name, f"{graph}/tower", before).then("branch3x3dbl_1", 64).then("branch3x3dbl_2", 96, (3, 3))
    two.then("branch3x3dbl_3", 96, (3, 3), stride=2, padded=False)
    return Branches([one.branch, two.branch, nn.MaxPool2d(3, 2)])


def block_c(name: str, graph: str, wide: int, before: int = 768) -> Branches:
    """1 x 1, a 7 x 7 and two of them as rows and columns, and an average."""
    row, column = (1, 7), (7, 1)
    one = Chain(name, graph, before).then("branch1x1", 192)
    single = Chain(name, f"{graph}/tower", before).then("branch7x7_1", wide)
    single.then("branch7x7_2", wide, row).then("branch7x7_3", 192, column)
    double = Chain(name, f"{graph}/tower_1", before).then("branch7x7dbl_1", wide).then("branch7x7dbl_2", wide, column)
    double.then("branch7x7dbl_3", wide, row).then("branch7x7dbl_4", wide, column).then("branch7x7dbl_5", 192, row)
    pool = Chain(name, f"{graph}/tower_2", before).then("branch_pool", 192)
    return Branches([one.branch, single.branch, double.branch, pool.after(average())])


def block_d(name: str, graph: str, before: int = 768) -> Branches:
    """Halves the picture: 3 x 3, a 7 x 7 and a 3 x 3, and a maximum."""
    one = Chain(name, f"{graph}/tower", before).then("branch3x3_1", 192)
    one.then("branch3x3_2", 320, (3, 3), stride=2, padded=False)
    two = Chain(name, f"{graph}/tower_1", before).then("branch7x7x3_1", 192).then("branch7x7x3_2", 192, (1, 7))
    two.then("branch7x7x3_3", 192, (7, 1)).then("branch7x7x3_4", 192, (3, 3), stride=2, padded=False)
    return Branches([one.branch, two.branch, nn.MaxPool2d(3, 2)])


def block_e(name: str, graph: str, before: int, pool: nn.Module) -> Branches:
    """1 x 1, a forked 3 x 3, a 3 x 3 and a forked one, and a pooling that is the caller's."""
    one = Chain(name, graph, before).then("branch1x1", 320)
    fork = Chain(name, f"{graph}/tower", before).then("branch3x3_1", 384).fork(("branch3x3_2a", "branch3x3_2b"), 384)
    deep = Chain(name, f"{graph}/tower_1", before).then("branch3x3dbl_1", 448).then("branch3x3dbl_2", 384, (3, 3))
    deep.fork(("branch3x3dbl_3a", "branch3x3dbl_3b"), 384)
    last = Chain(name, f"{graph}/tower_2", before).then("branch_pool", 192)
    return Branches([one.branch, fork.branch, deep.branch, last.after(pool)])


class Inception(nn.Module):
    """The network: pictures to 2,048 pooled features, 2,023 spatial ones, and 1,008 logits."""

    def __init__(self) -> None:
        super().__init__()
        first = (
            Layer("Conv2d_1a_3x3", "conv", 3, 32, (3, 3), 2, padded=False),
            Layer("Conv2d_2a_3x3", "conv_1", 32, 32, (3, 3), padded=False),
            Layer("Conv2d_2b_3x3", "conv_2", 32, 64, (3, 3)),
        )
        second = (
            Layer("Conv2d_3b_1x1", "conv_3", 64, 80),
            Layer("Conv2d_4a_3x3", "conv_4", 80, 192, (3, 3), padded=False),
        )
        self.early = nn.Sequential(
            *map(Convolution, first), nn.MaxPool2d(3, 2), *map(Convolution, second), nn.MaxPool2d(3, 2),
            block_a("Mixed_5b", "mixed", 192, 32), block_a("Mixed_5c", "mixed_1", 256, 64),
            block_a("Mixed_5d", "mixed_2", 288, 64), block_b("Mixed_6a", "mixed_3", 288),
            block_c("Mixed_6b", "mixed_4", 128), block_c("Mixed_6c", "mixed_5", 160),
            block_c("Mixed_6d", "mixed_6", 160),
        )  # fmt: skip
        self.late = nn.Sequential(
            block_c("Mixed_6e", "mixed_7", 192), block_d("Mixed_7a", "mixed_8"),
            block_e("Mixed_7b", "mixed_9", 1280, average()),
            block_e("Mixed_7c", "mixed_10", 2048, nn.MaxPool2d(3, 1, 1)),
        )  # fmt: skip
        self.head = nn.Linear(POOLED, LOGITS)

    def convolutions(self) -> Iterator[Convolution]:
        """Every convolution, in the order of the state."""
        return (module for module in self.modules() if isinstance(module, Convolution))

    def forward(self, images: Images) -> tuple[Rows, Rows]:
        """Pooled (b, 2048) and spatial features (b, 2023) of color pixels in [0, 1], which are rounded to 8 bits."""
        x = resized((255 * images.to(self.head.weight.dtype)).round())
        x = self.early(((x - 128) / 128).contiguous(memory_format=torch.channels_last))
        spatial = x[:, :SPATIAL_CHANNELS].movedim(1, -1).flatten(1)
        return self.late(x).mean((2, 3)), spatial

    def logits(self, pooled: Features, *, bias: bool = True) -> Logits:
        """One logit per class of pooled features; the Inception Score is defined without the bias."""
        return F.linear(pooled, self.head.weight, self.head.bias if bias else None)


def resized(pixels: Images, side: int = SIDE) -> Float[Tensor, "b c side side"]:
    """Bilinear as in TensorFlow 1: output i reads input `i * n / side`, without half a pixel's shift, or smoothing."""
    for dim in (-2, -1):
        n = pixels.shape[dim]
        place = torch.arange(side, dtype=torch.float32, device=pixels.device) * (n / side)
        low = place.long().clamp_max(n - 1)
        share = (place - low).to(pixels.dtype)
        share = share[:, None] if dim == -2 else share
        below, above = pixels.index_select(dim, low), pixels.index_select(dim, (low + 1).clamp_max(n - 1))
        pixels = below + (above - below) * share
    return pixels
