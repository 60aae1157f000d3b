"""How fast a run went: a table of medians by stage, and its rates over the steps."""

from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from hidistill.report.panel import Line, Plot, panel
from hidistill.report.scores import ABSENT, finite

Lines = Sequence[Mapping[str, Any]]

COLUMNS = {
    "seconds": ("seconds a step", 1.0, ".3g"),
    "samples_per_second": ("samples / s", 1.0, ",.4g"),
    "tokens_per_second": ("tokens / s", 1.0, ",.4g"),
    "flops_per_second": ("GFLOP / s", 1e-9, ",.3g"),
    "utilization": ("of the machine's products", 1e2, ".1f"),
    "data_share": ("waiting for data", 1e2, ".2f"),
    "memory_mib": ("memory, MiB", 1.0, ",.0f"),
}
"""What is shown of a step's pace: heading, factor, format."""
PERCENT = ("utilization", "data_share")


def paced(journal: Lines) -> dict[str, list[dict[str, float]]]:
    """The pace of every step by stage, its seconds among it."""
    found: dict[str, list[dict[str, float]]] = {}
    for line in journal:
        pace = line.get("pace")
        if line.get("kind") == "step" and isinstance(pace, Mapping):
            numbers = {"seconds": line.get("seconds"), **pace, "step": line.get("step")}
            kept = {str(name): value for name, given in numbers.items() if (value := finite(given)) is not None}
            found.setdefault(str(line.get("stage")), []).append(kept)
    return found


def table(journal: Lines) -> str:
    """Medians over each stage's steps, memory's last, as HTML; empty if no pace was written down."""
    stages = paced(journal)
    shown = [name for name in COLUMNS if any(name in step for steps in stages.values() for step in steps)]
    if not stages or not shown:
        return ""
    head = "".join(f"<th scope='col'>{COLUMNS[name][0]}</th>" for name in shown)
    lines = [
        f"<tr><th scope='row'>{escape(stage)}</th>{''.join(f'<td>{cell(steps, name)}</td>' for name in shown)}</tr>"
        for stage, steps in stages.items()
    ]
    text = "Medians over the steps of a stage; memory is the high-water mark. Products are those of matrices, "
    text += "convolutions and attention; the machine's are what one large matrix product reached at the run's start."
    return (
        f"<figure><div class='scroll'><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        f"</table></div><figcaption>{text}</figcaption></figure>"
    )


def cell(steps: Sequence[Mapping[str, float]], name: str) -> str:
    """One number of the table."""
    values = [step[name] for step in steps if name in step]
    if not values:
        return ABSENT
    _, factor, form = COLUMNS[name]
    value = max(values) if name == "memory_mib" else median(values)
    return f"{value * factor:{form}}{'&nbsp;%' if name in PERCENT else ''}"


def plots(journal: Lines) -> list[Plot]:
    """Samples a second over the steps, a line for each stage."""
    lines = []
    for stage, steps in paced(journal).items():
        known = [each for each in steps if {"step", "samples_per_second"} <= set(each)]
        points = [(each["step"], each["samples_per_second"]) for each in known]
        if points:
            lines.append(Line(stage, [x for x, _ in points], [y for _, y in points], marked=False))
    if not lines:
        return []
    caption = "A step in which every update runs takes longer than the others."
    return [panel("speed-samples", "Samples per second", caption, lines, xlabel="step of the stage")]
