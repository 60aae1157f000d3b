"""Shows what a finished run reached: its table, and where its page lies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 160
"""Columns of a table that is not shown on a terminal, whose width nobody knows."""
NARROW, NAMES = 96, 16
"""Columns of a terminal below which the table leaves out what an image costs, and those that names have at least."""
LONGEST_NAME, EDGES = 30, 2
"""Columns of a terminal that names have at most in the tables of all numbers, and that the tables' edges have."""
SHOWN = (
    "fid",
    "sfid",
    "is",
    "fd",
    "recall",
    "clip_score",
    "agreement",
    "prompt_recall@10",
    "high_frequency",
    "end_distance",
)
"""Quantities in the terminal's table; the page has all of them."""


def wide_console() -> Console:
    """A console for tables: as wide as the terminal, or wide enough."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def show(run: Path, *, full: bool = False) -> None:
    """Print the table of a run's evaluation, if it has one, and the paths that a person wants next.

    Args:
        run: its folder.
        full: whether all numbers are shown, part by part, or the telling ones.
    """
    from hidistill.report.folder import document

    console = wide_console()
    evaluation = document(run / "evaluation.json")
    if evaluation and full:
        say_all(evaluation)
    elif evaluation:
        console.print(table(evaluation, costs=console.width >= NARROW))
    for name, meaning in (("report.html", "report"), ("models/student.safetensors", "student")):
        if (run / name).exists():
            console.print(f"{meaning}: {run / name}", markup=False, highlight=False, soft_wrap=True)


def say_all(evaluation: Mapping[str, Any]) -> None:
    """Print all numbers of an evaluation with their errors, and what a reader should know of them."""
    console = wide_console()
    console.print(settings(evaluation), markup=False, highlight=False)
    for part in whole_tables(evaluation, console.width):
        console.print(part, highlight=False)
    for note in evaluation.get("notes") or ():
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def settings(evaluation: Mapping[str, Any]) -> str:
    """What all rows have in common."""
    seed = "" if evaluation.get("seed") is None else f", seed {evaluation['seed']}"
    left_out = any(row.get("left_out") for row in evaluation.get("rows", []))
    error = ", \N{PLUS-MINUS SIGN} the jackknife's standard error over generated images" if left_out else ""
    return f"{evaluation['n']} images{seed}{error}"


def whole_tables(evaluation: Mapping[str, Any], width: int) -> list[Table]:
    """All numbers that depend on what was drawn, in tables of at most so many columns of a terminal."""
    from hidistill.report.parts import few_parts

    found = []
    for part in few_parts(evaluation.get("rows", [])):
        names, *columns = zip(*part.lines, strict=True)
        first = min(max(map(cell_len, names)), LONGEST_NAME)
        widths = [1 + max(map(cell_len, (*column[0].split(" "), *column[1:]))) for column in columns]
        start = 0
        while start < len(columns):
            end, used = start + 1, EDGES + first + widths[start]
            while end < len(columns) and used + widths[end] <= width:
                used, end = used + widths[end], end + 1
            found.append(tabled(part.title, names, columns[start:end], first))
            start = end
    return found


def tabled(title: str, names: Sequence[str], columns: Sequence[Sequence[str]], first: int) -> Table:
    """A table whose headings have a word on each line, and whose names alone may be folded."""
    shown = Table(
        title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=0
    )
    shown.add_column("", overflow="fold", width=first)
    for head, *_ in columns:
        shown.add_column(Text(head.replace(" ", "\n")), justify="right", no_wrap=True)
    for row in zip(names[1:], *(column[1:] for column in columns), strict=True):
        shown.add_row(*map(Text, row))
    return shown


def table(evaluation: dict[str, Any], *, costs: bool = True) -> Table:
    """One line per contestant; arrows say which way is better, letters stand for feature spaces.

    Args:
        evaluation: what evaluation.json holds.
        costs: whether it shows network passes and time per image.
    """
    from hidistill.report.scores import ABSENT, columns, milliseconds, quantity, space
    from hidistill.report.scores import show as cell

    rows = evaluation.get("rows", [])
    metrics = [metric for metric in columns(rows) if quantity(metric) in SHOWN]
    spaces = dict.fromkeys(space(metric) for metric in metrics if space(metric))
    letters = {name: chr(ord("A") + i) for i, name in enumerate(spaces)}
    shown = Table(
        title=settings(evaluation), title_justify="left", box=SIMPLE_HEAD,
        pad_edge=False, padding=0, caption_justify="left",
        caption="in the features of " + ", ".join(f"{letter}: {name}" for name, letter in letters.items()),
    )  # fmt: skip
    if not letters:
        shown.caption = None
    shown.add_column("", overflow="fold", min_width=NAMES)
    for heading in (
        *(("network passes", "ms/ image") if costs else ()),
        *(heading_of(metric, letters) for metric in metrics),
    ):
        # A word per line, for a terminal of 100 columns holds ten columns only if none is wider than its longest word.
        shown.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        numbers = [cell(metric, row["metrics"].get(metric)) for metric in metrics]
        scale = "" if row.get("scale") is None or "scale" in row["name"] else f", scale {row['scale']:g}"
        cost = (str(row.get("nfe") or ABSENT), milliseconds(row.get("seconds_per_image"))) if costs else ()
        shown.add_row(row["name"] + scale, *cost, *numbers)
    return shown


def heading_of(metric: str, letters: Mapping[str, str]) -> str:
    """What a column shows, the letter of its feature space, and which way is better."""
    from hidistill.report.scores import ARROWS, meaning, space

    arrow = ARROWS[meaning(metric).good].replace(" ", "\N{NO-BREAK SPACE}")
    label = meaning(metric).label.replace("high-frequency", "high- frequency")
    last = "\N{NO-BREAK SPACE}".join(filter(None, (letters.get(space(metric), ""), arrow)))
    return f"{label} {last}".strip()
