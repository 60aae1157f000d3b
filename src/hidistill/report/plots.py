"""Plots of a run: losses, probes, quality against cost, guidance."""

from collections.abc import Mapping, Sequence
from typing import Any

from hidistill.report.panel import BUCKETS, SERIES, Line, Plot, panel
from hidistill.report.scores import (
    Row,
    columns,
    finite,
    floor_row,
    generated,
    meaning,
    of_role,
    one_step,
    quantity,
    role,
    space,
    value,
)

Lines = Sequence[Mapping[str, Any]]

FAMILIES = {
    "losses": ("loss", "dmd", "gan", "fake", "judged", "mse"),
    "gradients": ("gradient", "gradient_fake", "gradient_discriminator", "dmd_gradient", "slope"),
    "logits": ("real_logit", "generated_logit", "fool_logit"),
    "shares": ("accuracy", "entropy"),
}
"""Which training scalars share a panel, by the last part of their name."""
META = {"kind", "stage", "step", "global_step", "seconds", "pace"}


def losses(journal: Lines) -> list[Plot]:
    """Training scalars over the steps of each stage: a panel for each stage and family of scalars."""
    plots = []
    steps = [line for line in journal if line.get("kind") == "step"]
    for stage in dict.fromkeys(str(line.get("stage")) for line in steps):
        mine = [line for line in steps if str(line.get("stage")) == stage]
        keys = sorted({key for line in mine for key in line if key not in META and finite(line[key]) is not None})
        for family in dict.fromkeys(map(family_of, keys)):
            chosen = [key for key in keys if family_of(key) == family][: len(SERIES)]
            lines = [Line(key, *series(mine, key, "step"), marked=False) for key in chosen]
            title = f"{stage}: {family}"
            long = max(len(line.x) for line in lines) > BUCKETS
            caption = f"Means over 1/{BUCKETS} of the steps, with their range." if long else "Every recorded step."
            plots.append(panel(f"{stage}-{family}", title, caption, lines, xlabel="step of the stage"))
    return plots


def probes(journal: Lines) -> list[Plot]:
    """Short evaluations along the way against the global step: a panel for each metric, stages' borders marked."""
    lines = [line for line in journal if line.get("kind") == "probe"]
    metrics = columns(
        [{"metrics": {k: v for k, v in line.items() if k not in META and finite(v) is not None}} for line in lines]
    )
    starts = borders(journal)
    plots = []
    for metric in metrics:
        x, y = series(lines, metric, "global_step")
        caption = "Short evaluations on few images: read the course, not the value."
        title = f"{meaning(metric).label} {space(metric)}".strip()
        name = "probe-" + metric.replace("/", "-")
        plots.append(panel(name, title, caption, [Line("", x, y)], xlabel="step of the run", borders=starts))
    return plots


def costs(evaluation: Mapping[str, Any]) -> list[Plot]:
    """Fréchet distance against network evaluations and against seconds per image: a panel each per feature space."""
    rows = generated(evaluation)
    plots = []
    for metric in [metric for metric in columns(rows) if quantity(metric) == "fd"]:
        floor = value(floor_row(evaluation), metric)
        level = {} if floor is None else {"real images": floor}
        for key, factor, label in (
            ("nfe", 1.0, "network evaluations per image"),
            ("seconds_per_image", 1e3, "ms per image"),
        ):
            lines = [cost_line(name, group, key, factor, metric) for name, group in groups(rows).items()]
            lines = [line for line in lines if line.x]
            if lines:
                title = f"Fréchet distance ({space(metric)}) and {'time' if factor > 1 else 'network evaluations'}"
                caption = "Lower and further left is better. Numbers beside points are steps."
                file = f"cost-{key.partition('_')[0]}-{space(metric)}"
                plots.append(panel(file, title, caption, lines, xlabel=label, levels=level, log_x=True))
    return plots


def guidance(evaluation: Mapping[str, Any]) -> list[Plot]:
    """The teacher at several guidance scales in equally many steps: a panel per feature space, and one of shares."""
    rows = generated(evaluation)
    teachers = [row for row in of_role(rows, "teacher") if finite(row.get("scale")) is not None]
    counts = {s: len({r["scale"] for r in teachers if r.get("steps") == s}) for s in {r.get("steps") for r in teachers}}
    if not counts or max(counts.values()) < 2:
        return []
    steps = max(counts, key=lambda s: (counts[s], s or 0))
    sweep = sorted((row for row in teachers if row.get("steps") == steps), key=lambda row: row["scale"])
    student, plots = one_step(rows, "student"), []
    caption = (
        f"The teacher in {steps} steps; the other line is the student in one step, at the scale it was distilled at."
    )
    for metric in [metric for metric in columns(sweep) if quantity(metric) == "fd"]:
        height = value(student, metric)
        levels = {} if height is None else {"student, 1 step": height}
        title = f"Guidance and Fréchet distance ({space(metric)})"
        lines = [scale_line("teacher", sweep, metric)]
        plots.append(panel(f"guidance-{space(metric)}", title, caption, lines, xlabel="guidance scale", levels=levels))
    shares = [m for m in columns(sweep) if quantity(m) in ("precision", "recall", "agreement", "diversity")][
        : len(SERIES)
    ]
    if shares:
        lines = [scale_line(m, sweep, m) for m in shares]
        title, caption = "Guidance, fidelity and variety", f"The teacher in {steps} steps."
        plots.append(panel("guidance-shares", title, caption, lines, xlabel="guidance scale"))
    return plots


def scale_line(label: str, sweep: Sequence[Row], metric: str) -> Line:
    """A metric over the guidance scales at which it was measured."""
    points = [(float(row["scale"]), number) for row in sweep if (number := value(row, metric)) is not None]
    return Line(label, [x for x, _ in points], [y for _, y in points])


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that differ in their steps only."""
    found: dict[str, list[Row]] = {}
    order = ("student", "sketch", "teacher")
    for row in sorted(rows, key=lambda row: order.index(role(row)) if role(row) in order else 1):
        scale = finite(row.get("scale"))
        name = role(row) if scale is None else f"{role(row)}, scale {scale:g}"
        found.setdefault(name, []).append(row)
    return dict(list(found.items())[: len(SERIES)])


def cost_line(name: str, rows: Sequence[Row], key: str, factor: float, metric: str) -> Line:
    """A metric over what an image costs, cheapest first, with steps beside the points."""
    points = [(finite(row.get(key)), value(row, metric), str(row.get("steps", ""))) for row in rows]
    kept = sorted((x * factor, y, note) for x, y, note in points if x is not None and x > 0 and y is not None)
    notes = [note for _, _, note in kept] if len(kept) > 1 else []
    return Line(name, [x for x, _, _ in kept], [y for _, y, _ in kept], notes)


def family_of(key: str) -> str:
    """The family of a training scalar."""
    return next((family for family, ends in FAMILIES.items() if key.rpartition("/")[2] in ends), "other scalars")


def series(lines: Lines, key: str, over: str) -> tuple[list[float], list[float]]:
    """A scalar's finite values over a counter."""
    points = [(float(line[over]), number) for line in lines if (number := finite(line.get(key))) is not None]
    return [x for x, _ in points], [y for _, y in points]


def borders(journal: Lines) -> dict[str, float]:
    """The global step at which each stage begins."""
    starts: dict[str, float] = {}
    for line in journal:
        if line.get("kind") == "step" and finite(line.get("global_step")) is not None:
            starts.setdefault(str(line.get("stage")), float(line["global_step"]))
    return starts
