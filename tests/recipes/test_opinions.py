"""Further judges, other runs' rows, the best guidance, and the table in its formats."""

import json
import re
import shutil

import pytest
from test_again import QUICK, run
from test_two_stages import pictures, tiny_teacher

from hidistill.cli import main
from hidistill.recipes.again import judge
from hidistill.recipes.opinions import inception_protocol
from hidistill.recipes.tables import escaped, latex

__all__ = ["pictures", "run"]


def evaluation(run):
    return json.loads((run / "evaluation.json").read_text())


def test_everything_in_one_table_and_compared(run, tmp_path, capsys):
    other = tmp_path / "second"
    shutil.copytree(run, other)
    told = []
    judge(
        run, **QUICK | {"scales": (1.0, 2.0)}, full=True, groups=4, best_guidance=True, also=(other,),
        on_progress=lambda *words: told.append(words),
    )  # fmt: skip
    found = evaluation(run)
    rows = {row["name"]: row for row in found["rows"]}
    assert "student of second, 1 step" in rows
    teachers = [name for name in rows if name.startswith("teacher")]
    assert any("the teacher's best scale is" in note and "validation pictures" in note for note in found["notes"])
    assert len(teachers) <= 2
    numbers = rows["student, 1 step"]
    for wanted in ("kid/", "kid_std/", "nearest/"):
        assert any(key.startswith(wanted) for key in numbers["metrics"]), wanted
    assert not any(key.startswith("fd_limit/") for key in numbers["metrics"])  # too few images for one
    assert "spectrum" in numbers["metrics"]
    assert numbers["latency_seconds"] > 0
    assert {len(values) for values in numbers["left_out"].values()} == {4}
    assert rows["student of second, 1 step"]["metrics"] == numbers["metrics"]
    assert ("student, 1 step", 12, 12) in told
    for name, mark in (("evaluation.md", "±"), ("evaluation.tex", r"$\pm$")):
        text = (run / name).read_text()
        assert mark in text
        assert "student of second, 1 step" in text
    lines = [line for line in (run / "evaluation.tex").read_text().splitlines() if line.endswith(r"\\")]
    assert {line.count("&") - line.count(r"\&") for line in lines} == {lines[0].count("&") - lines[0].count(r"\&")}
    assert main(["compare", str(run), "--rows", "student, 1 step", "student of second, 1 step"]) == 0
    assert re.search(r"\b0 of \d+ differences are resolved", capsys.readouterr().out), "a student is as good as itself"


def test_uniform_labels_are_stated(run):
    judge(run, **QUICK, labels="uniform", seed=1)
    assert evaluation(run)["labels"] == "uniform"
    assert "classes uniform" in (run / "evaluation.md").read_text()


def test_others_that_do_not_belong(run, tmp_path):
    with pytest.raises(ValueError, match=r"--also .*none: neither a weights file nor a run"):
        judge(run, **QUICK, also=(tmp_path / "none",))
    large = tiny_teacher(tmp_path / "large.safetensors", size=12, channels=3, classes=2, patch=2)
    with pytest.raises(ValueError, match=r"have shape \(3, 12, 12\), those of this table \(3, 8, 8\)"):
        judge(run, **QUICK, also=(large,))
    with pytest.raises(ValueError, match="9 groups of 12 images"):
        judge(run, **QUICK, groups=9)
    with pytest.raises(FileNotFoundError, match="there are no Inception weights"):
        inception_protocol(tmp_path / "none.pth")


def test_text_for_latex():
    assert escaped("50 % of a_b & c ± d → 1 ↓") == r"50 \% of a\_b \& c $\pm$ d $\to$ 1 $\downarrow$"
    text = latex([["", "FD ↓"], ["a", "1"]], "Fréchet")
    assert r"\begin{tabular}{lr}" in text
    assert r"Fr\'echet" in text
