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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("derivative", ["forward", "central"])
def test_four_processes_both_derivatives_and_every_setting(tmp_path, derivative):
    settings = {
        "plain": {},
        "recompute": {"recompute": True},
        "offload": {"offload_frozen": True},
        "both": {"recompute": True, "offload_frozen": True},
    }
    runs = [{"folder": tmp_path / "whole"}]
    runs += [{"folder": tmp_path / name, "count": 4, "sharding": each} for name, each in settings.items()]
    succeed([run | {"derivative": derivative, "steps": 8} for run in runs])
    for name in settings:
        assert difference(tmp_path / "whole", tmp_path / name) < 1e-6, name


@pytest.mark.slow
def test_weights_that_travel_in_bfloat16_are_near(tmp_path):
    """Under autocast, which rounds weights to bfloat16 before products in any case, and not those of sums."""
    runs = {"whole": {}, "near": {"count": 2, "sharding": {"bfloat16": True}}}
    settings = {"adversarial": False, "precision": "bfloat16"}
    *ends, (refused, _) = together(
        [{"folder": tmp_path / name, **settings, **run} for name, run in runs.items()]
        + [{"folder": tmp_path / "refused", **runs["near"]}]
    )
    assert [end["status"] for each in ends for end in each] == [0, 0, 0], ends
    assert refused["status"] == 2
    assert "the experiment's precision is float32; autocast must bring" in refused["error"]
    losses = [
        [line["student/loss"] for line in journal(tmp_path / name) if "student/loss" in line][:20] for name in runs
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    dtypes = {value.dtype for value in product(tmp_path / "near").values()}
    assert dtypes == {torch.float32}


@pytest.mark.slow
def test_a_run_is_taken_up_in_parts_and_whole_by_any_number(tmp_path):
    parts = [
        ({"count": 4, "sharding": {}}, 7, "terminate"),
        ({"count": 1}, 13, "terminate"),
        ({"count": 2, "sharding": {}}, 27, "die"),
        ({"count": 2}, 33, "terminate"),
        ({"count": 4, "sharding": {}, "background": True}, None, None),
    ]
    runs = [{"folder": tmp_path / "one"}]
    runs += [
        {"folder": tmp_path / "many", "at": at, "happens": how, "checkpoint_every": 3, **run} for run, at, how in parts
    ]
    ends = together(runs)
    assert [min(end["status"] for end in each) for each in ends] == [0, 143, 143, -9, 143, 0], ends
    assert difference(tmp_path / "one", tmp_path / "many") < 1e-6
    steps = [line["global_step"] for line in journal(tmp_path / "many") if line["kind"] == "step"]
    assert steps == list(range(1, 41))


@pytest.mark.slow
def test_accidents_of_networks_in_parts(tmp_path):
    run = {"count": 2, "sharding": {}, "what": "two_stages", "steps": 8, "checkpoint_every": 3, "timeout": 5.0}
    planned = {
        "whole": {},
        "die": {"happens": "die", "to": 1, "at": 11},
        "nan": {"happens": "nan", "to": 1, "at": 5},
        "stop": {"happens": "stop", "to": 1, "at": 5},
        "terminate": {"happens": "terminate", "to": 1, "at": 10},
    }
    first = [run | {"folder": tmp_path / name} | how for name, how in planned.items()]
    ends = together(first + [run | {"folder": tmp_path / name} for name in planned])
    assert all(end["status"] == 0 for each in ends[len(planned) :] for end in each), ends[len(planned) :]
    for name in planned:
        assert difference(tmp_path / "whole", tmp_path / name) == 0.0, name
    _, died, nan, stopped, terminated = ends[: len(planned)]
    assert [end["status"] for end in terminated] == [143, 143]
    assert [end["status"] for end in nan] == [2, 2]
    assert "in process 1 of 2" in nan[0]["error"]
    assert died[0]["status"] == stopped[0]["status"] == 75
    assert "process 1 (pid" in stopped[0]["error"]
