"""A run with the demo's networks, batches and stages, killed twenty times, is the run that was left alone."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RUN = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from hidistill.recipes.fashion import distill
from hidistill.train.driver import execute

torch.set_num_threads(1)
arguments = {"sketch_steps": 40, "refine_steps": 40}
experiment = replace(distill(**arguments), probe=None, finish=None)
execute(experiment, Path(sys.argv[1]), recipe="fashion.distill", arguments=arguments, checkpoint_every=3)
"""


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder)])


def steps_done(folder: Path) -> int:
    journal = folder / "metrics.jsonl"
    return journal.read_text().count("\n") if journal.exists() else 0


@pytest.mark.slow
def test_twenty_kills_leave_no_trace_in_the_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    assert process.wait() == 0
    chance, kills, tries = random.Random(0), 0, 0
    while kills < 20:
        tries += 1
        assert tries < 60
        process, before = start(killed), steps_done(killed)
        deadline = time.time() + 120
        while process.poll() is None and steps_done(killed) < before + 2 and time.time() < deadline:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2.5))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            kills += 1
        else:
            assert process.returncode == 0
            break
    process = start(killed)
    assert process.wait() == 0
    assert kills == 20, "the run ended before it was killed twenty times"
    for name in ("sketch", "student"):
        first, second = (load_file(run / "models" / f"{name}.safetensors") for run in (whole, killed))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    steps = [line["global_step"] for line in lines if line["kind"] == "step"]
    assert steps == list(range(1, 81))
