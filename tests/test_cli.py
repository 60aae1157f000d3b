"""The command line: every command's help, what bad input says, exit statuses, and a whole tiny run."""

import io
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from hidistill import weights
from hidistill.cli import COMMANDS, lookup, machine, main, outcome, progress
from hidistill.cli.commands.train import names
from hidistill.cli.progress import duration
from hidistill.experiments.study import Grid, Variant
from hidistill.recipes.fashion import distill
from hidistill.scores import Evaluation, Row
from hidistill.teachers.dit import DiT, Size
from hidistill.train.driver import Event

RECIPE = '''
"""A recipe of somebody else, in a file of their own."""

from pathlib import Path

import torch

from hidistill.objectives.flow_matching import FlowMatching
from hidistill.scores import Evaluation, Row
from hidistill.teachers.dit import DiT, Size
from hidistill.train.experiment import Experiment, Product
from hidistill.train.stage import Stage, Update
from hidistill.types import Batch


def tiny(*, steps: int = 3, size: int = 8, trap: Path | None = None, poison: int = -1, seed: int = 0) -> Experiment:
    """Train a toy on noise.

    Needs: nothing but
        patience.
    Reaches: nowhere.

    Args:
        steps: length of the only stage.
        size: side of the images.
        trap: a file whose presence interrupts step 110.
        poison: the step whose batch is not a number.
        seed: of everything.
    """
    torch.manual_seed(seed)
    teacher = DiT(image_size=size, channels=1, classes=3, patch=4, size=Size(8, 1, 1), taps=(0,))

    def batch_at(step: int) -> Batch:
        if trap is not None and trap.exists() and step == 110:
            raise KeyboardInterrupt
        x = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(step))
        return Batch(x * float("nan") if step == poison else x, torch.arange(4) % 3)

    stage = Stage("teacher", {"teacher": Update(FlowMatching(teacher), torch.optim.Adam(teacher.parameters()))}, steps)
    product = Product("teacher", "teacher.safetensors", "dit", teacher.config)
    return Experiment((stage,), {"teacher": teacher}, batch_at, seed, products={"teacher": product})


def pointless() -> int:
    """Return something else."""
    return 3
'''


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    return f"{tmp_path / 'mine.py'}:tiny"


@pytest.fixture
def student(tmp_path):
    path = tmp_path / "student.safetensors"
    net = DiT(image_size=8, channels=1, classes=3, patch=4, size=Size(8, 1, 1), taps=(0,)).student()
    torch.nn.init.normal_(net.net.unpatchify.weight)
    weights.save(path, net, family="dit-flow-map", config=net.config)
    return path


@pytest.fixture
def said(capsys):
    """Runs a command; its exit status and everything that it wrote, on one line."""

    def run(*words):
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, " ".join((out + err).split())

    return run


def test_overview_names_every_command(said):
    status, text = said("--help")
    assert status == 0
    assert all(f" {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(said, command):
    status, text = said(command, "--help")
    assert status == 0
    assert f"usage: hidistill {command}" in text


def test_unknown_command_names_the_nearest(said):
    assert said("trian")[0] == 2
    assert "did you mean 'train'?" in said("trian")[1]


def test_list_shows_every_recipe(said):
    status, text = said("list")
    names = list(lookup.bundled())
    assert status == 0
    assert {"fashion.distill", "images.distill", "digits.smoke"} <= set(names)
    assert all(name in text for name in names)


def test_the_help_of_train_names_every_recipe_without_torch(said):
    status, text = said("train", "--help")
    assert (status, names()) == (0, list(lookup.bundled()))
    assert all(name in text for name in names())
    script = "import sys; from hidistill.cli import main; main(['train', '--help']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


def test_every_bundled_recipe_says_what_it_needs_and_reaches():
    for recipe in lookup.bundled().values():
        assert lookup.summary(recipe), recipe.name
        assert lookup.section(recipe, "Needs"), recipe.name
        assert lookup.section(recipe, "Reaches"), recipe.name


def test_a_section_goes_on_over_indented_lines(recipe):
    found = lookup.find(recipe)
    assert lookup.section(found, "Needs") == "nothing but patience."
    assert lookup.section(found, "Reaches") == "nowhere."
    assert lookup.section(found, "Costs") == ""


def test_unknown_recipe_names_the_nearest_and_all(said):
    status, text = said("train", "fashion.distil")
    assert status == 2
    assert "unknown recipe 'fashion.distil'; did you mean 'fashion.distill'?" in text
    assert all(name in text for name in lookup.bundled())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.py:tiny"], "none.py does not exist"),
        (["none.py"], "none.py does not exist"),
        (
            ["images.distill", "--images", "x", "--teacher", "nowhere"],
            "teacher nowhere: there is no such file or folder",
        ),
        (["no.such.module:tiny"], "no module named 'no.such.module'"),
        (["json:lods"], "did you mean 'loads'?"),
        (["--out", "x"], "came before the recipe"),
    ],
)
def test_recipes_that_cannot_be_found(said, words, message):
    status, text = said("train", *words)
    assert status == 2
    assert message in text


def test_a_recipe_must_return_an_experiment(said, recipe):
    status, text = said("train", recipe.replace(":tiny", ":pointless"), "--out", "unused")
    assert status == 2
    assert "returned a int; a recipe returns an Experiment" in text


def test_a_file_without_a_function_names_its_recipes(said, recipe, tmp_path):
    status, text = said("train", recipe.removesuffix(":tiny"))
    assert status == 2
    assert f"a recipe is a function of a file, FILE.py:FUNCTION; write {recipe}" in text
    assert "pointless" not in text
    (tmp_path / "none.py").write_text("def f() -> int:\n    return 0\n")
    assert "FILE.py:FUNCTION, one that returns an Experiment" in said("train", tmp_path / "none.py")[1]
    (tmp_path / "late.py").write_text(f"from __future__ import annotations\n{RECIPE}")
    assert "late.py:tiny" in said("train", tmp_path / "late.py")[1]


def test_unknown_option_names_the_nearest(said, recipe):
    status, text = said("train", recipe, "--stesp", "3")
    assert status == 2
    assert "Unrecognized options: --stesp" in text
    assert "Perhaps you meant" in text
    assert "--steps INT" in text


def test_wrong_type_is_named(said, recipe):
    status, text = said("train", recipe, "--steps", "many")
    assert status == 2
    assert "Error parsing --steps" in text


def test_recipe_help_comes_from_its_docstring(said, recipe):
    status, text = said("train", recipe, "--help")
    assert status == 0
    assert "length of the only stage. (default: 3)" in text
    assert "runs/mine.tiny" in text


def test_image_size_that_the_patch_does_not_divide(said, recipe, tmp_path):
    status, text = said("train", recipe, "--size", "10", "--out", tmp_path / "run")
    assert status == 2
    assert "patch 4 does not divide images of 10 pixels; use one of [1, 2, 5, 10]" in text


def test_a_loss_that_is_not_finite_names_step_and_objective(said, recipe, tmp_path):
    status, text = said("train", recipe, "--poison", "2", "--out", tmp_path / "run")
    assert status == 2
    assert "step 2" in text
    assert "FlowMatching" in text


def test_what_a_recipe_logs_is_printed(said, tmp_path):
    (tmp_path / "loud.py").write_text(
        "import logging\n\ndef loud():\n    logging.getLogger('hidistill.recipes.loud').info('size 28 is chosen')\n"
    )
    assert "size 28 is chosen" in said("train", f"{tmp_path / 'loud.py'}:loud")[1]


def test_debug_lets_the_error_through(recipe, tmp_path):
    with pytest.raises(ValueError, match="patch 4"):
        main(["train", recipe, "--size", "10", "--out", str(tmp_path), "--debug"])


def test_a_file_as_the_runs_folder_is_refused_before_anything_is_built(said, tmp_path):
    (tmp_path / "t.txt").write_text("notes")
    (tmp_path / "late.py").write_text("def late():\n    raise RuntimeError('built')\n")
    code, text = said("train", f"{tmp_path / 'late.py'}:late", "--out", tmp_path / "t.txt")
    assert code != 0
    assert "is a file; give a folder" in text
    assert (tmp_path / "t.txt").read_text() == "notes"


def test_run_then_again_then_other_arguments(said, recipe, tmp_path):
    run = tmp_path / "run"
    first = said("train", recipe, "--out", run)
    before = (run / "models" / "teacher.safetensors").read_bytes()
    again = said("train", recipe, "--out", run)
    assert first[0] == again[0] == 0
    assert "teacher 3/3 loss teacher" in first[1]
    assert "finished" in again[1]
    assert (run / "models" / "teacher.safetensors").read_bytes() == before
    status, text = said("train", recipe, "--out", run, "--seed", "1")
    assert status == 2
    assert "seed is 0 there and 1 here" in text


def test_interrupted_run_goes_on(said, recipe, tmp_path):
    trap, run = tmp_path / "trap", tmp_path / "run"
    trap.touch()
    words = ("train", recipe, "--out", run, "--steps", "120", "--trap", trap)
    status, text = said(*words)
    assert status == 130, text
    assert "stopped; the same command goes on from step 100 of 120" in text
    trap.unlink()
    status, text = said(*words)
    assert status == 0
    assert "goes on from step 100 of 120" in text


def test_a_run_whose_only_checkpoint_is_truncated(said, recipe, tmp_path):
    run = tmp_path / "run"
    assert said("train", recipe, "--out", run)[0] == 0
    (run / "finished").unlink()
    for path in run.glob("checkpoints/*/teacher.safetensors"):
        path.write_bytes(path.read_bytes()[:40])
    status, text = said("train", recipe, "--out", run)
    assert status == 2
    assert "teacher.safetensors has 40 bytes" in text
    assert f"Remove {run / 'checkpoints'} to begin this run again at its first step, or use another --out" in text
    shutil.rmtree(run / "checkpoints")
    assert said("train", recipe, "--out", run)[0] == 0


def test_sample_writes_picture_and_array(said, student, tmp_path):
    out, npz = tmp_path / "deep" / "grid.png", tmp_path / "images.npz"
    assert said("sample", student, "--count", "7", "--out", out, "--npz", npz)[0] == 0
    with Image.open(out) as image:
        assert image.width < image.height * 2
        assert len(image.convert("L").getcolors()) > 2
    with np.load(npz) as content:
        assert content["images"].shape == (7, 1, 8, 8)
        assert content["images"].dtype == np.uint8
        assert content["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("sampler", ["jump", "renoise"])
def test_an_image_does_not_depend_on_how_many_are_drawn(said, student, tmp_path, sampler):
    drawn = []
    for count in (2, 5):
        npz = tmp_path / f"{count}.npz"
        flags = ("--steps", 3, "--sampler", sampler, "--label", 1, "--out", tmp_path / "x.png", "--npz", npz)
        assert said("sample", student, "--count", count, *flags)[0] == 0
        with np.load(npz) as content:
            drawn.append(content["images"].astype(int))
    assert np.abs(drawn[0] - drawn[1][:2]).max() <= 1  # products of other sizes round otherwise, at most by one gray
    assert drawn[1].std() > 1


def test_sample_of_a_run_takes_its_teacher_with_guidance(said, recipe, tmp_path):
    run, out = tmp_path / "run", tmp_path / "x.png"
    assert said("train", recipe, "--out", run)[0] == 0
    status, text = said(
        "sample", run, "--count", "3", "--steps", "2", "--sampler", "heun", "--scale", "2", "--out", out
    )
    assert (status, out.exists()) == (0, True)
    assert "3 images in 2 steps of heun" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "3"], "--label 3: labels are 0 to 2"),
        (["--label", "-1"], "--label -1: labels are 0 to 2"),
        (["--label", "shirt"], "--label shirt: these weights know no names of classes; labels are 0 to 2"),
        (["--steps", "0"], "--steps 0: a sampler makes 1 to 1000 steps"),
        (["--steps", "1001"], "--steps 1001"),
        (["--count", "0"], "--count 0: from 1 to 100,000"),
        (["--scale", "2"], "--scale 2.0: a student has its teacher's guidance built in"),
        (["--sampler", "euler"], "use jump or renoise"),
        (["--out", "x.gif"], "the picture is a PNG file"),
    ],
)
def test_sample_refuses(said, student, words, message):
    status, text = said("sample", student, *words)
    assert status == 2
    assert message in text


def test_a_negative_seed_is_refused_everywhere(said, recipe, student, tmp_path):
    out = tmp_path / "out"
    for words in (
        ("demo", "--out", out),
        ("train", recipe, "--out", out),
        ("sample", student, "--out", f"{out}.png"),
        ("draw", student, "--out", out, "--count", 2),
        ("evaluate", tmp_path),
        ("inspect", "--teacher", student),
        ("doctor", recipe),
    ):
        status, text = said(*map(str, words), "--seed", "-1")
        assert status == 2, words
        assert "seed -1 is negative; seeds are whole numbers from 0 on" in text, words
    assert not out.exists()
    with pytest.raises(ValueError, match="seed -1 is negative"):
        Grid((Variant("a", {}),), (0, -1))


def test_sample_by_the_name_of_a_class(said, tmp_path):
    path, out, npz = tmp_path / "named.safetensors", tmp_path / "x.png", tmp_path / "x.npz"
    net = DiT(image_size=8, channels=1, classes=3, patch=4, size=Size(8, 1, 1), taps=(0,)).student()
    weights.save(path, net, family="dit-flow-map", config=net.config, classes=("T-shirt", "2", "bag, large"))

    def label(given):
        status, text = said("sample", path, "--count", "2", "--label", given, "--out", out, "--npz", npz)
        assert status == 0, text
        with np.load(npz) as content:
            return sorted(set(content["labels"].tolist())), text

    assert label("T-shirt")[0] == label("0")[0] == [0]
    assert label("bag, large")[0] == [2]
    assert label("2")[0] == [1], "a name comes before a number"
    assert "2 images of class 2, bag, large, in 1 step of jump" in label("bag, large")[1]
    status, text = said("sample", path, "--label", "tshirt", "--out", out)
    assert status == 2
    assert "no class has this name; did you mean 'T-shirt'? Labels are T-shirt, 2, bag, large, or 0 to 2" in text


def test_sample_refuses_a_negative_scale_of_a_teacher(said, tmp_path):
    net = DiT(image_size=8, channels=1, classes=0, patch=4, size=Size(8, 1, 1), taps=(0,))
    weights.save(tmp_path / "teacher.safetensors", net, family="dit", config=net.config)
    status, text = said("sample", tmp_path / "teacher.safetensors", "--scale", "-1", "--out", tmp_path / "x.png")
    assert status == 2
    assert "a guidance scale is 0 or more" in text
    status, text = said("sample", tmp_path / "teacher.safetensors", "--label", "0")
    assert status == 2
    assert "these weights know no classes" in text


def test_sample_refuses_what_is_no_student(said, tmp_path, student):
    assert "there is no such file or folder" in said("sample", tmp_path / "none.safetensors")[1]
    assert "models has none of student.safetensors" in said("sample", tmp_path)[1]
    other = tmp_path / "other.safetensors"
    weights.save(other, torch.nn.Linear(1, 1), family="line", config={})
    assert "holds a 'line'" in said("sample", other)[1]
    student.write_bytes(student.read_bytes()[:-10])
    status, text = said("sample", student)
    assert status == 2
    assert str(student) in text


def test_image_folder_that_is_empty(said, tmp_path):
    status, text = said("train", "images.teacher", "--images", tmp_path, "--out", tmp_path / "run")
    assert status == 2
    assert str(tmp_path) in text


def test_report_and_evaluate_of_no_run(said, tmp_path):
    for command in ("report", "evaluate"):
        status, text = said(command, tmp_path / "none")
        assert status == 2
        assert "none" in text


def test_doctor_measures(said, recipe, monkeypatch):
    monkeypatch.setattr("hidistill.cli.machine.FORWARD_SECONDS", 0.05)
    monkeypatch.setattr("hidistill.cli.machine.RECIPE", recipe)
    status, text = said("doctor")
    assert status == 0
    for word in (
        "python",
        "torchvision",
        "cores",
        "bundled pictures",
        "images a second in one step",
        "demo's training",
        "demo, in all",
    ):
        assert word in text
    assert "demo's evaluation" not in text, "this recipe has none"


def test_the_demos_evaluation_is_part_of_its_total(monkeypatch):
    """With seconds of one's own choosing the sum can be done by hand."""
    finish = distill(evaluate_samples=100, sketch_steps=1, refine_steps=1).finish
    assert sorted(finish.passes) == [1, 1, 2, 2, 2, 4, 4, 4, 8, 32, 50, 100]
    monkeypatch.setattr(
        machine,
        "find",
        lambda name: SimpleNamespace(function=lambda: SimpleNamespace(finish=finish, total_steps=2, stages=())),
    )
    monkeypatch.setattr(machine, "forwards_per_second", lambda precision="float32": 210.0)
    monkeypatch.setattr(machine, "seconds_of", lambda experiment: iter([20.0, 40.0]))
    monkeypatch.setattr(machine, "seconds_of_probes", lambda experiment: 5.0)
    monkeypatch.setattr(machine, "seconds_of_judging", lambda judges, samples: samples / 100)
    found = {finding.what: finding.words for finding in machine.costs()}
    assert found["demo's training"].startswith("about 1 min 05 s for the 2 steps")
    assert found["demo's evaluation"] == "about 1 min 53 s for 13 rows of 100 images"
    assert found["demo, in all"] == "about 2 min 58 s"


def event(kind, step, **more):
    numbers = {"steps": 10, "global_step": step, "total_steps": 20, "seconds_left": 75.0} | more
    return Event(kind, "sketch", step, **numbers)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_step_time_loss_and_probe(terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=140)
    with progress.display(console) as show:
        show(event("probe", 3, metrics={"hf": 0.5}))
        show(event("step", 4, metrics={"student/loss": 0.25, "student/gradient": 9.0}))
        show(event("stage", 4, message="left a file"))
    text = file.getvalue()
    for word in (
        "sketch",
        "4/10",
        "4/20 in all",
        "1 min 15 s left",
        "loss student 0.25",
        "probe hf 0.5",
        "left a file",
    ):
        assert word in text
    assert "gradient" not in text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_of_one_stage_says_its_steps_once(terminal):
    file = io.StringIO()
    with progress.display(Console(file=file, force_terminal=terminal, width=140)) as show:
        show(event("step", 4, total_steps=10))
    assert "4/10" in file.getvalue()
    assert "in all" not in file.getvalue()


def test_plain_lines_come_now_and_then(monkeypatch):
    clock, file = SimpleNamespace(now=100.0), io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    with progress.lines(Console(file=file, width=140)) as show:
        for step in range(1, 10):
            clock.now += 4.0
            show(event("step", step))
    assert [line.split()[1] for line in file.getvalue().splitlines()] == ["1/10", "4/10", "7/10"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(9.4, "9 s"), (59.6, "1 min 00 s"), (125.0, "2 min 05 s"), (3720.0, "1 h 02 min")]
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_the_table_of_a_run(tmp_path, capsys):
    numbers = {"fd/classifier": 1.25, "high_frequency": 0.5, "density": 0.75}
    rows = (Row("sketch, 1 step", "student", 10, 1, 1, None, 0.002, numbers), Row("real training images", "real", 10))
    (tmp_path / "report.html").touch()
    Evaluation(10, 3, {}, [], {}, rows).save(tmp_path / "evaluation.json")
    outcome.show(tmp_path)
    text = capsys.readouterr().out
    for words in (
        "10 images, seed 3",
        "features of A: classifier",
        "A\N{NO-BREAK SPACE}↓",
        "→\N{NO-BREAK SPACE}1",
        "1.250",
        "0.500",
        "report.html",
    ):
        assert words in text
    assert "0.750" not in text  # the page has all numbers, the terminal the telling ones


@pytest.mark.parametrize("width", [80, 100, 120])
def test_all_numbers_are_whole_on_a_terminal(width):
    """Every number with its error on its row's own line, in tables that repeat the rows' names."""
    spaces = ("fashion-classifier-64", "efficientnet-lite0-64px")
    quantities = ("fd", "fd_limit", "kid", "kid_std", "recall", "precision", "coverage", "density", "nearest")
    names = [f"{name}/{space}" for space in spaces for name in quantities]
    names += ["agreement", "diversity", "high_frequency", "spectrum", "power_low", "power_high", "end_distance"]
    rows = []
    for r, name in enumerate(("teacher, scale 1.5, 50 steps", "a [bold] and a really very long name of a folder")):
        numbers = {metric: 1000.0 + 100 * r + i for i, metric in enumerate(names)}
        left_out = {metric: [number, number + 20 + 2 * i] for i, (metric, number) in enumerate(numbers.items())}
        rows.append({"name": name, "n": 500, "nfe": 2, "metrics": numbers, "left_out": left_out})
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    for part in outcome.whole_tables({"n": 500, "seed": 0, "rows": rows}, width):
        console.print(part)
    text = file.getvalue()
    lines = text.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "…" not in text
    assert all(text.count(f"Features of {space}") >= 1 for space in spaces)
    for r in range(2):
        for i, metric in enumerate(names):
            factor, unit = (100, " %") if metric == "agreement" else (1, "")
            number = f"{factor * (1000 + 100 * r + i):.{1 if unit else 2}f}{unit}"
            error = f"{factor * (10 + i):.{1 if unit else 2}f}{unit}"
            (line,) = [line for line in lines if f" {number} ± {error} " in f"{line} "]
            assert line.startswith((" teacher, scale 1.5, 50 steps ", " a [bold] and a really very")[r]), line


def test_evaluate_says_everything_and_what_to_mind(tmp_path, capsys):
    """The table that a person reads after `evaluate`, and after `score`, where no seed made the pictures."""
    row = Row("a", "samples", 10, metrics={"kid/x": 1.5, "agreement_real": 0.3}, left_out={"kid/x": [1.0, 1.2]})
    note = "10 images a row for 64 features of x: the covariance is singular"
    for seed, said in ((3, "10 images, seed 3, ± the jackknife"), (None, "10 images, ± the jackknife")):
        Evaluation(10, seed, {}, [], {}, (row,), notes=(note,)).save(tmp_path / "evaluation.json")
        outcome.show(tmp_path, full=True)
        text = capsys.readouterr().out
        assert said in text
        assert "1.500 ± 0.100" in text
        assert f"note: {note}" in text
        assert "30.0 %" not in text, "what no row can change"


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_is_whole_on_a_terminal(width):
    spaces = ("fashion-classifier-64", "efficientnet-lite0-64px")
    numbers = {f"{name}/{space}": 1234.5 if name == "fd" else 0.456 for name in ("fd", "recall") for space in spaces}
    numbers |= {"high_frequency": 0.789, "agreement": 0.9, "end_distance": 0.12}
    name = "teacher, scale 1.5, 50 steps"
    evaluation = {
        "n": 10,
        "seed": 0,
        "rows": [{"name": name, "nfe": 100, "seconds_per_image": 1.0, "metrics": numbers}],
    }
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    console.print(outcome.table(evaluation, costs=width >= outcome.NARROW))
    lines = file.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    words = set(" ".join(lines).replace("\N{NO-BREAK SPACE}", " ").replace(",", " ").split())
    expected = {
        *spaces,
        "Fréchet",
        "distance",
        "frequency",
        "agreement",
        "recall",
        "teacher's",
        "1234.50",
        "0.456",
        "steps",
    }
    expected |= {"A", "B", "↓", "↑", "scale", "1.5", "0.789", "0.120"} | ({"passes"} if width > 80 else set())
    assert expected <= words
    assert "…" not in " ".join(lines)
