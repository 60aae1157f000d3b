"""Checkpoints of DiT's and SiT's repositories, against a small network of our own under their names."""

import argparse
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from both_samplers import SAMPLERS
from safetensors.torch import save_file
from small_originals import Original, saved, teacher
from stock import DTYPES, relative

from hidistill.conventions import Flow
from hidistill.foreign.network import Network
from hidistill.foreign.scheduler import convention_of
from hidistill.teachers import diffusers_dit
from hidistill.teachers.original import HEADS, SCHEDULERS, convention, read_configuration, read_original
from hidistill.weights import WeightsError

TIMES = {"dit": torch.tensor([0.0, 17.0, 500.0, 999.0]), "sit": torch.tensor([0.0, 0.2137, 0.7, 1.0])}
LABELS = torch.tensor([0, 1, 2, 3])
"""The last one is the null class."""


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(1)
    return Original()


def asked(net, kind, side=6):
    x = torch.randn(4, 4, side, side, generator=torch.Generator().manual_seed(0))
    return x, TIMES[kind], LABELS


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("kind", TIMES)
def test_the_network_is_the_original_s_function(tmp_path, original, kind, suffix):
    path = saved(original, tmp_path / f"net.{suffix}")
    net = read_original(path, kind=kind, heads=2, allow_pickle=suffix == "pt")
    assert not net.training
    assert not any(weight.requires_grad for weight in net.parameters())
    x, time, labels = asked(net, kind)
    expected = original(x, time, labels)
    if kind == "sit":
        expected = expected[:, :4]
    torch.testing.assert_close(net(x, timestep=time, class_labels=labels).sample, expected, rtol=1e-5, atol=1e-5)


def test_it_is_that_to_the_last_constant(tmp_path, original):
    """In float64, where the 1e-6 of a norm shows."""
    net = read_original(saved(original, tmp_path / "net.safetensors"), kind="sit", heads=2).double()
    x, time, labels = asked(net, "sit")
    answer = net(x.double(), timestep=time.double(), class_labels=labels).sample
    expected = deepcopy(original).double()(x.double(), time.double(), labels)[:, :4]
    torch.testing.assert_close(answer, expected, rtol=5e-7, atol=5e-7)


@pytest.mark.parametrize("shape", [{"patch": 4, "grid": 2, "dim": 16}, {"answered": 4, "channels": 4, "depth": 1}])
def test_sizes_are_read_from_the_tensors(tmp_path, shape):
    net = Original(**shape, classes=5)
    found = read_original(saved(net, tmp_path / "net.safetensors"), kind="dit", heads=2)
    assert found.config.num_layers == len(net.blocks)
    assert found.config.sample_size == net.grid * net.patch
    assert diffusers_dit.FAMILY.classes(found) == 5
    x, time, labels = asked(found, "dit", side=net.grid * net.patch)
    answer = found(x, timestep=time, class_labels=labels).sample
    torch.testing.assert_close(answer, net(x, time, labels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sampling_is_that_of_the_repository(kind, dtype):
    assert relative(*SAMPLERS[f"original {kind}"](dtype)) < (1e-4 if dtype == torch.float32 else 1e-12)


def test_the_schedulers_of_diffusers_say_the_same():
    """But for DiT's noise levels, which its repository has in float64, and diffusers in float32."""
    assert convention("sit") == Flow(unit=1.0, reversed=True) == convention_of(SCHEDULERS["sit"])
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    for ours, theirs in zip(convention("dit").at(t), convention_of(SCHEDULERS["dit"]).at(t), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_configuration_is_that_of_the_network(tmp_path):
    for kind, answered in (("dit", 8), ("sit", 8), ("sit", 4)):
        path = saved(Original(dim=384, heads=6, depth=1, answered=answered), tmp_path / "net.safetensors")
        net, config = read_original(path, kind=kind), read_configuration(path, kind=kind)
        assert {key: net.config[key] for key in config if key != "_class_name"} == {
            key: value for key, value in config.items() if key != "_class_name"
        }
        assert config["_class_name"] == type(net).__name__
        assert config["out_channels"] == (8 if kind == "dit" else 4)


def test_a_dit_predicts_the_noise_of_the_linear_schedule(original):
    """DDIM's own formula (arXiv 2010.02502, eq. 12) from the levels that numpy makes of the betas."""
    torch.manual_seed(1)
    ours = teacher("dit").double()
    torch.manual_seed(1)
    net = Original().double()
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    x, labels = torch.randn(2, 4, 6, 6, dtype=torch.float64), torch.tensor([1, 3])
    for time in (999, 400, 3):
        alpha, sigma = kept[time].sqrt(), (1 - kept[time]).sqrt()
        noise = net(x, torch.full((2,), float(time), dtype=torch.float64), labels)[:, :4]
        data, t = (x - sigma * noise) / alpha, (sigma / (alpha + sigma)).expand(2)
        velocity = ours.velocity(x / (alpha + sigma), t=t, cond=labels)
        torch.testing.assert_close(velocity, noise - data, rtol=1e-4, atol=1e-4)


def test_averaged_weights_of_a_training_checkpoint_come_first(tmp_path, original):
    """With the options that the repository's training saves beside them, which are no tensors."""
    torch.manual_seed(2)
    other, path = Original(), tmp_path / "0400000.pt"
    options = argparse.Namespace(model="DiT-S/2", global_seed=0)
    torch.save({"model": other.state_dict(), "ema": original.state_dict(), "opt": {}, "args": options}, path)
    net = read_original(path, kind="dit", heads=2, allow_pickle=True)
    assert torch.equal(net.proj_out_2.weight, original.final_layer.linear.weight)
    torch.save({"model": other.state_dict()}, path)
    net = read_original(path, kind="dit", heads=2, allow_pickle=True)
    assert torch.equal(net.proj_out_2.weight, other.final_layer.linear.weight)


def test_a_file_keeps_its_precision(tmp_path, original):
    path = tmp_path / "net.safetensors"
    save_file({key: value.bfloat16() for key, value in original.state_dict().items()}, path)
    net = read_original(path, kind="sit", heads=2)
    assert net.proj_out_2.weight.dtype == torch.bfloat16
    reader = Network(net, diffusers_dit.FAMILY, convention("sit"))
    x, t = torch.randn(4, 4, 6, 6), 1 - TIMES["sit"]
    exact = -original(x, TIMES["sit"], LABELS)[:, :4]
    assert (reader.velocity(x, t=t, cond=LABELS) - exact).norm() < 0.05 * exact.norm()


def test_heads_are_the_paper_s_or_given(tmp_path, original):
    path = saved(original, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"width 24, which does not tell its heads; known are widths 384, .*heads="):
        read_original(path, kind="dit")
    with pytest.raises(ValueError, match="5 heads came for a width of 24"):
        read_original(path, kind="dit", heads=5)
    path = saved(Original(dim=384, heads=HEADS[384], depth=1, grid=2), tmp_path / "small.safetensors")
    assert read_original(path, kind="dit").config.num_attention_heads == 6


def changed(state, **changes):
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


FAULTS = {
    r"misses blocks\.1\.attn\.qkv\.bias\. Variants": {"blocks.1.attn.qkv.bias": None},
    r"has the unexpected blocks\.0\.attn\.q_norm\.weight, projectors\.0\.weight": {
        "projectors.0.weight": torch.zeros(1),
        "blocks.0.attn.q_norm.weight": torch.zeros(1),
    },
    r"other shapes: blocks\.2\.mlp\.fc1\.weight of \(48, 24\) instead of \(96, 24\)": {
        "blocks.2.mlp.fc1.weight": torch.zeros(48, 24)
    },
    r"no x_embedder\.proj\.weight, pos_embed of rank 3, .* give a checkpoint of": {"x_embedder.proj.weight": None},
    "pos_embed in .* has 7 patches, which are no square": {"pos_embed": torch.zeros(1, 7, 24)},
    "pos_embed in .* is not the table of sines and cosines over 3 x 3 patches": {"pos_embed": torch.zeros(1, 9, 24)},
    "has 3 rows too many for patches of 2 x 2": {"final_layer.linear.weight": torch.zeros(35, 24)},
}


@pytest.mark.parametrize("words", FAULTS)
def test_other_networks_are_refused_by_name(tmp_path, original, words):
    path = tmp_path / "net.safetensors"
    save_file(changed(original.state_dict(), **FAULTS[words]), path)
    with pytest.raises(WeightsError, match=words) as caught:
        read_original(path, kind="dit", heads=2)
    assert str(path) in str(caught.value)


class Opened:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_read_only_when_asked_for_and_then_without_running_it(tmp_path, original):
    path, trace = tmp_path / "net.pt", tmp_path / "ran"
    torch.save({"ema": original.state_dict(), "extra": Opened(trace)}, path)
    with pytest.raises(WeightsError, match=r"net\.pt is a pickle, not safetensors"):
        read_original(path, kind="dit", heads=2)
    with pytest.raises(WeightsError, match=r"net\.pt cannot be read as tensors alone \(UnpicklingError"):
        read_original(path, kind="dit", heads=2, allow_pickle=True)
    assert not trace.exists()
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match=r"net\.pt holds a list; a checkpoint holds tensors by name"):
        read_original(path, kind="dit", heads=2, allow_pickle=True)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6, 0.999])
def test_a_truncated_file_is_named(tmp_path, original, suffix, share):
    path = saved(original, tmp_path / f"net.{suffix}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError, match=rf"net\.{suffix} (is not a whole|cannot be read)"):
        read_original(path, kind="dit", heads=2, allow_pickle=True)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_missing_file_is_named(tmp_path, allow_pickle):
    with pytest.raises(WeightsError, match=r"no file .*net\.pt"):
        read_original(tmp_path / "net.pt", kind="dit", allow_pickle=allow_pickle)
