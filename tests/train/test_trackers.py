"""Journals beside metrics.jsonl: what was logged is read back by each package's own reader."""

import importlib.util
import json
import socket

import pytest
from small_run import build, carry_out

from hidistill.train import trackers
from hidistill.train.driver import execute
from hidistill.train.trackers import opened


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


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not among the packages of dev")
def test_wandb_stays_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tracker,) = opened(["wandb"], tmp_path, step=0, about={"recipe": "x"})
    tracker.log({"student/loss": 0.5}, step=1)
    tracker.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    assert b"student/loss" in log.read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not among the packages of dev")
def test_trackio_writes_into_the_runs_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    (tracker,) = opened(["trackio"], tmp_path, step=0, about={"recipe": "x"})
    tracker.log({"student/loss": 0.5}, step=1)
    tracker.close()
    assert list((tmp_path / "trackio").rglob("*.db"))
