import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hidistill.weights import WeightsError, load_into, read, save


def network(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


def test_round_trip_is_exact(tmp_path):
    first, second, path = network(), network(), tmp_path / "models" / "net.safetensors"
    save(path, first, family="mlp", config={"sizes": [3, 4], "name": "ü"}, card={"seed": "7"})
    found = read(path)
    assert (found.family, found.config, found.card) == ("mlp", {"sizes": [3, 4], "name": "ü"}, {"seed": "7"})
    load_into(second, found.tensors, source=str(path))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def rewrite(path, **metadata):
    """Write a file again with other metadata; None leaves a line out."""
    with safe_open(path, framework="pt") as file:
        lines = {key: value for key, value in ({**file.metadata(), **metadata}).items() if value is not None}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    save_file(tensors, path, metadata=lines)


def test_names_of_the_classes_and_the_format_are_in_the_metadata(tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, network(), family="mlp", config={}, classes=("a, b", "ü"))
    assert read(path).classes == ("a, b", "ü")
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "1"
    rewrite(path, format=None, classes=None)
    assert read(path).classes == (), "files of the time before formats and names"


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, network(), family="mlp", config={})
    rewrite(path, format="2")
    with pytest.raises(WeightsError, match=r"net\.safetensors is of format 2; hidistill .* reads format 1: install"):
        read(path)


def test_dtype_of_the_file_rounds_once_and_spares_counters(tmp_path):
    module, path = network(), tmp_path / "net.safetensors"
    save(path, module, family="mlp", config={}, dtype=torch.bfloat16)
    found = read(path).tensors
    assert found["0.weight"].dtype == torch.bfloat16
    assert found["1.num_batches_tracked"].dtype == torch.int64
    target = network()
    load_into(target, found, source="x")
    assert torch.equal(target[0].weight, module[0].weight.bfloat16().float())


def test_tied_weights_are_written_twice(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    save(tmp_path / "w.safetensors", module, family="tied", config={})
    found = read(tmp_path / "w.safetensors").tensors
    assert torch.equal(found["0.weight"], found["1.weight"])


def test_an_older_file_stays_if_writing_fails(tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, network(), family="mlp", config={})
    before = path.read_bytes()
    (tmp_path / ".net.safetensors.partial").mkdir()  # nothing can be written there
    with pytest.raises(OSError, match=r"net.safetensors"):
        save(path, network(), family="mlp", config={})
    assert path.read_bytes() == before


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_truncated_file_names_its_path(tmp_path, size):
    path = tmp_path / "net.safetensors"
    save(path, network(), family="mlp", config={})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match=r"net\.safetensors is not a whole safetensors file .* again"):
        read(path)


def test_missing_file_and_foreign_file(tmp_path):
    with pytest.raises(WeightsError, match=r"there is no weights file .*absent"):
        read(tmp_path / "absent.safetensors")
    (tmp_path / "foreign.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(WeightsError, match="does not say which network"):
        read(tmp_path / "foreign.safetensors")


def test_keys_and_shapes_must_match_exactly():
    module = network()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = {key: value + 1 for key, value in module.state_dict().items()}
    del state["0.bias"]
    state["2.extra"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(5, 3)
    with pytest.raises(WeightsError) as caught:
        load_into(module, state, source="file.safetensors")
    text = str(caught.value)
    assert "file.safetensors" in text
    assert "misses 0.bias" in text
    assert "unexpected 2.extra" in text
    assert "0.weight is (5, 3) there and (4, 3) here" in text
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
