"""Rows of an evaluation: how to find them, and what their numbers mean."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hidistill.scores import jackknife_error

Row = Mapping[str, Any]
"""One contestant: name, kind, steps, nfe, scale, seconds_per_image and its metrics."""


@dataclass(frozen=True)
class Meaning:
    """What a metric is called, which values are good, and how it is printed.

    Args:
        label: what a reader calls it.
        good: small, large, near one, or neither.
        percent: whether a share is printed as a percentage.
    """

    label: str
    good: Literal["small", "large", "one", "neither"]
    percent: bool = False


MEANINGS = {
    "fid": Meaning("FID", "small"),
    "sfid": Meaning("sFID", "small"),
    "is": Meaning("Inception Score", "large"),
    "fd": Meaning("Fréchet distance", "small"),
    "fd_limit": Meaning("Fréchet distance, limit", "small"),
    "fid_limit": Meaning("FID, limit", "small"),
    "kid": Meaning("kernel distance", "small"),
    "high_frequency": Meaning("high-frequency ratio", "one"),
    "agreement": Meaning("class agreement", "large", percent=True),
    "prompt_recall@1": Meaning("prompt recall, first", "large", percent=True),
    "prompt_recall@5": Meaning("prompt recall, first 5", "large", percent=True),
    "prompt_recall@10": Meaning("prompt recall, first 10", "large", percent=True),
    "recall": Meaning("recall", "large"),
    "precision": Meaning("precision", "large"),
    "diversity": Meaning("diversity", "one"),
    "end_distance": Meaning("distance to teacher's end", "small"),
    "coverage": Meaning("coverage", "large"),
    "density": Meaning("density", "large"),
    "nearest": Meaning("nearest-neighbor ratio", "neither"),
    "spectrum": Meaning("spectrum, dB", "small"),
    "power_low": Meaning("power, low third", "one"),
    "power_middle": Meaning("power, middle third", "one"),
    "power_high": Meaning("power, high third", "one"),
    "clip_score": Meaning("CLIP score", "large"),
    "clip_score_real": Meaning("CLIP score of real images", "neither"),
    "kid_std": Meaning("kernel distance, deviation of a subset", "neither"),
    "is_std": Meaning("Inception Score, deviation of a split", "neither"),
    "entropy": Meaning("entropy of attention", "neither"),
    "agreement_real": Meaning("class agreement of real images", "neither", percent=True),
    "prompt_recall_real@1": Meaning("prompt recall of real images, first", "neither", percent=True),
    "prompt_recall_real@5": Meaning("prompt recall of real images, first 5", "neither", percent=True),
    "prompt_recall_real@10": Meaning("prompt recall of real images, first 10", "neither", percent=True),
}
"""By the metric's name up to its first slash; what follows the slash names the feature space."""

ABSENT = "\N{EN DASH}"
"""What is printed for a number that was not measured."""

ARROWS = {"small": "↓", "large": "↑", "one": "→ 1", "neither": ""}


def quantity(metric: str) -> str:
    """The metric's name without its feature space."""
    return metric.partition("/")[0]


def space(metric: str) -> str:
    """The metric's feature space, or nothing."""
    return metric.partition("/")[2]


def of_real(metric: str) -> bool:
    """Whether a number is of the real images alone, which no row can change."""
    return quantity(metric).partition("@")[0].endswith("_real")


def meaning(metric: str) -> Meaning:
    """What a metric means; a metric that is unknown here keeps its name and has no good side."""
    return MEANINGS.get(quantity(metric), Meaning(quantity(metric).replace("_", " "), "neither"))


def finite(number: object) -> float | None:
    """The number, or None for anything that is not a finite number."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return None
    return float(number)


def value(row: Row | None, metric: str) -> float | None:
    """A row's metric, or None where it was not measured."""
    return None if row is None else finite(row.get("metrics", {}).get(metric))


def first(row: Row | None, wanted: str) -> float | None:
    """The first measured metric of a quantity, whatever its feature space."""
    found = (value(row, metric) for metric in columns([row] if row else []) if quantity(metric) == wanted)
    return next((number for number in found if number is not None), None)


def columns(rows: Iterable[Row]) -> list[str]:
    """All metrics of some rows, those with a meaning first and in its order."""
    metrics = dict.fromkeys(metric for row in rows for metric in row.get("metrics", {}))
    order = list(MEANINGS)
    return sorted(metrics, key=lambda m: order.index(quantity(m)) if quantity(m) in order else len(order))


def role(row: Row) -> str:
    """Who a row speaks of: teacher, sketch, student, real, or the name of another student.

    Everything distilled may be of kind "student"; the name up to its first comma then says which.
    """
    kind, name = str(row.get("kind")), str(row.get("name", "")).partition(",")[0].strip()
    return (
        name.split(" ")[0]
        if kind == "student" and name.startswith(("sketch", "student"))
        else (name if kind == "student" and name else kind)
    )


def of_role(rows: Sequence[Row], wanted: str) -> list[Row]:
    """The rows of a role, fewest steps first."""
    return sorted((row for row in rows if role(row) == wanted), key=lambda row: row.get("steps") or 0)


def one_step(rows: Sequence[Row], wanted: str) -> Row | None:
    """The row of a role in one step, if there is one."""
    return next((row for row in of_role(rows, wanted) if row.get("steps") == 1), None)


def full_teacher(rows: Sequence[Row]) -> Row | None:
    """The teacher that the student imitates, in its most steps: the one whose ends distances are measured to.

    Where none has distance 0: the most steps at the scale with the most rows, for steps are varied at that scale.
    """
    teachers = of_role(rows, "teacher")
    reference = [row for row in teachers if value(row, "end_distance") == 0]
    if reference or not teachers:
        return reference[-1] if reference else None
    scales = [row.get("scale") for row in teachers]
    wanted = max(dict.fromkeys(scales), key=scales.count)
    return [row for row in teachers if row.get("scale") == wanted][-1]


def best_teacher(rows: Sequence[Row], metric: str) -> Row | None:
    """The teacher's row with the smallest value of a metric, over all scales and steps."""
    measured = [row for row in of_role(rows, "teacher") if value(row, metric) is not None]
    return min(measured, key=lambda row: value(row, metric) or 0.0, default=None)


def floor_row(evaluation: Mapping[str, Any]) -> Row | None:
    """Real training images against real test images: what a perfect sampler would score."""
    for row in evaluation.get("rows", []):
        if role(row) == "real":
            return row
    floor = evaluation.get("floor")
    if not floor:
        return None
    return {"name": "real images", "kind": "real", "metrics": floor.get("metrics", floor)}


def generated(evaluation: Mapping[str, Any]) -> list[Row]:
    """All rows that someone drew."""
    return [row for row in evaluation.get("rows", []) if role(row) != "real"]


def gap(student: Row | None, teacher: Row | None, wanted: str) -> float | None:
    """The largest loss of a quantity from teacher to student, over the feature spaces that both were measured in."""
    return max((theirs - mine for mine, theirs in pairs(student, teacher, wanted)), default=None)


def share(student: Row | None, teacher: Row | None, wanted: str) -> float | None:
    """The smallest share of the teacher's quantity that the student has, over the feature spaces of both."""
    return min((mine / theirs for mine, theirs in pairs(student, teacher, wanted) if theirs > 0), default=None)


def pairs(student: Row | None, teacher: Row | None, wanted: str) -> list[tuple[float, float]]:
    """Student's and teacher's values of a quantity, one pair for each feature space."""
    metrics = [metric for metric in columns([student] if student else []) if quantity(metric) == wanted]
    found = [(value(student, metric), value(teacher, metric)) for metric in metrics]
    return [(mine, theirs) for mine, theirs in found if mine is not None and theirs is not None]


def winners(rows: Sequence[Row], metric: str) -> set[int]:
    """Indices of the rows that are best in a metric.

    A distance of 0 to the teacher's end belongs to the teacher that defines it, so it wins nothing.
    """
    good = meaning(metric).good
    numbers = {i: number for i, row in enumerate(rows) if (number := value(row, metric)) is not None}
    if quantity(metric) == "end_distance":
        numbers = {i: number for i, number in numbers.items() if number > 0}
    if good == "neither" or len(numbers) < 2:
        return set()
    cost = {"small": lambda x: x, "large": lambda x: -x, "one": lambda x: abs(x - 1)}[good]
    lowest = min(cost(number) for number in numbers.values())
    best = {i for i, number in numbers.items() if cost(number) == lowest}
    return best if len(best) < len(numbers) else set()


def show(metric: str, number: float | None) -> str:
    """A metric's value as it is printed."""
    if number is None:
        return ABSENT
    if meaning(metric).percent:
        return f"{100 * number:.1f} %"
    if 0 < abs(number) < 0.01:
        return f"{number:.2g}"
    return f"{number:.2f}" if abs(number) >= 10 else f"{number:.3f}"


def deviation(row: Row, metric: str) -> str:
    """The jackknife's standard error of a row's number after its sign; nothing where no groups were left out."""
    values = (row.get("left_out") or {}).get(metric)
    return f" ± {show(metric, jackknife_error(values))}" if values and value(row, metric) is not None else ""


def milliseconds(seconds: object) -> str:
    """Seconds, printed as milliseconds with three digits."""
    number = finite(seconds)
    if number is None:
        return ABSENT
    return f"{1000 * number:,.0f}" if number >= 0.1 else f"{1000 * number:.3g}"
