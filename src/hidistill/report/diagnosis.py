"""What the numbers of a run say is wrong with it, in words.

Every rule compares measured numbers with one of the thresholds below. What was not measured is said to be so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from hidistill.report.scores import (
    Row,
    first,
    full_teacher,
    gap,
    of_role,
    one_step,
    share,
)

Severity = Literal["ok", "watch", "problem", "unmeasured"]

BLURRED = 0.85
"""High-frequency energy against real images below which images look soft; one-step sketches lie at .4 to .8."""
SPECKLED = 1.15
"""The same distance above 1: energy that no real image has is noise on top of the image."""
SHARPNESS_MARGIN = 0.10
"""Half-width of the band around 1 that a finished student should reach."""
AGREEMENT_GAP = 0.015
"""Class agreement lost against the teacher: three standard errors of a share near .98 over 1,000 images."""
RECALL_SHARE = 0.85
"""Share of the teacher's recall that should survive; another noise moves the share by about .04."""
DIVERSITY_SHARE = 0.85
"""Share of the teacher's diversity within a class that should survive."""
PRECISION_GAP = 0.05
"""Precision lost against the teacher above which low recall is a matter of bad images rather than of few modes."""
END_DISTANCE_RATIO = 1.25
"""End distance against the sketch's: refined sketches come out below 1, students without structure well above."""
FAKE_RISE = 1.10
"""Fake-score loss of the last third against the middle third: below this, step noise and the time law explain it."""
SATURATED = 0.95
"""Accuracy above which hinge and softplus losses of the discriminator hardly change: little gradient is left."""
BLIND = 0.03
"""Half-width around .5 in which a discriminator's verdicts are a coin's: the GAN term carries no information."""
COLLAPSED_ENTROPY = 0.10
"""Entropy over the logarithm of the number of tokens: below this a few tokens decide for the whole image."""
UNIFORM_ENTROPY = 0.97
"""Above this the weights are nearly 1/n each: average pooling under another name."""
MEMORIZED = 0.90
"""Distance to the nearest training image over the same for held-out images; an honest sampler is near 1."""
COPIED = 0.75
"""Below this many images are copies of training images."""
TAIL = 5
"""Critics are judged by the mean over the last 1/5 of their steps: single steps are noise."""
SHORTEST = 12
"""Steps below which thirds of a series say nothing."""


@dataclass(frozen=True)
class Finding:
    """One rule's verdict, with the numbers that it rests on."""

    severity: Severity
    name: str
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """The rows and series that the rules look at."""

    student: Row | None
    sketch: Row | None
    teacher: Row | None
    journal: Sequence[Mapping[str, Any]]

    def series(self, key: str) -> list[float]:
        """All values of a scalar of training or of the probes, in order."""
        return [float(line[key]) for line in self.journal if line.get("kind") in ("step", "probe") and key in line]

    def tail(self, key: str) -> float | None:
        """Mean of a training scalar over the last part of its steps."""
        values = self.series(key)
        return fmean(values[-max(1, len(values) // TAIL) :]) if values else None


def diagnose(evaluation: Mapping[str, Any], journal: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Judge a run by its evaluation and its journal.

    Args:
        evaluation: `evaluation.json`, or an empty mapping.
        journal: the lines of `metrics.jsonl`, in order.
    """
    rows = evaluation.get("rows", [])
    evidence = Evidence(
        student=one_step(rows, "student"),
        sketch=one_step(rows, "sketch"),
        teacher=full_teacher(rows),
        journal=journal,
    )
    findings = [rule(evidence) for rule in RULES if not (rule is teaching and not of_role(rows, "teacher"))]
    return findings + memorization(evidence)


def unmeasured(name: str, *missing: str) -> Finding:
    """The finding of a rule that lacks its inputs."""
    return Finding("unmeasured", name, f"Not measured: {' and '.join(missing)} missing.")


def absent(inputs: Mapping[str, float | None]) -> list[str]:
    """Names of the inputs that are missing."""
    return [name for name, number in inputs.items() if number is None]


def teaching(evidence: Evidence) -> Finding:
    """Does the teacher show its classes as clearly as real images do?"""
    name = "Teacher"
    inputs = {"teacher": first(evidence.teacher, "agreement"), "real": first(evidence.teacher, "agreement_real")}
    if inputs["teacher"] is None or inputs["real"] is None:
        return unmeasured(name, *(f"class agreement of the {key} images" for key in absent(inputs)))
    numbers = {key: number for key, number in inputs.items() if number is not None}
    text = f"class agreement {percent(numbers['teacher'])} against {percent(numbers['real'])} on held-out real images"
    if numbers["teacher"] < numbers["real"] - AGREEMENT_GAP:
        return Finding("problem", name, f"The teacher misses its classes ({text}); train it longer first.", numbers)
    return Finding("ok", name, f"The teacher shows its classes ({text}).", numbers)


def sharpness(evidence: Evidence) -> Finding:
    """Blur or speckle: energy at high frequencies against real images."""
    name = "Sharpness"
    ratio = first(evidence.student, "high_frequency")
    if ratio is None:
        return unmeasured(name, "the one-step student's high-frequency ratio")
    numbers = {"student": ratio}
    teacher = first(evidence.teacher, "high_frequency")
    beside = "" if teacher is None else f"; the teacher has {teacher:.2f}"
    numbers |= {} if teacher is None else {"teacher": teacher}
    text = f"{ratio:.2f} of the high-frequency energy of real images{beside}"
    if ratio < BLURRED:
        drop = gap(evidence.student, evidence.teacher, "agreement")
        clear = drop is not None and drop <= AGREEMENT_GAP
        shapes = "The shapes are right but blurred" if clear else "The images are blurred"
        advice = "Refine longer, or give the GAN a larger feature_gradient: both bring detail, and may cost distance"
        return Finding("problem", name, f"{shapes}: {text}. {advice}.", numbers)
    if ratio > SPECKLED:
        return Finding(
            "problem", name, f"The images are over-sharp or speckled: {text}. Lower the GAN weight.", numbers
        )
    if abs(ratio - 1) > SHARPNESS_MARGIN:
        return Finding("watch", name, f"Slightly {'soft' if ratio < 1 else 'sharp'}: {text}.", numbers)
    return Finding("ok", name, f"As sharp as real images: {text}.", numbers)


def modes(evidence: Evidence) -> Finding:
    """Mode collapse: recall and diversity low while precision and sharpness are not."""
    name = "Modes"
    inputs = {
        "recall": share(evidence.student, evidence.teacher, "recall"),
        "diversity": share(evidence.student, evidence.teacher, "diversity"),
    }
    if inputs["recall"] is None or inputs["diversity"] is None:
        return unmeasured(name, *(f"{key} of student and teacher" for key in absent(inputs)))
    numbers = {key: number for key, number in inputs.items() if number is not None}
    text = f"{numbers['recall']:.2f} of the teacher's recall and {numbers['diversity']:.2f} of its diversity"
    low = [numbers["recall"] < RECALL_SHARE, numbers["diversity"] < DIVERSITY_SHARE]
    if not any(low):
        return Finding("ok", name, f"The student keeps the teacher's variety: {text}.", numbers)
    ratio = first(evidence.student, "high_frequency")
    lost = gap(evidence.student, evidence.teacher, "precision")
    if ratio is None or lost is None:
        doubt = "; blur or bad images are not excluded, for sharpness or precision is not measured"
        return Finding("watch", name, f"Variety is low: {text}{doubt}.", numbers)
    numbers |= {"high_frequency": ratio, "precision_lost": lost}
    if all(low) and ratio >= BLURRED and lost <= PRECISION_GAP:
        advice = "Lower the student's learning rate or give the fake score more steps."
        return Finding("problem", name, f"Mode collapse: {text}, at full precision and sharpness. {advice}", numbers)
    why = f", and precision fell by {lost:.2f}" if lost > PRECISION_GAP else ""
    why = "; blur alone can do that, see sharpness" if ratio < BLURRED else why
    return Finding("watch", name, f"Variety is low: {text}{why}.", numbers)


def structure(evidence: Evidence) -> Finding:
    """Structural distortion: classes lost, or ends far from where the teacher's trajectory goes."""
    name = "Structure"
    drop = gap(evidence.student, evidence.teacher, "agreement")
    if drop is None:
        return unmeasured(name, "class agreement of student and teacher")
    numbers = {"agreement_lost": drop}
    side = "below" if drop > 0 else "above"
    text = f"class agreement {abs(100 * drop):.1f} points {side} the teacher's"
    ends = first(evidence.student, "end_distance"), first(evidence.sketch, "end_distance")
    ratio = ends[0] / ends[1] if ends[0] is not None and ends[1] else None
    if ratio is not None:
        numbers |= {"end_distance_ratio": ratio}
        text += f", {ratio:.2f} times the sketch's distance to the teacher's end"
    if drop > AGREEMENT_GAP:
        return Finding("problem", name, f"Shapes are distorted: {text}.", numbers)
    if ratio is None:
        return Finding("ok", name, f"Classes hold: {text}; the distance to the teacher's end is not measured.", numbers)
    if ratio > END_DISTANCE_RATIO:
        return Finding("watch", name, f"The student has left the teacher's trajectories: {text}.", numbers)
    return Finding("ok", name, f"Structure holds: {text}.", numbers)


def fake_score(evidence: Evidence) -> Finding:
    """Fake score lagging behind the student.

    Rule: the fake score's loss in the last third of its steps is above that of the middle third by more than a
    tenth and by more than two standard errors. If the DMD term has not fallen meanwhile, the student runs away.
    """
    name = "Fake score"
    losses = evidence.series("critics/fake")
    terms = evidence.series("student/dmd_gradient") or evidence.series("student/dmd")
    if len(losses) < SHORTEST:
        return unmeasured(name, f"at least {SHORTEST} steps with the fake score's loss")
    middle, last = thirds(losses)
    numbers = {"middle": fmean(middle), "last": fmean(last)}
    error = (stdev(middle) ** 2 / len(middle) + stdev(last) ** 2 / len(last)) ** 0.5
    text = f"its loss went from {numbers['middle']:.4g} to {numbers['last']:.4g} between the middle and the last third"
    rise = numbers["last"] - numbers["middle"]
    if rise <= 2 * error or numbers["last"] <= FAKE_RISE * numbers["middle"]:
        return Finding("ok", name, f"The fake score keeps up: {text}.", numbers)
    if len(terms) < SHORTEST:
        return Finding("watch", name, f"The fake score may lag: {text}.", numbers)
    before, after = (fmean(part) for part in thirds(terms))
    numbers |= {"dmd_middle": before, "dmd_last": after}
    if after < before:
        return Finding("watch", name, f"The fake score may lag: {text}, though the DMD term fell.", numbers)
    return Finding(
        "problem", name, f"The fake score lags: {text}, and the DMD term did not fall. Give it steps.", numbers
    )


def discriminator(evidence: Evidence) -> Finding:
    """A discriminator that is always right, or never knows."""
    name = "Discriminator"
    accuracy = evidence.tail("critics/accuracy")
    if accuracy is None:
        return unmeasured(name, "its accuracy")
    numbers = {"accuracy": accuracy}
    text = f"accuracy {accuracy:.2f} over the last fifth of its steps"
    for key in ("real_logit", "generated_logit"):
        logit = evidence.tail(f"critics/{key}")
        numbers |= {} if logit is None else {key: logit}
    if accuracy > SATURATED:
        return Finding("problem", name, f"Saturated: {text}. More noise on its inputs or fewer steps help.", numbers)
    if abs(accuracy - 0.5) <= BLIND:
        return Finding("watch", name, f"Blind: {text}; either nothing is left to see or it sees nothing.", numbers)
    return Finding("ok", name, f"It tells real from generated, but not always: {text}.", numbers)


def attention(evidence: Evidence) -> Finding:
    """Attention that looks at one token, or at all alike."""
    name = "Attention"
    entropy = evidence.tail("entropy")
    if entropy is None:
        return unmeasured(name, "its entropy")
    numbers = {"entropy": entropy}
    text = f"normalized entropy {entropy:.3f} on validation images, over the last fifth of the probes"
    if entropy < COLLAPSED_ENTROPY:
        return Finding("problem", name, f"Collapsed on a few tokens: {text}.", numbers)
    if entropy > UNIFORM_ENTROPY:
        said = f"Nearly uniform: {text}; it acts as average pooling. Queries that begin large (--query-std 1) do not."
        return Finding("watch", name, said, numbers)
    return Finding("ok", name, f"It weighs some tokens above others: {text}.", numbers)


def memorization(evidence: Evidence) -> list[Finding]:
    """Copies of training images; no finding where the ratio was not asked for."""
    ratio = first(evidence.student, "nearest")
    if ratio is None:
        return []
    text = f"distance to the nearest training image {ratio:.2f} times that of held-out images"
    if ratio < MEMORIZED:
        severity = "problem" if ratio < COPIED else "watch"
        return [Finding(severity, "Memorization", f"Images come close to training images: {text}.", {"ratio": ratio})]
    return [Finding("ok", "Memorization", f"Images are new: {text}.", {"ratio": ratio})]


def thirds(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The middle and the last third of a series."""
    third = len(values) // 3
    return values[-2 * third : -third], values[-third:]


def percent(part: float) -> str:
    """A share as a percentage."""
    return f"{100 * part:.1f} %"


RULES: tuple[Callable[[Evidence], Finding], ...] = (
    teaching,
    sharpness,
    modes,
    structure,
    fake_score,
    discriminator,
    attention,
)
