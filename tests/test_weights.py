import struct

import pytest
import torch
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
