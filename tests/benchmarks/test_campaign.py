import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

RUN = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.py"


@pytest.fixture(scope="module")
def campaign():
    return runpy.run_path(str(RUN))


def called(campaign, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    campaign["main"]()


def test_the_plan_names_every_part_and_runs_nothing(campaign, monkeypatch, capsys, tmp_path):
    called(campaign, monkeypatch, "--plan", "--out", tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["steps", "teacher", "distill", "sampling"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["stpes"], "unknown parts stpes"), (["teacher"], "need --data cifar10.npz; --toy takes the bundled pictures")],
)
def test_what_cannot_run_is_refused_before_anything_is_written(words, message, tmp_path):
    command = [sys.executable, str(RUN), *words, "--out", str(tmp_path / "out")]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (tmp_path / "out").exists()


def test_pictures_of_a_file_and_a_file_without_them(campaign, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
    np.savez(tmp_path / "good.npz", x=x, y=y, xt=x[:5], yt=y[:5])
    make = campaign["Campaign"]
    splits = campaign["pictures"](make(tmp_path, tmp_path / "good.npz", 1.0, True, "cpu"))
    assert {name: len(split.images) for name, split in splits.items()} == {"train": 18, "valid": 2, "test": 5}
    assert torch.equal(splits["train"].images[3, 1], torch.from_numpy(x[3, :, :, 1]))
    assert splits["valid"].labels.tolist() == [8, 9]
    np.savez(tmp_path / "bad.npz", x=x)
    with pytest.raises(ValueError, match="no xt, y, yt in it; it needs x, y, xt and yt"):
        campaign["pictures"](make(tmp_path, tmp_path / "bad.npz", 1.0, True, "cpu"))


def test_what_was_kept_is_not_computed_again(campaign, tmp_path):
    kept = campaign["Kept"]
    assert kept(tmp_path / "kept.json").once("a", lambda: [1]) == [1]
    assert kept(tmp_path / "kept.json").once("a", lambda: [2]) == [1]
    assert kept(tmp_path / "kept.json").once("b", lambda: [3]) == [3]


def test_time_that_is_over_stops_as_ctrl_c_does(campaign):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this behind it
    try:
        with pytest.raises(KeyboardInterrupt), campaign["within"](1e-3):
            time.sleep(60)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_all_of_it_on_a_cpu_stopped_once_and_taken_up(tmp_path):
    """Half a minute of one core; as a process, which is how it runs."""
    words = [sys.executable, "-W", "ignore", str(RUN), "--toy", "--out", str(tmp_path)]
    stopped = subprocess.run(
        [*words, "steps", "teacher", "--minutes", "0.02"], check=False, capture_output=True, text=True
    )  # fmt: skip
    assert "was stopped; the same command goes on with it" in stopped.stderr
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("steps", "teacher", "distill", "sampling"):
        found = json.loads((tmp_path / f"{part}.json").read_text())
        assert all(rows for rows in found["sections"].values())
        assert {"machine", "torch", "commit", "command"} <= found["origin"].keys()
    judged = json.loads((tmp_path / "distill.json").read_text())["sections"]["Judged"]
    assert {"student, 1 step", "teacher, scale 1.5, 50 steps"} <= {row["who"] for row in judged}
    again = subprocess.run(words, check=True, capture_output=True, text=True)
    assert again.stdout == ""
