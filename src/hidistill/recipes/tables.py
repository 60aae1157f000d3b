"""One table of an evaluation, as Markdown and as LaTeX, with standard errors where they are known."""

from collections.abc import Sequence
from pathlib import Path

from hidistill.files import whole
from hidistill.report.scores import ARROWS, columns, meaning, milliseconds, show, space
from hidistill.scores import Evaluation, Row, markdown

COSTS = ("scale", "steps", "network passes", "ms / image", "latency, ms")
SPECIAL = {
    "\\": r"\textbackslash ",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
}
SIGNS = {"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\to$", "é": r"\'e", "\N{EN DASH}": "--"}


def lines(evaluation: Evaluation) -> list[list[str]]:
    """A header and a line per row: what a row is, what an image costs, and every number with its standard error."""
    metrics = columns([{"metrics": row.metrics} for row in evaluation.rows])
    heads = [" ".join(filter(None, (meaning(m).label, space(m), ARROWS[meaning(m).good]))) for m in metrics]
    return [["", "images", *COSTS, *heads], *(cells(row, metrics) for row in evaluation.rows)]


def cells(row: Row, metrics: Sequence[str]) -> list[str]:
    """One line."""
    counts = [f"{number:g}" if number is not None else "-" for number in (row.scale, row.steps, row.nfe)]
    times = [milliseconds(seconds) if seconds else "-" for seconds in (row.seconds_per_image, row.latency_seconds)]
    numbers = []
    for metric in metrics:
        number, error = row.metrics.get(metric), row.error(metric)
        text = "-" if number is None else show(metric, number)
        numbers.append(text if error is None else f"{text} ± {show(metric, error)}")
    return [row.name, f"{row.n}", *counts, *times, *numbers]


def caption(evaluation: Evaluation) -> str:
    """What the numbers depend on, in sentences."""
    text = f"{evaluation.n} images a row, seed {evaluation.seed}, classes {evaluation.labels}."
    if any(row.left_out for row in evaluation.rows):
        text += " After ±: the jackknife's standard error over generated images, real ones fixed."
    for name, words in evaluation.features.items():
        text += f" {name}: {words}."
    return " ".join([text, *(f"{note[0].upper()}{note[1:]}." for note in evaluation.notes)])


def latex(table: Sequence[Sequence[str]], words: str) -> str:
    """A table of the package booktabs, the caption below it."""
    header, *rows = [" & ".join(map(escaped, line)) + r" \\" for line in table]
    kinds = "l" + "r" * (len(table[0]) - 1)
    body = "\n".join([r"\toprule", header, r"\midrule", *rows, r"\bottomrule"])
    return (
        f"\\begin{{table}}\n\\centering\n\\begin{{tabular}}{{{kinds}}}\n{body}\n\\end{{tabular}}\n"
        f"\\caption{{{escaped(words)}}}\n\\end{{table}}\n"
    )


def escaped(text: str) -> str:
    """Text for LaTeX."""
    for sign, written in (SPECIAL | SIGNS).items():
        text = text.replace(sign, written)
    return text


def save(evaluation: Evaluation, folder: Path) -> None:
    """Write `evaluation.md` and `evaluation.tex` beside the JSON."""
    table, words = lines(evaluation), caption(evaluation)
    for name, text in (("evaluation.md", f"{markdown(table)}\n{words}\n"), ("evaluation.tex", latex(table, words))):
        with whole(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
