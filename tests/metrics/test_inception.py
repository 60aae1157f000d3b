"""The network behind FID: every format gives it, its quirks are there, and nothing else is taken for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inception_files import as_published, graph_file, random_state, script_file, state_file

from hidistill.metrics.inception import PUBLISHED, InceptionScore, Pooled, Read, Spaces, Spatial, in_splits, read
from hidistill.metrics.inception.graph import constants
from hidistill.metrics.inception.network import EPS, Inception, average, resized
from hidistill.metrics.inception.reading import load
from hidistill.types import FeatureSpace, Gallery, Samples
from hidistill.weights import WeightsError

WRITERS = {"weights.pth": state_file, "weights.pt": script_file, "weights.pb": graph_file}


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def network(state):
    network = Inception()
    load(network, state, Path("memory"))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def spaces(network):
    return Spaces(Read(network, "random", original=False), batch_size=3)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_network(tmp_path, state, network, name):
    path = WRITERS[name](tmp_path / name, state)
    known = as_published(path)
    found = read(path, (known,))
    assert (found.name, found.original) == ("inception-2015", True)
    for (key, ours), theirs in zip(network.state_dict().items(), found.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


def test_a_graph_of_unknown_sum_is_read_and_is_never_called_the_original(tmp_path, state):
    found = read(graph_file(tmp_path / "classify_image_graph_def.pb", state))
    assert not found.original
    assert found.name.startswith("inception-graph-")


def test_what_users_are_told_of_the_true_files():
    assert [each.size for each in PUBLISHED] == [95_628_359, 95_607_719]
    assert all(len(each.sha256) == 64 for each in PUBLISHED)
    assert PUBLISHED[0].names[0].endswith(f"-{PUBLISHED[0].sha256[:8]}.pth")


def test_a_folded_layer_is_a_convolution_and_its_batch_norm(state, network):
    first = next(network.convolutions())
    x = torch.randn(2, 3, 9, 9)
    part = {key: state[f"Conv2d_1a_3x3.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
    y = F.conv2d(x, state["Conv2d_1a_3x3.conv.weight"], stride=2)
    y = F.relu(F.batch_norm(y, part["running_mean"], part["running_var"], part["weight"], part["bias"], eps=EPS))
    torch.testing.assert_close(first(x), y, rtol=1e-5, atol=1e-5)


def test_shapes_of_the_graph(network):
    layers = [module.layer for module in network.convolutions()]
    assert len(layers) == 94
    assert len({layer.name for layer in layers}) == len({layer.graph for layer in layers}) == 94
    x = torch.zeros(1, 3, 299, 299)
    sides = []
    for module in (*network.early, *network.late):
        x = module(x)
        sides.append((x.shape[1], x.shape[2]))
    assert sides[3] == (64, 73)
    assert sides[6] == (192, 35)
    assert (sides[9], sides[10], sides[13]) == ((288, 35), (768, 17), (768, 17))
    assert (sides[15], sides[17]) == ((1280, 8), (2048, 8))


def test_averages_at_the_border_count_what_exists():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert average()(x)[0, 0, 0, 0] == pytest.approx((0 + 1 + 3 + 4) / 4)
    assert average()(x)[0, 0, 1, 1] == pytest.approx(4)


@pytest.mark.parametrize("side", [1, 7, 32, 299, 301, 700])
def test_resizing_is_tensorflows(side):
    pixels = torch.randint(0, 256, (1, 2, side, side)).float()
    places = np.arange(299, dtype=np.float32) * np.float32(side / 299)
    low = np.floor(places).astype(int)
    high, share = np.minimum(low + 1, side - 1), places - low
    x = pixels.numpy()[0]
    rows = x[:, low] * (1 - share)[:, None] + x[:, high] * share[:, None]
    expected = rows[..., low] * (1 - share) + rows[..., high] * share
    torch.testing.assert_close(resized(pixels)[0], torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-3)
    if side == 299:
        assert torch.equal(resized(pixels), pixels)


def test_spaces_share_one_pass_and_no_image_depends_on_its_neighbors(spaces):
    images = torch.rand(4, 3, 12, 12)
    pooled, spatial = Pooled(spaces), Spatial(spaces)
    assert isinstance(pooled, FeatureSpace)
    assert (pooled.name, spatial.name) == ("random", "random-spatial")
    first = pooled(images)
    assert first.shape == (4, 2048)
    assert spatial(images).data_ptr() == spatial(images).data_ptr(), "the pass is remembered"
    assert spatial(images).shape == (4, 2023)
    torch.testing.assert_close(pooled(images[3:]), first[3:], rtol=1e-4, atol=1e-5)
    gray = images[:, :1]
    torch.testing.assert_close(pooled(gray), pooled(gray.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(b, 1, h, w\) or \(b, 3, h, w\)"):
        pooled(torch.rand(1, 4, 8, 8))


def test_the_score_by_hand(spaces, network):
    features = torch.randn(24, 2048)
    images = torch.zeros(24, 1, 1, 1)
    gallery = Gallery(images, torch.zeros(24, dtype=torch.long))
    space = Pooled(spaces)
    gallery.memory["features", space] = features
    numbers = InceptionScore(space, splits=3)(Samples(gallery, gallery))
    scores = []
    for part in np.split(features.double().numpy(), 3):
        logits = part @ network.head.weight.double().numpy().T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        scores.append(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
    assert numbers == pytest.approx({"is/random": np.mean(scores), "is_std/random": np.std(scores, ddof=1)}, rel=1e-9)


def test_the_score_is_one_where_all_images_are_alike_and_needs_an_image_a_split(spaces):
    space = Pooled(spaces)
    gallery = Gallery(torch.zeros(20, 1, 1, 1), torch.zeros(20, dtype=torch.long))
    gallery.memory["features", space] = torch.ones(20, 2048)
    assert InceptionScore(space)(Samples(gallery, gallery))["is/random"] == pytest.approx(1)
    few = Gallery(gallery.images[:9], gallery.labels[:9])
    few.memory["features", space] = torch.ones(9, 2048)
    with pytest.raises(ValueError, match="9 images in 10 splits"):
        InceptionScore(space)(Samples(few, gallery))


def test_another_network_is_refused_before_it_is_used(tmp_path, state):
    with pytest.raises(FileNotFoundError, match=r"give the path of weights-inception-2015-12-05-6726825d.pth"):
        read(tmp_path / "none.pth")
    other = state_file(tmp_path / "inception_v3_google-0cc3c7bd.pth", {"AuxLogits.conv0.conv.weight": torch.ones(2)})
    with pytest.raises(WeightsError, match=r"not the network behind FID. It holds 1 entries, such as AuxLogits.conv0"):
        read(other)
    (tmp_path / "noise.pt").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"\(7 bytes, sha256 .* is not the network"):
        read(tmp_path / "noise.pt")
    lacking = state_file(tmp_path / "lacking.pth", {k: v for k, v in state.items() if "Mixed_7c" not in k})
    with pytest.raises(WeightsError, match=r"lacks Mixed_7c.branch1x1 \(kernel"):
        read(lacking, (as_published(lacking),))


def test_a_graph_that_is_cut_off_or_none_is_refused(tmp_path):
    path = tmp_path / "classify_image_graph_def.pb"
    for content in (b"\x0a\xff\x01nothing", b"", bytes([255] * 12)):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"no whole TensorFlow graph|no TensorFlow graph with constants"):
            constants(path)


def test_splits_of_a_score_have_the_classes_though_a_folder_lists_them_one_by_one():
    one_by_one, in_turn = torch.arange(200) // 20, torch.arange(200) % 10
    assert torch.equal(torch.cat(in_splits(in_turn, 10)), torch.arange(200))
    parts = in_splits(one_by_one, 10)
    assert sorted(torch.cat(parts).tolist()) == list(range(200))
    assert all(torch.bincount(one_by_one[rows]).tolist() == [2] * 10 for rows in parts)
    assert torch.equal(torch.cat(in_splits(torch.zeros(50).long(), 10)), torch.arange(50))
