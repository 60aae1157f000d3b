"""A run that is stopped and taken up again is the run that was not, to the last bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import batch_at, build, carry_out

from hidistill.train import checkpoint
from hidistill.train.checkpoint import newest_first
from hidistill.train.loop import steps

STEPS = 12


class Stop(Exception):
    """Ends a run from outside, as a crash would."""


def final_state(folder):
    """Every tensor that the run leaves: its products, and all roles of its last checkpoint."""
    files = [*(folder / "models").iterdir(), *newest_first(folder / "checkpoints")[0].glob("*.safetensors")]
    assert len(files) == 2 + 3
    return {f"{file.stem}:{key}": value.numpy().tobytes() for file in files for key, value in load_file(file).items()}


def journal(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(folder):
    """The journal without what may differ between two runs: times and resumptions."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "pace")}
        for line in journal(folder)
        if line.get("event") != "resume"
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    carry_out(folder, STEPS, probe=lambda stage: {"letters": len(stage)}, probe_every=4)
    return folder


@pytest.mark.parametrize("last", [1, 5, 11, 12, 13, 24])
@pytest.mark.parametrize("how", [Stop, KeyboardInterrupt])
def test_stopped_after_any_step(undisturbed, tmp_path, last, how):
    def stop(event):
        if event.kind == "step" and event.global_step == last:
            raise how

    probes = {"probe": lambda stage: {"letters": len(stage)}, "probe_every": 4}
    with pytest.raises(how):
        carry_out(tmp_path, STEPS, on_event=stop, **probes)
    resumed = []
    carry_out(tmp_path, STEPS, on_event=resumed.append, **probes)
    if how is KeyboardInterrupt:
        assert resumed[0].kind == "resume"
        assert resumed[0].global_step == last
    assert final_state(tmp_path) == final_state(undisturbed)
    steps = [line for line in numbers(tmp_path) if line["kind"] == "step"]
    assert steps == [line for line in numbers(undisturbed) if line["kind"] == "step"]
    if how is Stop:
        assert numbers(tmp_path) == numbers(undisturbed)


@pytest.mark.parametrize("kind", ["checkpoint", "stage"])
def test_stopped_at_the_border(undisturbed, tmp_path, kind):
    def stop(event):
        if event.kind == kind and event.global_step == STEPS:
            raise Stop

    with pytest.raises(Stop):
        carry_out(tmp_path, STEPS, on_event=stop)
    carry_out(tmp_path, STEPS)
    assert final_state(tmp_path) == final_state(undisturbed)


@pytest.fixture
def keyboard():
    """Ctrl-C as a terminal has it: a shell starts its background commands, these tests perhaps, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
def test_ctrl_c_within_a_step_lets_the_step_end(undisturbed, tmp_path):
    def press(step):
        if step == 16:
            signal.raise_signal(signal.SIGINT)
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path, STEPS, batches=press)
    assert newest_first(tmp_path / "checkpoints")[0].name == "00000017"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    carry_out(tmp_path, STEPS)
    assert final_state(tmp_path) == final_state(undisturbed)


@pytest.mark.usefixtures("keyboard")
def test_second_ctrl_c_does_not_wait_and_saves_no_half_step(undisturbed, tmp_path):
    def press(step):
        if step == 16:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path, STEPS, batches=press)
    assert newest_first(tmp_path / "checkpoints")[0].name == "00000012"
    carry_out(tmp_path, STEPS)
    assert final_state(tmp_path) == final_state(undisturbed)


def test_optimizers_come_back_bit_exactly(tmp_path):
    first, second = build(STEPS), build(STEPS)
    stage = first.stages[1]
    for _ in zip(range(7), steps(stage, batch_at, seed=3), strict=False):
        pass
    position = checkpoint.Position(stage=1, step=7, global_step=19)
    folder = checkpoint.save(tmp_path, first, position, recipe="r", keep=1)
    assert checkpoint.load(folder, second, recipe="r") == position
    for name, update in stage.updates.items():
        saved, loaded = (e.stages[1].updates[name].optimizer.state_dict() for e in (first, second))
        assert saved["param_groups"] == loaded["param_groups"]
        assert {"lr", "base_lr"} <= loaded["param_groups"][0].keys()
        for key, state in saved["state"].items():
            assert state["step"] == (7 // update.every)
            assert all(torch.equal(value, loaded["state"][key][entry]) for entry, value in state.items())
    assert second.stages[1].averages["student"].updates == 2


def run_script(folder, steps, moments):
    """Kill the run at these moments; how many kills it took, and the output."""
    script = Path(__file__).with_name("small_run.py")
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, script, folder, str(steps), *moments],
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.count("killed"), done.stdout


def check_killed(folder, reference, steps):
    assert final_state(folder) == final_state(reference)
    lines = [line for line in journal(folder) if line["kind"] == "step"]
    assert [line["global_step"] for line in lines] == list(range(1, 2 * steps + 1))
    assert numbers(folder) == numbers(reference)
    assert not list((folder / "checkpoints").glob(".*"))


def test_killed_by_sigkill(tmp_path):
    steps, chance = 30, random.Random(0)
    moments = [f"{chance.uniform(0.05, 0.3):.3f}" for _ in range(5)]
    moments[1:1] = ["f2", "f9", "f25", "f40"]  # within a checkpoint
    moments += ["f14", "f33"]
    kills, output = run_script(tmp_path / "killed", steps, moments)
    assert kills >= 5, output
    carry_out(tmp_path / "whole", steps)
    check_killed(tmp_path / "killed", tmp_path / "whole", steps)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_twenty_times(tmp_path, seed):
    steps, chance = 600, random.Random(seed)  # long enough for twenty kills on a fast machine
    moments = [f"{chance.uniform(0.1, 0.4):.3f}" for _ in range(20)]
    kills, output = run_script(tmp_path / "killed", steps, moments)
    assert kills == 20, output
    carry_out(tmp_path / "whole", steps)
    check_killed(tmp_path / "killed", tmp_path / "whole", steps)


@pytest.mark.slow
def test_killed_at_each_fsync(tmp_path):
    steps = 90
    carry_out(tmp_path / "whole", steps)
    kills, output = run_script(tmp_path / "killed", steps, [f"f{n}" for n in range(1, 31)])
    assert kills == 30, output
    check_killed(tmp_path / "killed", tmp_path / "whole", steps)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk")
def test_no_space_left_on_a_small_disk(tmp_path):
    script = Path(__file__).with_name("small_run.py")
    mounted = f"mount -t tmpfs -o size=48k none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mounted], check=False, capture_output=True).returncode:
        pytest.skip("this system does not let us mount a small disk")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mounted} && {sys.executable} {script} {tmp_path} 12; ls -A {tmp_path}/*"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot write" in done.stderr
    assert "No space left" in done.stderr
    assert "partial" not in done.stdout
