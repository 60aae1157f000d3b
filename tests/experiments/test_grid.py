"""Cells run in processes of their own, once each, whatever happens between; tables and sections come out of them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from hidistill.cli import main
from hidistill.experiments import grid, report
from hidistill.experiments.study import Grid, Results, Variant

NAME = "propositions"
QUICK = ("Prop. 1: identity, closed form", "Prop. 2: recursion, N = 1", "Prop. 2: recursion, N = 64")


@pytest.fixture
def quick(monkeypatch):
    """The real experiment without its networks, which take longest."""
    study = grid.find(NAME)
    kept = [replace(variant, against=None) for variant in study.grids["small"].variants if variant.name in QUICK]
    both = Grid(kept, (0, 1))
    smaller = replace(study, grids={"small": both, "full": both}, reference=QUICK[2])
    monkeypatch.setattr("hidistill.experiments.studies.propositions.STUDY", smaller)
    return smaller


def test_cells_are_measured_once(quick, tmp_path, caplog):
    results = grid.run(NAME, "small", tmp_path, jobs=2)
    assert results.numbers.keys() == {(name, seed) for name in QUICK for seed in (0, 1)}
    assert max(results.of(QUICK[0], "inside")) < 1e-6
    coarse, fine = (results.of(name, "error") for name in QUICK[1:])
    assert min(coarse) > 4 * max(fine)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(files) == 6
    first = sorted(files)[0]
    first.unlink()
    again = grid.run(NAME, "small", tmp_path, jobs=1)
    assert {path for path in files if path.stat().st_mtime_ns != files[path]} == {first}
    for key, numbers in results.numbers.items():
        assert again.numbers[key] | {"seconds": 0} == numbers | {"seconds": 0}


def test_some_variants_bring_those_that_they_are_compared_with():
    study = grid.find("initialization")
    found = grid.chosen(study, "full", seeds=(), variants=("MeanFlow, 250 steps", "hard: random weights"))
    assert [variant.name for variant in found.variants] == [
        "teacher's weights",
        "MeanFlow, 250 steps",
        "teacher's weights, cost of 250 more",
        "hard: teacher's weights",
        "hard: random weights",
    ]
    assert found.seeds == study.grids["full"].seeds
    assert grid.chosen(study, "full", seeds=(), variants=()) == study.grids["full"]
    with pytest.raises(ValueError, match=r"MeanFlow, 99 steps.*these are.*teacher's weights"):
        grid.chosen(study, "full", seeds=(), variants=("MeanFlow, 99 steps",))


@pytest.mark.parametrize("name", grid.known())
def test_a_part_of_every_experiment_has_a_section(name, tmp_path):
    """With numbers of one row and what it is compared with, as `--variants` leaves them."""
    study = grid.find(name)
    part = grid.chosen(study, "small", seeds=(0, 1), variants=(study.reference,))
    keys = [column.key for column in study.columns] + ["seconds", "weights"]
    numbers = {(variant.name, seed): dict.fromkeys(keys, 1.0 + seed) for variant in part.variants for seed in (0, 1)}
    text = report.write(Results(study, part, numbers), tmp_path, name=name, size="small", document=None)
    rows, every = len(part.variants), len(study.grids["small"].variants)
    assert f"Of the {every} variants of this size {rows} were run." in text.replace("\n", " ")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_other_arguments_are_not_mixed_in(quick, tmp_path):
    task = grid.Task(quick.grids["small"].variants[0], 0)
    grid.store(task.folder(tmp_path), {"kind": "identity", "step": 0.5}, {"error": 1.0}, 1.0)
    with pytest.raises(ValueError, match=r"0\.5.*use another --out"):
        grid.run(NAME, "small", tmp_path, jobs=1)


def test_a_cell_that_fails_is_named_and_the_others_are_kept(quick, tmp_path, monkeypatch):
    broken = Variant("broken", {"kind": "recursion", "steps": "many"})
    wider = replace(
        quick, grids={"small": Grid([broken, *quick.grids["small"].variants[1:2]], (0,))}, reference="broken"
    )
    monkeypatch.setattr("hidistill.experiments.studies.propositions.STUDY", wider)
    with pytest.raises(grid.CellFailed, match=r"1 of 2 cells failed: broken with seed 0.*log\.txt"):
        grid.run(NAME, "small", tmp_path, jobs=1)
    assert "ValueError" in (tmp_path / "cells" / "broken" / "0" / "log.txt").read_text()
    assert (tmp_path / "cells" / "Prop.-2--recursion,-N---1" / "0" / "result.json").exists()


def test_numbers_that_are_not_finite_are_no_result(tmp_path):
    from hidistill.experiments.cell import main as measure

    with pytest.raises(ValueError, match="numbers are finite"):
        measure(NAME, json.dumps({"kind": "identity", "step": 0.0}), "0", str(tmp_path))
    assert not (tmp_path / "result.json").exists()


def test_a_killed_grid_goes_on(tmp_path):
    words = [sys.executable, "-m", "hidistill", "experiment", NAME, "--out", str(tmp_path), "--jobs", "2"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not list(tmp_path.rglob("result.json")) and time.monotonic() < until:
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = list(tmp_path.rglob("result.json"))
    assert done
    study = grid.find(NAME)
    tasks = [grid.Task(variant, seed) for variant in study.grids["small"].variants for seed in (0, 1)]
    there = [task for task in tasks if grid.stored(task, tmp_path) is not None]
    assert len(there) == len(done) < len(tasks)


def test_results_become_a_table_a_section_and_two_pictures(quick, tmp_path):
    numbers = {
        (name, seed): {"error": 10.0**-i + seed / 10, "seconds": 1.0} for i, name in enumerate(QUICK) for seed in (0, 1)
    }
    results = Results(quick, quick.grids["small"], numbers)
    document = tmp_path / "docs" / "results.md"
    document.parent.mkdir()
    document.write_text(
        "before\n<!-- begin experiment propositions -->\nearlier\n<!-- end experiment propositions -->\nbetween\n"
        "<!-- begin experiment propositions-full -->\n<!-- end experiment propositions-full -->\nafter\n"
    )
    text = report.write(results, tmp_path, name=NAME, size="small", document=document)
    found = document.read_text()
    assert found.startswith("before\n")
    assert found.endswith("after\n")
    assert "earlier" not in found
    assert text in found
    assert f"| {QUICK[0]} | 1.050 ± 0.071 | - | - | - | 1 |" in text
    assert "not resolved" in text
    assert (tmp_path / "docs" / "pictures" / "propositions.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "docs" / "pictures" / "propositions.svg").read_bytes().lstrip().startswith(b"<?xml")
    longer = report.write(results, tmp_path, name=NAME, size="full", document=document)
    small, full = document.read_text().split("between\n")
    assert text in small
    assert longer in full
    assert "](pictures/propositions-full.png)" in longer
    assert (tmp_path / "docs" / "pictures" / "propositions-full.png").exists()
    (tmp_path / "other.md").write_text("no marks\n")
    with pytest.raises(ValueError, match="<!-- begin experiment propositions -->"):
        report.write(results, tmp_path, name=NAME, size="small", document=tmp_path / "other.md")


def test_a_document_without_marks_is_refused_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "plain.md").write_text("no marks\n")
    for document, words in (("plain.md", "has no place for this"), ("none.md", "there is no document")):
        command = ["experiment", NAME, "--out", str(tmp_path / "out"), "--document", str(tmp_path / document)]
        assert main(command) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_five_seeds_apart_are_better_or_worse(quick, tmp_path):
    del tmp_path
    grid_of_five = Grid(quick.grids["small"].variants, range(5))
    heights = dict(zip(QUICK, (1.0, 3.0, 2.0), strict=True))
    numbers = {(n, s): {"error": heights[n] + s / 10 + 0.01 * (s % 2), "seconds": 1.0} for n in QUICK for s in range(5)}
    text = report.comparisons(Results(quick, grid_of_five, numbers))
    assert f"| {QUICK[0]} | {QUICK[2]} | -1.000 [-1.000, -1.000] better | - |" in text
    assert f"| {QUICK[1]} | {QUICK[2]} | +1.000 [+1.000, +1.000] worse | - |" in text


def test_seeds_that_diverged_are_left_out_of_pairs_and_counted(quick):
    four = Grid(quick.grids["small"].variants, range(4))
    numbers = {(n, s): {"error": float(s), "seconds": 1.0} for n in QUICK for s in range(4)}
    numbers[QUICK[0], 1] = {"seconds": 1.0}
    numbers[QUICK[2], 2] = {"seconds": 1.0}
    results = Results(quick, four, numbers)
    assert results.together((QUICK[0], QUICK[2]), "error") == [(0.0, 0.0), (3.0, 3.0)]
    assert f"| {QUICK[0]} | 1.667 ± 1.528 (3 of 4) |" in report.table(results)
    assert f"| {QUICK[0]} | {QUICK[2]} | +0.000 [+0.000, +0.000] not resolved (2 of 4) |" in report.comparisons(results)


def test_comparisons_with_variants_that_are_not_run_are_refused():
    with pytest.raises(ValueError, match=r"\['elsewhere'\], which are not run"):
        Grid([Variant("here", {}, ("elsewhere",))], (0,))


def test_the_command_lists_experiments_and_refuses_others(capsys):
    assert main(["experiment", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in grid.known())
    assert main(["experiment", "proposition"]) == 2
    assert "propositions" in capsys.readouterr().err
