import json
from dataclasses import replace

import pytest

from hidistill.scores import Evaluation, Row, Spread, markdown, summary, table

ROWS = (
    Row("real train", "real", 200, metrics={"fd/pixels": 0.5}),
    Row("student, 1 step", "student", 200, 1, 1, None, 0.004, {"fd/pixels": 1.25, "end_distance": 0.18}),
)
EVALUATION = Evaluation(200, 3, {"n": 200, "shape": [1, 8, 8]}, ["frechet/pixels"], {"pixels": "raw"}, ROWS)


def with_numbers(seconds, **metrics):
    row = replace(ROWS[1], seconds_per_image=seconds, metrics=metrics)
    return replace(EVALUATION, rows=(ROWS[0], row))


def test_a_file_gives_back_what_was_saved(tmp_path):
    path = tmp_path / "run" / "evaluation.json"
    EVALUATION.save(path)
    assert Evaluation.load(path) == EVALUATION
    assert json.loads(path.read_text())["floor"] == {"fd/pixels": 0.5}
    assert [each.name for each in path.parent.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize(
    "text", ["", '{"n": 1', "[]", '{"n": 1, "floor": {}}', '{"floor": {}, "rows": [{"named": 1}]}']
)
def test_a_file_that_is_no_evaluation_is_named(tmp_path, text):
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"evaluation\.json is no evaluation .*; delete it"):
        Evaluation.load(path)


def test_numbers_that_are_no_json_do_not_replace_a_good_file(tmp_path):
    path = tmp_path / "evaluation.json"
    EVALUATION.save(path)
    with pytest.raises(ValueError, match="JSON compliant"):
        with_numbers(0.1, fd=float("nan")).save(path)
    assert Evaluation.load(path) == EVALUATION


def test_tables_show_fields_and_metrics():
    lines = EVALUATION.table(["name", "n", "scale", "seconds_per_image", "fd/pixels", "end_distance"])
    assert lines[1] == ["real train", "200", "-", "-", "0.500", "-"]
    assert lines[2] == ["student, 1 step", "200", "-", "0.004", "1.250", "0.180"]
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"
    with pytest.raises(ValueError, match=r"no row has \['fid'\]; columns are end_distance, fd/pixels"):
        EVALUATION.table(["name", "fid"])


def test_summary_is_mean_and_sample_deviation():
    runs = [with_numbers(seconds, fd=fd) for seconds, fd in ((0.1, 1.0), (0.2, 2.0), (0.6, 6.0))]
    real, student = summary(runs)
    assert (real.std["fd/pixels"], real.runs) == (0, 3)
    assert student.row.metrics["fd"] == pytest.approx(3)
    assert student.std["fd"] == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert student.row.seconds_per_image == pytest.approx(0.3)
    assert table([student], ["name", "fd"])[1] == ["student, 1 step", "3.000 ± 2.646"]
    assert isinstance(student, Spread)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(EVALUATION, rows=ROWS[:1]), "rows .'student, 1 step'. are not in all"),
        (replace(EVALUATION, rows=(ROWS[0], replace(ROWS[1], n=100))), "'student, 1 step' is not the same"),
        (with_numbers(0.1, fd=1.0), "'student, 1 step' is not the same"),
    ],
    ids=["a row less", "another n", "another metric"],
)
def test_summary_refuses_to_mix(other, message):
    with pytest.raises(ValueError, match=message):
        summary([EVALUATION, other])
    with pytest.raises(ValueError, match="at least 2"):
        summary([EVALUATION])
