"""Runs of 1, 2 and 4 processes, and of several passes, are one run; what cannot be one is refused in words."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from nursery import free_port, together
from safetensors.torch import load_file

from hidistill.train.checkpoint import newest_first

STEPS = 20


def weights(folder):
    """Every weight of every role at the run's end."""
    last = newest_first(folder / "checkpoints")[0]
    return {
        f"{file.stem}:{key}": value for file in last.glob("*.safetensors") for key, value in load_file(file).items()
    }


def journal(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def difference(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return max(float((value - other[key]).abs().max()) for key, value in one.items())


def succeed(runs):
    for ends in together(runs):
        assert [end["status"] for end in ends] == [0] * len(ends), ends


def test_two_processes_are_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    succeed([{"folder": one}, {"folder": two, "count": 2}])
    assert difference(one, two) < 1e-6
    shared = {"student/loss", "student/gradient", "critics/loss", "critics/gradient", "critics/accuracy"}
    for mine, theirs in zip(journal(one), journal(two), strict=True):
        for name in shared & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4)


@pytest.mark.slow
def test_unequal_numbers_of_rows_that_pay_are_one(tmp_path):
    """A quarter of 12 rows pays the penalty: 2 rows of one process and 1 of the other."""
    one, two = tmp_path / "one", tmp_path / "two"
    succeed([{"folder": one, "rows": 12}, {"folder": two, "rows": 12, "count": 2}])
    assert difference(one, two) < 1e-6
    slopes = [[line["critics/slope"] for line in journal(folder) if "critics/slope" in line] for folder in (one, two)]
    assert len(slopes[0]) == STEPS
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-3)  # a difference over 0.01, in float32


@pytest.mark.slow
def test_four_processes_and_both_derivatives(tmp_path):
    runs = [{"derivative": how, "count": count} for how in ("forward", "central") for count in (1, 4)]
    succeed([run | {"folder": tmp_path / f"{run['derivative']}{run['count']}"} for run in runs])
    assert difference(tmp_path / "forward1", tmp_path / "forward4") < 1e-6
    assert difference(tmp_path / "central1", tmp_path / "central4") < 1e-6


@pytest.mark.slow
def test_passes_are_a_larger_batch(tmp_path):
    """All but the adversarial gradient, whose size is that of the rows of a pass: here it is left out."""
    runs = [{"count": count, "passes": passes} for count, passes in ((1, 1), (1, 4), (2, 2))]
    succeed([run | {"folder": tmp_path / f"{n}", "adversarial": False} for n, run in enumerate(runs)])
    assert difference(tmp_path / "0", tmp_path / "1") < 1e-6
    assert difference(tmp_path / "0", tmp_path / "2") < 1e-6


@pytest.mark.slow
def test_a_run_is_taken_up_by_other_numbers_of_processes(tmp_path):
    parts = [(4, 7, "terminate"), (1, 15, "die"), (2, 29, "die"), (4, None, None)]
    runs = [{"folder": tmp_path / "one"}]
    runs += [
        {"folder": tmp_path / "many", "count": count, "at": at, "happens": how, "to": count - 1, "checkpoint_every": 3}
        for count, at, how in parts
    ]
    ends = together(runs)
    assert [sorted({end["status"] for end in each})[0] for each in ends] == [0, 143, -9, -9, 0], ends
    assert difference(tmp_path / "one", tmp_path / "many") < 1e-6
    steps = [line["global_step"] for line in journal(tmp_path / "many") if line["kind"] == "step"]
    assert steps == list(range(1, 2 * STEPS + 1))


def test_bad_beginnings_are_said_in_words(tmp_path):
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        taken.listen()
        runs = [
            {"folder": tmp_path / "odd", "count": 2, "rows": 15},
            {"folder": tmp_path / "passes", "count": 2, "rows": 14, "passes": 4},
            {"folders": [tmp_path / "here", tmp_path / "there"], "folder": "", "count": 2},
            {"folder": tmp_path / "port", "count": 2, "port": port, "timeout": 3.0, "patience": 0.5},
        ]
        odd, passes, apart, port_taken = together([run | {"what": "small", "steps": 2} for run in runs])
    assert {end["status"] for each in (odd, passes, apart) for end in each} == {2}
    assert "a batch of 15 cannot be split over 2 processes; use a multiple of 2, e.g. 14 or 16" in odd[0]["error"]
    assert "14 cannot be split over 2 processes of 4 passes each; use a multiple of 8, e.g. 8 or" in passes[0]["error"]
    assert "need one shared folder" in apart[0]["error"]
    assert f"port {port} of 127.0.0.1 is taken by another program" in port_taken[0]["error"]
    assert not (tmp_path / "odd" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_other_installations_are_refused(tmp_path):
    source = Path(__file__).parents[3] / "src"
    shutil.copytree(source, tmp_path / "other")
    version = tmp_path / "other" / "hidistill" / "__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "9'))
    port = free_port()
    # Two nurseries, each with one of the two processes.
    from concurrent.futures import ThreadPoolExecutor

    def process(rank):
        run = {"folder": tmp_path / "run", "what": "small", "steps": 2, "count": 2, "port": port, "only": rank}
        return together([run], source=source if rank == 0 else tmp_path / "other")[0][0]

    with ThreadPoolExecutor() as pool:
        ends = list(pool.map(process, (0, 1)))
    assert [end["status"] for end in ends] == [2, 2], ends
    assert "the processes of this run are not alike: hidistill is '9" in ends[0]["error"]
    assert "Start all of them from one installation" in ends[0]["error"]


def test_wrong_variables_of_torchrun_are_refused():
    from hidistill.train.distributed.joining import join

    whole = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for change, words in (
        ({"RANK": "2"}, "RANK=2 with WORLD_SIZE=2: ranks are 0 to 1"),
        ({"RANK": "x"}, "RANK='x': a whole number is needed"),
        ({"MASTER_PORT": ""}, "WORLD_SIZE=2 without MASTER_PORT; torchrun sets them"),
    ):
        with pytest.raises(ValueError, match=words):
            join("cpu", timeout_seconds=1.0, environment=whole | change)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="has no GPU: there are 0"):
            join("cuda", timeout_seconds=1.0, environment=whole)
