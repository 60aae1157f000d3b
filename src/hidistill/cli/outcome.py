"""Shows what a finished run reached: its table, and where its page lies."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 160
"""Columns of a table that is not shown on a terminal, whose width nobody knows."""
SHOWN = ("fd", "recall", "agreement", "high_frequency", "end_distance")
"""Quantities in the terminal's table; the page has all of them."""


def wide_console() -> Console:
    """A console for tables: as wide as the terminal, or wide enough."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def show(run: Path) -> None:
    """Print the table of a run's evaluation, if it has one, and the paths that a person wants next."""
    from hidistill.report.folder import document

    console = wide_console()
    evaluation = document(run / "evaluation.json")
    if evaluation:
        console.print(table(evaluation))
    for name, meaning in (("report.html", "report"), ("models/student.safetensors", "student")):
        if (run / name).exists():
            console.print(f"{meaning}: {run / name}", markup=False, highlight=False, soft_wrap=True)


def table(evaluation: dict[str, Any]) -> Table:
    """One line per contestant; arrows say which way is better."""
    from hidistill.report.scores import ARROWS, columns, meaning, milliseconds, quantity, space
    from hidistill.report.scores import show as cell

    rows = evaluation.get("rows", [])
    metrics = [metric for metric in columns(rows) if quantity(metric) in SHOWN]
    shown = Table(title=f"{evaluation['n']} images, seed {evaluation['seed']}", title_justify="left")
    shown.add_column("", no_wrap=True)
    shown.add_column("forwards", justify="right")
    shown.add_column("ms/image", justify="right")
    for metric in metrics:
        label = f"{meaning(metric).label} {ARROWS[meaning(metric).good]}"
        shown.add_column("\n".join(filter(None, (label.strip(), space(metric)))), justify="right")
    for row in rows:
        numbers = [cell(metric, row["metrics"].get(metric)) for metric in metrics]
        name = (
            row["name"]
            if row.get("scale") is None or "scale" in row["name"]
            else f"{row['name']}, scale {row['scale']:g}"
        )
        shown.add_row(name, str(row.get("nfe") or "-"), milliseconds(row.get("seconds_per_image")), *numbers)
    return shown
