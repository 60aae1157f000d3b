"""Further judges, other runs' rows, the best guidance, and the table in its formats."""

import json
import re
import shutil

import pytest
from test_again import QUICK, run
from test_two_stages import pictures, tiny_teacher

from hidistill.cli import main
from hidistill.recipes import tables
from hidistill.recipes.again import judge
from hidistill.recipes.opinions import inception_protocol
from hidistill.recipes.tables import escaped, latex
from hidistill.scores import Evaluation, Row

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
    for part in (run / "evaluation.tex").read_text().split(r"\begin{table}")[1:]:
        columns = len(re.findall(r"\\begin\{tabular\}\{(l?r+)\}", part)[0])
        assert columns <= 7
        assert {line.count("&") - line.count(r"\&") for line in part.splitlines() if line.endswith(r" \\")} == {
            columns - 1
        }
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


def test_every_number_stands_in_a_table_of_its_space_and_kind(tmp_path):
    spaces = ("Inception-2015", "Inception-2015-spatial", "digits_cnn")
    numbers = {f"{name}/{space}": 1.0 for name in ("fd", "kid", "kid_std", "precision", "recall") for space in spaces}
    numbers |= {"sfid/Inception-2015-spatial": 2.0, "high_frequency": 3.0, "agreement": 0.5}
    rows = (
        Row("a|b\nc", "samples", 10, metrics=numbers, left_out={"fd/digits_cnn": [1.0, 1.2]}),
        Row("B", "samples", 20),
    )
    evaluation = Evaluation(10, None, {}, [], {"digits_cnn": "64 {features}"}, rows, "as given", ("B: 2 classes",))
    tables.save(evaluation, tmp_path)
    text = (tmp_path / "evaluation.md").read_text()
    headers = dict(re.findall(r"### (.*)\n\n(\|.*\|)\n", text))
    assert headers["Features of digits_cnn"].startswith(
        "|  | Fréchet distance ↓ | kernel distance ↓ | kernel distance, dev"
    )
    assert headers["Neighbors in digits_cnn"] == "|  | recall ↑ | precision ↑ |"
    assert "### Features of Inception-2015\n\n|  | sFID Inception-2015-spatial ↓ | Fréchet distance ↓ |" in text
    assert headers["The pictures themselves"] == "|  | class agreement ↑ |"
    assert headers["Rows, and what an image costs"] == "|  | images |"
    assert sum(header.count("|") - 2 for header in re.findall(r"### .*\n\n(\|.*\|)\n", text)) == len(numbers) + 1
    assert r"| a\|b c | 1.000 ± 0.100 | 1.000 |" in text
    assert "\n\nNote: B: 2 classes.\n" in text
    assert "seed" not in text
    written = (tmp_path / "evaluation.tex").read_text()
    assert r"a\textbar{}b c & 1.000 $\pm$ 0.100 &" in written
    assert r"digits\_cnn: 64 \{features\}. Note: B: 2 classes." in written


def test_text_for_latex():
    assert escaped("{a} <b> | ~^\\") == (
        r"\{a\} \textless{}b\textgreater{} \textbar{} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert escaped("50 % of a_b & c ± d → 1 ↓") == r"50 \% of a\_b \& c $\pm$ d $\to$ 1 $\downarrow$"
    text = latex([["", "FD ↓"], ["a", "1"]], "Fréchet")
    assert r"\begin{tabular}{lr}" in text
    assert r"Fr\'echet" in text
