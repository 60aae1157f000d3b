"""Journals beside metrics.jsonl: what was logged is read back by each package's own reader."""

import importlib.util
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
from small_run import build, carry_out

from hidistill.train import trackers
from hidistill.train.driver import execute
from hidistill.train.trackers import opened

BLOCK = 2**15
"""Bytes of a block of LevelDB's logs."""


def missing(name):
    """Skips where an optional package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


class Stop(Exception):
    """A run that is stopped."""


def scalars_of(folder):
    """Steps and values by name, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def no_port(monkeypatch):
    """Whoever listens on a port, or connects to anything but a local socket, is told off."""

    def refuse(*args):
        raise AssertionError(f"a journal opened {args[1:]}")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_port")
def test_tensorboard_holds_what_metrics_jsonl_holds(tmp_path):
    carry_out(tmp_path, 4, journals=("tensorboard",))
    found = scalars_of(tmp_path)
    steps = [line for line in lines_of(tmp_path) if line["kind"] == "step" and line["stage"] == "sketch"]
    expected = [(line["global_step"], pytest.approx(line["student/loss"])) for line in steps]
    assert found["sketch/student/loss"] == expected
    assert [step for step, _ in found["pace/samples_per_second"]] == list(range(1, 9))


def test_a_run_taken_up_again_logs_each_step_once(tmp_path):
    def stop(event):
        if event.kind == "step" and event.global_step == 7:
            raise Stop

    with pytest.raises(Stop):
        carry_out(tmp_path, 6, on_event=stop, journals=("tensorboard",))
    carry_out(tmp_path, 6, journals=("tensorboard",))
    found = scalars_of(tmp_path)["pace/samples_per_second"]
    assert [step for step, _ in found] == list(range(1, 13))


def test_an_unknown_journal_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="'mlflow' is unknown; there are tensorboard, wandb, trackio"):
        execute(build(3), tmp_path / "run", recipe="x", arguments={}, journals=("mlflow",))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_missing_package_is_named_with_its_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ValueError, match=rf"pip install 'hidistill\[{name}\]'"):
        opened([name], tmp_path, step=0, about={})


OWN = """
import os
import signal
import socket
import sys
from pathlib import Path

import small_run

from hidistill.train.experiment import Experiment


def told_off(event: str, args: tuple) -> None:
    if event not in ("socket.bind", "socket.connect") or args[0].family == socket.AF_UNIX:
        return
    if (event, args[1]) != ("socket.bind", ("::1", 0)):  # by which urllib3 asks whether there is IPv6
        os.write(2, f"a journal opened {args[1]}".encode())
        os._exit(3)


sys.addaudithook(told_off)


def fit(*, steps: int = 6) -> Experiment:
    '''Both stages; the first process that comes to step 8 is killed.'''

    def batches(step):
        if step == 8 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return small_run.batch_at(step)

    return small_run.build(steps, batches=batches)
"""


def without_trackers():
    """The environment without what a person has set for the trackers."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO"))}


def killed_and_taken_up(place, name):
    """A run of 12 steps in a process of its own, killed at step 8 and taken up from step 6; its folder."""
    (place / "own.py").write_text(OWN)
    folders = [Path(small_run.__file__).parent, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = without_trackers() | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    words = ["-m", "hidistill", "train", "own.py:fit", "--out", "run", "--checkpoint-every", "3", "--journal", name]
    ends = [
        subprocess.run(
            [sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        for _ in range(2)
    ]
    assert [end.returncode for end in ends] == [-signal.SIGKILL, 0], ends
    assert name not in (ends[1].stdout + ends[1].stderr).casefold()  # neither advertises itself
    return place / "run"


LOGGED = ("sketch/student/loss", "refine/fake/loss")


def losses(step, values):
    """A step, and its losses of `LOGGED` that are there."""
    return step, {name: values[name] for name in LOGGED if name in values}


def expected(folder, first, last):
    """What metrics.jsonl says of them."""
    lines = {line["global_step"]: line for line in lines_of(folder) if line["kind"] == "step"}
    found = [
        (n, {f"{lines[n]['stage']}/{name}": value for name, value in lines[n].items()}) for n in range(first, last)
    ]
    return [(n, pytest.approx(losses(n, values)[1], rel=1e-6)) for n, values in found]


def records_of(path):
    """The records of a file of wandb: a log in LevelDB's format, behind a header of 7 bytes, of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # too little of the block is left for a header
            at += BLOCK - at % BLOCK
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a record in one piece, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.slow
@missing("wandb")
def test_wandb_stays_offline_and_holds_what_metrics_jsonl_holds(tmp_path):
    folder = killed_and_taken_up(tmp_path, "wandb")
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records = list(records_of(path))
        if not records:  # died with the process
            continue
        about = {item.key: item.value_json for each in records for item in each.run.config.update}
        assert (about["recipe"], about["steps"]) == ('"own.py:fit"', "6")
        assert {each.run.run_group for each in records if each.HasField("run")} == {"run"}
        lines = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in each.history.item}
            for each in records
            if each.HasField("history")
        ]
        found.append([losses(line["_step"], line) for line in lines])
    *killed, taken_up = found
    for lines in killed:
        assert lines == expected(folder, 1, 9)[: len(lines)]  # likewise, what was not on its way yet
    assert taken_up == expected(folder, 7, 13)
    logs = [path.read_text() for path in folder.glob("wandb/offline-run-*/logs/debug-core.log")]
    assert logs
    assert all('"disable-analytics":true' in log and '"Net":"unix"' in log for log in logs)


@pytest.mark.slow
@missing("trackio")
def test_trackio_holds_what_metrics_jsonl_holds(tmp_path):
    folder = killed_and_taken_up(tmp_path, "trackio")
    database = sqlite3.connect(folder / "trackio" / "hidistill.db")
    found: dict[str, list] = {}
    for name, step, values in database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"):
        found.setdefault(name, []).append(losses(step, json.loads(values)))
    database.close()
    killed, taken_up = found.get("run", []), found["run from step 6"]
    assert killed == expected(folder, 1, 9)[: len(killed)]  # what was not on its way yet died with the process
    assert taken_up == expected(folder, 7, 13)


@missing("trackio")
def test_trackio_keeps_one_folder_for_each_process(tmp_path):
    program = """
import sys
from pathlib import Path
from hidistill.train.trackers import opened
(one,) = opened(["trackio"], Path(sys.argv[1]), step=0, about={"recipe": "x"})
one.log({"student/loss": 0.5}, step=1)
one.close()
opened(["trackio"], Path(sys.argv[1]), step=0, about={})[0].close()
try:
    opened(["trackio"], Path(sys.argv[2]), step=0, about={})
except ValueError as error:
    print(error)
"""
    words = [sys.executable, "-c", program, str(tmp_path / "one"), str(tmp_path / "two")]
    end = subprocess.run(words, capture_output=True, text=True, check=False, env=without_trackers())
    assert end.stdout.startswith(f"trackio already keeps its files in {tmp_path / 'one' / 'trackio'} in this process")
    assert end.returncode == 0, end.stderr
