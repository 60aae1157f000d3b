"""Paired intervals of two rows, and the sentences about them."""

import numpy as np
import pytest

from hidistill.cli import main
from hidistill.experiments.comparing import Entry, compare, paired, read, sentence
from hidistill.scores import Evaluation, Row

REAL = {"n": 40, "classes": 2, "shape": [1, 8, 8], "digest": "0123456789ab"}


def row(name, values, metric="fd/space"):
    """A row whose number is the mean of a value per group."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    without = ((values.sum() - values) / (n - 1)).tolist()
    return Row(name, "student", 40, 1, 1, metrics={metric: float(values.mean())}, left_out={metric: without})


def test_the_interval_of_a_mean_is_students_paired_one():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=20)
    a, b = shared + 0.1 * rng.normal(size=20), shared + 0.1 * rng.normal(size=20) - 1
    found = paired("fd/space", row("a", a), row("b", b))
    d = b - a
    half = 2.093024 * d.std(ddof=1) / 20**0.5  # the quantile of 19 degrees of freedom
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half), rel=1e-5)
    assert found.resolved
    assert found.better
    assert half < 2.093024 * a.std(ddof=1) / 20**0.5, "what both share cancels"


def test_of_equal_laws_one_in_twenty_is_resolved():
    rng = np.random.default_rng(1)
    resolved = [paired("fd/space", row("a", x), row("b", y)).resolved for x, y in rng.normal(size=(2000, 2, 20))]
    assert 0.035 < np.mean(resolved) < 0.065


@pytest.mark.parametrize(
    ("metric", "first", "second", "word"),
    [
        ("fd/space", 5, 1, "is better than"),
        ("recall/space", 5, 1, "is worse than"),
        ("high_frequency", 0.5, 1.2, "is nearer to 1 than"),
        ("high_frequency", 0.9, 0.5, "is farther from 1 than"),
        ("high_frequency", 0.5, 1.5, "not resolved: b and a may be equally near to 1"),
        ("entropy", 5, 1, "is below"),
        ("fd/space", 1, 1.001, "not resolved"),
    ],
)
def test_sentences(metric, first, second, word):
    noise = 0.01 * np.random.default_rng(2).normal(size=(2, 10))
    verdict = paired(metric, row("a", first + noise[0], metric), row("b", second + noise[1], metric))
    words = sentence(verdict, "a", "b")
    assert word in words
    assert "95 % interval" in words
    assert words.count("\n") == 0


def test_what_is_best_at_one_is_judged_by_its_distance_to_one():
    rng = np.random.default_rng(3)
    below, above = 0.7 + 0.01 * rng.normal(size=20), 1.2 + 0.01 * rng.normal(size=20)
    found = paired("power_high", row("a", below, "power_high"), row("b", above, "power_high"))
    d = (above - 1) - (1 - below)
    half = 2.093024 * d.std(ddof=1) / 20**0.5  # the quantile of 19 degrees of freedom
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half), rel=1e-5)
    assert found.better
    assert "difference of the distances to 1 -0.1" in sentence(found, "a", "b")


def saved(path, rows, **settings):
    evaluation = Evaluation(**({"n": 40, "seed": 0, "real": REAL, "judges": ["x"], "rows": tuple(rows)} | settings))
    evaluation.save(path / "evaluation.json")
    return path


def test_runs_on_the_command_line(tmp_path, capsys):
    a = saved(tmp_path / "a", [row("student, 1 step", np.arange(10.0))])
    b = saved(tmp_path / "b", [row("student, 1 step", np.arange(10.0) + 3)])
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "said" / "x.md")]) == 0
    said = capsys.readouterr().out
    assert "student, 1 step of b is worse than student, 1 step of a (7.500 against 4.500" in said
    assert "1 of 1 differences are resolved." in said
    assert (tmp_path / "said" / "x.md").read_text().startswith("## student, 1 step of b against")


def test_rows_of_one_run(tmp_path):
    run = saved(tmp_path / "a", [row("x", np.arange(5.0)), row("y", np.arange(5.0))])
    entries = read([run], ["x", "y"])
    assert [entry.name for entry in entries] == ["x", "y"]
    (verdict,) = compare(entries)["y"]
    assert (verdict.difference, verdict.resolved) == (0, False)


def test_runs_of_one_name_are_told_apart(tmp_path):
    plain = row("x", np.arange(5.0))
    runs = [saved(tmp_path / name / "demo", [plain]) for name in "abc"]
    assert len(compare(read(runs, ["x"]))) == 2
    files = [saved(tmp_path / name, [plain]) / "evaluation.json" for name in ("one", "two")]
    assert [entry.name for entry in read(files, ["x"])] == ["x of one", "x of two"]
    assert list(compare(read([*runs[:1], files[0]], ["x"]))) == ["x of one"]


def test_what_does_not_compare(tmp_path, capsys):
    plain = row("student, 1 step", np.arange(10.0))
    a = saved(tmp_path / "a", [plain])
    for name, settings in (("seed", {"seed": 1}), ("n", {"n": 50}), ("real", {"real": REAL | {"digest": "x"}})):
        other = saved(tmp_path / name, [plain], **settings)
        with pytest.raises(ValueError, match=rf"was evaluated with {name} = .*only the same noise"):
            read([a, other], ["student, 1 step"])
    with pytest.raises(ValueError, match=r"has no evaluation.json; run `hidistill evaluate"):
        read([tmp_path / "none"], ["x"])
    with pytest.raises(ValueError, match="has no row 'x'; it has 'student, 1 step'"):
        read([a], ["x"])
    with pytest.raises(ValueError, match="there is one row to compare"):
        read([a], ["student, 1 step"])
    bare = Row("student, 1 step", "student", 40, metrics={"fd/space": 1.0})
    with pytest.raises(ValueError, match="share no number with an interval"):
        compare([Entry("a", plain), Entry("b", bare)])
    with pytest.raises(ValueError, match="10 and 0 left-out groups"):
        paired("fd/space", plain, bare)
    assert main(["compare"]) == 2
    assert "no runs came" in capsys.readouterr().err
