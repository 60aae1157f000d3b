import pytest
from made_up import full_evaluation, full_journal, metrics, row, student

from hidistill.report.diagnosis import (
    BLIND,
    COLLAPSED_ENTROPY,
    SATURATED,
    UNIFORM_ENTROPY,
    diagnose,
)


def judged(name, *, journal=(), **others):
    """The finding of a name for a student whose metrics are a good one's but for `others`."""
    teacher = row("teacher, 50 steps", "teacher", 50, 100, scale=1.5, **metrics(1.3, end_distance=0.0))
    sketch = row("sketch, 1 step", "student", 1, 1, **metrics(4.0, 0.4, high_frequency=0.6, end_distance=0.2))
    findings = diagnose({"rows": [teacher, sketch, student(**others)]}, list(journal))
    return next(finding for finding in findings if finding.name == name)


def steps(**scalars):
    """A journal with equally long series."""
    count = max(len(values) for values in scalars.values())
    keys = {key: key.replace("__", "/") for key in scalars}
    return [
        {"kind": "step", "stage": "refine", "step": i, "global_step": i}
        | {keys[key]: values[i] for key, values in scalars.items() if i < len(values)}
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("ratio", "severity", "word"),
    [
        (0.84, "problem", "blurred"),
        (0.88, "watch", "soft"),
        (0.95, "ok", "As sharp"),
        (1.05, "ok", "As sharp"),
        (1.13, "watch", "sharp"),
        (1.16, "problem", "speckled"),
    ],
)
def test_sharpness(ratio, severity, word):
    finding = judged("Sharpness", high_frequency=ratio)
    assert (finding.severity, finding.numbers["student"]) == (severity, ratio)
    assert word in finding.sentence
    assert f"{ratio:.2f}" in finding.sentence


def test_blur_with_right_shapes_says_so():
    assert "shapes are right" in judged("Sharpness", high_frequency=0.7).sentence
    assert "shapes are right" not in judged("Sharpness", high_frequency=0.7, agreement=0.8).sentence


@pytest.mark.parametrize(
    ("numbers", "severity"),
    [
        ({}, "ok"),
        ({"recall": 0.7, "diversity": 0.78}, "ok"),
        ({"recall": 0.6}, "watch"),
        ({"diversity": 0.5}, "watch"),
        ({"recall": 0.4, "diversity": 0.5}, "problem"),
        ({"recall": 0.4, "diversity": 0.5, "high_frequency": 0.7}, "watch"),
        ({"recall": 0.4, "diversity": 0.5, "precision": 0.8}, "watch"),
    ],
)
def test_mode_collapse_needs_low_variety_at_full_precision_and_sharpness(numbers, severity):
    finding = judged("Modes", **numbers)
    assert finding.severity == severity
    assert ("collapse" in finding.sentence) == (severity == "problem")
    assert finding.numbers["recall"] == pytest.approx(numbers.get("recall", 0.8) / 0.8)


@pytest.mark.parametrize(
    ("numbers", "severity"),
    [
        ({"agreement": 0.93}, "ok"),
        ({"agreement": 0.96}, "ok"),
        ({"agreement": 0.92}, "problem"),
        ({"end_distance": 0.24}, "ok"),
        ({"end_distance": 0.26}, "watch"),
    ],
)
def test_structure(numbers, severity):
    finding = judged("Structure", **numbers)
    assert finding.severity == severity
    assert finding.numbers["end_distance_ratio"] == pytest.approx(numbers.get("end_distance", 0.18) / 0.2)


def test_the_teacher_is_measured_against_real_images():
    assert judged("Teacher").severity == "ok"
    weak = row("teacher, 50 steps", "teacher", 50, 100, **metrics(2.0, agreement=0.9))
    finding = diagnose({"rows": [weak]}, [])[0]
    assert (finding.name, finding.severity) == ("Teacher", "problem")
    assert "90.0 %" in finding.sentence
    assert "93.0 %" in finding.sentence


FLAT = [1.0, 1.1] * 15
RISING = [1.0, 1.1] * 10 + [1.5, 1.6] * 5


@pytest.mark.parametrize(
    ("fake", "dmd", "severity"),
    [
        (FLAT, FLAT, "ok"),
        (RISING[::-1], FLAT, "ok"),
        (RISING, RISING, "problem"),
        (RISING, RISING[::-1][10:] + [0.2] * 10, "watch"),
        (RISING, [], "watch"),
        ([1.0] * 20 + [1.05] * 10, RISING, "ok"),
        ([0.1, 3.0] * 10 + [0.1, 3.5] * 5, RISING, "ok"),
    ],
)
def test_fake_score_lags_when_its_loss_rises_beyond_its_noise(fake, dmd, severity):
    journal = steps(critics__fake=fake, student__dmd=dmd)
    assert judged("Fake score", journal=journal).severity == severity


@pytest.mark.parametrize(
    ("accuracy", "severity", "word"),
    [
        (SATURATED + 0.01, "problem", "Saturated"),
        (SATURATED - 0.01, "ok", "not always"),
        (0.5 + 0.9 * BLIND, "watch", "Blind"),
        (0.5 - 0.9 * BLIND, "watch", "Blind"),
        (0.5 + 1.1 * BLIND, "ok", "not always"),
    ],
)
def test_discriminator(accuracy, severity, word):
    early = [1 - accuracy] * 40
    finding = judged("Discriminator", journal=steps(critics__accuracy=early + [accuracy] * 10))
    assert finding.severity == severity
    assert finding.numbers["accuracy"] == pytest.approx(accuracy), "only the last fifth counts"
    assert word in finding.sentence


@pytest.mark.parametrize(
    ("entropy", "severity"),
    [(0.9 * COLLAPSED_ENTROPY, "problem"), (0.6, "ok"), (UNIFORM_ENTROPY + 0.01, "watch")],
)
def test_attention(entropy, severity):
    assert judged("Attention", journal=steps(entropy=[entropy] * 10)).severity == severity


@pytest.mark.parametrize(("ratio", "severity"), [(0.5, "problem"), (0.8, "watch"), (1.0, "ok")])
def test_memorization(ratio, severity):
    assert judged("Memorization", nearest__cnn=ratio).severity == severity


def test_what_is_missing_is_not_guessed():
    for evaluation in ({}, {"rows": []}, {"rows": [row("student, 1 step", "student", 1, 1)]}):
        findings = diagnose(evaluation, [])
        assert {finding.severity for finding in findings} == {"unmeasured"}
        assert all("Not measured" in finding.sentence and not finding.numbers for finding in findings)
    assert judged("Fake score", journal=steps(critics__fake=[1.0, 9.0])).severity == "unmeasured"


def test_a_number_that_is_not_finite_is_missing():
    assert judged("Sharpness", high_frequency=float("nan")).severity == "unmeasured"


def test_a_good_run_has_no_finding_but_ok():
    findings = diagnose(full_evaluation(), full_journal())
    assert [finding.severity for finding in findings] == ["ok"] * 7
