"""Networks that are held in parts make the run that whole ones make, and its checkpoints fit everywhere."""

import pytest
import torch
from nursery import together
from safetensors.torch import load_file
from test_replicated import journal, succeed

from hidistill.train.checkpoint import newest_first
from hidistill.train.distributed.parts import consolidate


def product(folder):
    return load_file(folder / "models" / "student.safetensors")


def difference(one, other):
    """Of what the run leaves; its files are the same kind however networks were held."""
    one, other = product(one), product(other)
    assert one.keys() == other.keys()
    return max(float((value - other[key]).abs().max()) for key, value in one.items())


def test_two_processes_with_parts_are_two_with_everything(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    succeed([{"folder": whole}, {"folder": parts, "count": 2, "sharding": {}, "checkpoint_every": 15}])
    assert difference(whole, parts) < 1e-6
    losses = [[line.get("student/loss", 0.0) for line in journal(folder)] for folder in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    last = newest_first(parts / "checkpoints")[0]
    consolidate(last, "student", tmp_path / "student.safetensors")
    found = load_file(tmp_path / "student.safetensors")
    assert all(torch.equal(value, found[key]) for key, value in product(parts).items())
    with pytest.raises(ValueError, match="has no 'teacher'; it holds discriminator, fake, student"):
        consolidate(last, "teacher", tmp_path / "teacher.safetensors")
