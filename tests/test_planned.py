"""What a run would take, from the command line; nothing is started by asking."""

import json
import shlex
import subprocess
import sys

import pytest

from hidistill.cli import main

RECIPE = """
import torch
from torch import nn

from hidistill.objectives.flow_matching import FlowMatching
from hidistill.train.experiment import Experiment
from hidistill.train.stage import Stage, Update
from hidistill.types import Batch


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))

    def velocity(self, x_t, *, t, cond):
        return self.layers(torch.cat([x_t, t[:, None]], 1))


def fit(*, steps: int = 3, batch_size: int = 8) -> Experiment:
    '''Fit a field.'''
    field = Field()
    update = Update(FlowMatching(field), torch.optim.Adam(field.parameters(), lr=1e-3))

    def batch_at(step: int) -> Batch:
        torch.manual_seed(step)
        return Batch(torch.randn(batch_size, 2), torch.zeros(batch_size))

    return Experiment([Stage("fit", {"field": update}, steps)], {"field": field}, batch_at, seed=0)
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "own.py").write_text(RECIPE)
    return f"{tmp_path / 'own.py'}:fit"


def table_of(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "0.4"], "--share 0.4 is a share of a datasheet's rate, and this machine is measured"),
        (["--machine", "H100", "--device", "cuda"], "--device cuda is of this machine, and --machine H100 is off"),
    ],
    ids=str,
)
def test_options_without_effect_are_refused(recipe, capsys, options, message):
    assert main(["doctor", recipe, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_doctor_foretells_a_recipe(recipe, capsys):
    options = ["--batch-size", "16", "--processes", "2", "--machine", "H100", "--price", "2"]
    assert main(["doctor", recipe, *options]) == 0
    text = capsys.readouterr().out
    found = table_of(text)
    assert found["batch"] == ["8 of 16"]
    assert found["memory: field"] == ["0.0 MiB"]  # 98 numbers
    assert found["products: update field"] == [f"{(2 * 1280 + 2 * 8 * 16 * 2) / 1e12:.4g} T"]
    assert "Rates: H100, its datasheet" in text
    assert "at 2 an hour" in text


def test_a_dry_run_starts_nothing(recipe, tmp_path, capsys):
    assert main(["train", recipe, "--out", str(tmp_path / "run"), "--dry-run", "4"]) == 0
    text = capsys.readouterr().out
    assert table_of(text)["batch"] == ["2 of 8"]
    assert "Rates: measured here" in text
    assert table_of(text)["seconds a step, sending"] == ["not foretold"]
    assert "without evaluations, checkpoints and what is sent between processes" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("processes", "started"),
    [
        ("--dry-run=1", "python"),
        ("--dry_run=2", "torchrun --standalone --nproc-per-node 2"),
        (
            "--dry-run=12",
            "torchrun --nnodes 2 --nproc-per-node 6 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id 1",
        ),
    ],
)
def test_a_dry_run_says_how_the_run_is_started(processes, started, recipe, tmp_path, capsys):
    out = str(tmp_path / "a run")
    options = [recipe, "--batch-size", "48", "--out", out, "--passes=2"]
    assert main(["train", *options[:3], processes, *options[3:]]) == 0
    *_, line = capsys.readouterr().out.split("\n\n")
    assert line == f"    {started} -m hidistill train {shlex.join(options)}\n"


def test_the_command_of_a_dry_run_runs(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", recipe, "--dry-run", "1", "--out", str(out), "--steps", "2"]) == 0
    *_, line = capsys.readouterr().out.split("\n\n")
    interpreter, *words = shlex.split(line)
    assert interpreter == "python"
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    assert (out / "finished").exists()


def test_a_dry_run_plans_what_the_run_would_be(recipe, capsys):
    """Passes hold fewer rows at once, and parts of networks lie on each process."""
    found = []
    for options in ([], ["--passes", "2"], ["--sharded"]):
        assert main(["train", recipe, "--batch-size", "4096", "--dry-run", "2", *options]) == 0
        found.append(table_of(capsys.readouterr().out))
    whole, passes, parts = found
    assert {table["batch"][0] for table in found} == {"2048 of 4,096"}
    assert {table["products: update field"][0] for table in found} == {whole["products: update field"][0]}
    activations, fewer = (float(each["memory: activations"][0].split()[0]) for each in (whole, passes))
    assert fewer < 0.6 * activations
    assert "memory: gathered" in parts
    assert "memory: gathered" not in whole


def test_a_batch_that_cannot_be_split_is_bad_input(recipe, capsys):
    assert main(["train", recipe, "--dry-run", "3"]) == 2
    assert "cannot be split evenly over 3 processes" in capsys.readouterr().err


def test_a_run_keeps_the_journals_that_it_was_asked_for(recipe, tmp_path):
    out = tmp_path / "run"
    assert main(["train", recipe, "--out", str(out), "--journal", "tensorboard"]) == 0
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    pace = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["pace"]
    assert {"samples_per_second", "flops_per_second", "utilization", "data_share", "memory_mib"} <= pace.keys()
