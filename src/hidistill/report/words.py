"""The report's text: headline, table, command."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from hidistill.report.scores import (
    ABSENT,
    ARROWS,
    Row,
    best_teacher,
    columns,
    deviation,
    finite,
    floor_row,
    full_teacher,
    generated,
    meaning,
    milliseconds,
    of_role,
    one_step,
    quantity,
    role,
    show,
    space,
    value,
    winners,
)

COSTS = ("guidance", "evaluations", "ms / image")
LATENCY = "ms alone"
"""Columns before the metrics; the last, the time of a single image, only where it was measured."""
COLUMNS, WITH_ERRORS = 9, 6
"""Numbers beside each other, alone and with standard errors: more would not fit into 1200 pixels, nor across paper."""


def headline(evaluation: Mapping[str, Any]) -> str:
    """A few sentences with the measured numbers, as HTML: quality and speed against the teacher."""
    rows = generated(evaluation)
    student, teacher = one_step(rows, "student"), full_teacher(rows)
    distances = [metric for metric in columns(rows) if quantity(metric) == "fd"]
    if student is None and teacher is None:
        return "This run has no evaluation of a teacher or of a student yet."
    if student is None or teacher is None:
        only = student or teacher or {}
        numbers = [f"{show(m, value(only, m))} ({escape(space(m))})" for m in distances if value(only, m) is not None]
        reached = f" has a Fréchet distance of {' and '.join(numbers)}" if numbers else " was evaluated"
        absent = "teacher" if teacher is None else "one-step student"
        return f"The {role(only)} in {counted(only)}{reached}; the evaluation has no {absent} to compare with."
    shared = [m for m in distances if value(student, m) is not None and value(teacher, m) is not None]
    parts = [compared(rows, student, teacher, metric) for metric in shared] or [
        "No Fréchet distance of both was measured."
    ]
    return speed(student, teacher) + "".join(f" <span>{part}</span>" for part in parts)


def compared(rows: Sequence[Row], student: Row, teacher: Row, metric: str) -> str:
    """The student's distance beside the teacher's at its full steps, and beside the teacher's best.

    Only a sweep over guidance scales can tell the teacher's best.
    """
    scale, best = finite(teacher.get("scale")), best_teacher(rows, metric)
    text = f"Fréchet distance ({escape(space(metric))}): student <b>{show(metric, value(student, metric))}</b>, "
    text += f"teacher <b>{show(metric, value(teacher, metric))}</b>"
    text += f" at guidance scale {scale:g}" if scale is not None else ""
    swept = len({row.get("scale") for row in of_role(rows, "teacher") if value(row, metric) is not None}) > 1
    if best is None or best is teacher:
        return f"{text}, its best." if swept else f"{text}."
    where = finite(best.get("scale"))
    at = f"scale {where:g}" if where is not None and where != scale else counted(best)
    number = show(metric, value(best, metric))
    return f"{text}, {number} at its best ({at})." if swept else f"{text}, {number} in {at}."


def speed(student: Row, teacher: Row) -> str:
    """How much faster an image is made."""
    seconds = finite(student.get("seconds_per_image")), finite(teacher.get("seconds_per_image"))
    long = counted(teacher)
    if not seconds[0] or not seconds[1]:
        return f"<b>One step</b> instead of {long}; the time per image was not measured."
    pair = f"{milliseconds(seconds[0])} ms instead of {milliseconds(seconds[1])} ms an image"
    ratio = seconds[1] / seconds[0]
    gain = f", <b>{ratio:.0f} times faster</b>" if ratio >= 2 else ""
    return f"<b>One step</b> instead of {long}: {pair}{gain}."


def counted(row: Row) -> str:
    """A row's steps in words."""
    steps = row.get("steps")
    return "one step" if steps == 1 else f"{escape(str(steps))} steps"


def table(evaluation: Mapping[str, Any]) -> str:
    """All rows and all metrics, the best of every column in bold; below each other what does not fit beside."""
    rows = sorted(generated(evaluation), key=lambda row: place(role(row)))
    floor = floor_row(evaluation)
    metrics = [metric for metric in columns([*rows, *([floor] if floor else [])]) if metric != "agreement_real"]
    most = WITH_ERRORS if any(row.get("left_out") for row in rows) else COLUMNS
    beside = most - len(costs_of(rows))
    parts = [metrics[:beside]] + [metrics[i : i + most] for i in range(beside, len(metrics), most)]
    whole = "".join(
        f'<div class="scroll">{part_of_table(rows, floor, part, costs=part is parts[0])}</div>' for part in parts
    )
    return f"<figure>{whole}<figcaption>{caption(evaluation, rows, metrics)}</figcaption></figure>"


def part_of_table(rows: Sequence[Row], floor: Row | None, metrics: Sequence[str], *, costs: bool) -> str:
    """All rows and some metrics, with or without what an image costs."""
    best = {metric: winners(rows, metric) for metric in metrics}
    heads = costs_of(rows) if costs else ()
    head = "".join(f"<th scope='col'>{cell}</th>" for cell in ("", *heads))
    head += "".join(f"<th scope='col'>{heading(metric)}</th>" for metric in metrics)
    lines, before = [], None
    for i, row in enumerate(rows):
        cells = [show_plain(row.get("scale")), show_plain(row.get("nfe"))]
        cells += [milliseconds(row.get(key)) for key in ("seconds_per_image", "latency_seconds")]
        cells = cells[: len(heads)]
        for metric in metrics:
            text = show(metric, value(row, metric)) + deviation(row, metric).replace(" ", "&nbsp;")
            cells.append(f"<b>{text}</b>" if i in best[metric] else text)
        lines.append(line(row, cells, first=role(row) != before))
        before = role(row)
    if floor:
        cells = [ABSENT] * len(heads)
        cells += [show(m, value(floor, m)) + deviation(floor, m).replace(" ", "&nbsp;") for m in metrics]
        lines.append(line(floor, cells, first=True))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def costs_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """What is shown of an image's cost."""
    return (*COSTS, LATENCY) if any(finite(row.get("latency_seconds")) for row in rows) else COSTS


def heading(metric: str) -> str:
    """What a column shows, which way is better, and in which feature space."""
    small = f"<small>{escape(space(metric))}</small>" if space(metric) else ""
    arrow = ARROWS[meaning(metric).good].replace(" ", "&nbsp;")
    return f"{escape(meaning(metric).label)}{'&nbsp;' if arrow else ''}{arrow}{small}"


def line(row: Row, cells: Sequence[str], *, first: bool) -> str:
    """One row of the table; `first` of its role is set off from the one above."""
    kind = role(row) if role(row) in ("teacher", "sketch", "student", "real") else "other"
    data = "".join(f"<td>{cell}</td>" for cell in cells)
    names = f"{kind} first" if first else kind
    return f"<tr class='{names}'><th scope='row'>{escape(str(row.get('name', '?')))}</th>{data}</tr>"


def place(kind: str) -> int:
    """Where a role stands in the table."""
    order = ["student", "sketch", "teacher"]
    return order.index(kind) if kind in order else 1


def caption(evaluation: Mapping[str, Any], rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """What the table's numbers depend on."""
    real = evaluation.get("real") or {}
    against = f", judged against {real['n']:,} held-out real images" if finite(real.get("n")) is not None else ""
    n = evaluation.get("n")
    count = f"{n:,}" if isinstance(n, int) else "an unknown number of"
    seed = evaluation.get("seed")
    noise = "" if seed is None else f" from the same noise and classes, seed {escape(str(seed))}"
    text = f"Every row: {count} images{noise}{against}. "
    spaces = dict.fromkeys(space(metric) for metric in metrics if quantity(metric) == "fd")
    about = evaluation.get("features") or {}
    named = [escape(f"{name} ({about[name]})" if name in about else name) for name in spaces]
    if named:
        text += f"Fréchet distances in the features of {' and of '.join(named)}: they are not FID and compare with no "
        text += "published FID. "
    if any(row.get("left_out") for row in rows):
        text += "After ±: the jackknife's standard error over generated images, the real ones held fixed. "
    if evaluation.get("labels") == "uniform":
        text += "Classes were drawn uniformly. "
    judged = next((number for row in rows if (number := value(row, "agreement_real")) is not None), None)
    if judged is not None:
        text += f"The classifier agrees with {show('agreement_real', judged)} of the held-out real images. "
    text += "Bold: best of its column among generated images; “→ 1” is best near 1."
    if any(quantity(metric) == "end_distance" for metric in metrics) and of_role(rows, "teacher"):
        text += " The teacher's own end has distance 0 by definition."
    return text + "".join(f" Note: {escape(note)}." for note in evaluation.get("notes") or ())


def show_plain(number: object) -> str:
    """A number that is no metric."""
    plain = finite(number)
    return ABSENT if plain is None else f"{plain:g}"


def command(recipe: Mapping[str, Any]) -> str:
    """The command line that starts this recipe with these arguments."""
    words = ["hidistill", "train", str(recipe.get("recipe", "RECIPE"))]
    for name, given in recipe.get("arguments", {}).items():
        flag = name.replace("_", "-")
        if isinstance(given, bool):
            words.append(f"--{flag}" if given else f"--no-{flag}")
        elif isinstance(given, list) and given:
            words += [f"--{flag}", *map(str, given)]
        elif given is not None and not isinstance(given, list | dict):
            words += [f"--{flag}", str(given)]
    return shlex.join(words)


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts of a nested mapping, names joined by dots."""
    for name, part in content.items():
        if isinstance(part, Mapping):
            yield from flat(part, f"{prefix}{name}.")
        elif isinstance(part, list):
            yield f"{prefix}{name}", ", ".join(map(str, part)) or "none"
        else:
            yield f"{prefix}{name}", ABSENT if part is None else str(part)
