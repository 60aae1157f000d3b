"""An evaluation's tables, as Markdown and as LaTeX, with standard errors where they are known."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hidistill.files import whole
from hidistill.metrics.frechet import FrechetDistance, too_few
from hidistill.report.parts import Part, parts
from hidistill.scores import Evaluation, markdown
from hidistill.types import Images, Metric

logger = logging.getLogger(__name__)

PAGES = {"report.html": ".html", "evaluation.md": ".md", "evaluation.tex": ".tex"}
"""What is kept of an evaluation beside its JSON, and its ending there."""
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "$&%_#{}"},
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\to$",
    "é": r"\'e",
    "\N{EN DASH}": "--",
    "\N{NO-BREAK SPACE}": "~",
}
"""What is written for a character, one by one, so that nothing is written twice."""


def warnings_of(metrics: Sequence[Metric], image: Images, n: int) -> list[str]:
    """What to warn of where n images are few for the dimension of a space in which distances are taken.

    Args:
        metrics: the judges.
        image: any one, from which the dimension is seen.
        n: images of a row.
    """
    spaces = [metric.space for metric in metrics if isinstance(metric, FrechetDistance)]
    found = [too_few(n, space(image).shape[1], space.name) for space in spaces]
    return [warning for warning in found if warning]


def of(evaluation: Evaluation) -> list[Part]:
    """Tables that fit across a page: what a row costs, then the numbers by feature space and kind."""
    return parts([asdict(row) for row in evaluation.rows])


def settings(evaluation: Evaluation) -> str:
    """What all numbers depend on, in sentences."""
    seed = "" if evaluation.seed is None else f", seed {evaluation.seed}"
    text = f"{evaluation.n} images a row{seed}, classes {evaluation.labels}."
    if any(row.left_out for row in evaluation.rows):
        text += " After ±: the jackknife's standard error over generated images, real ones fixed."
    return text


def remarks(evaluation: Evaluation) -> list[str]:
    """What the feature spaces are, and what else a reader should know; names keep their case."""
    return [
        *(f"{name}: {words}." for name, words in evaluation.features.items()),
        *(f"Note: {note}." for note in evaluation.notes),
    ]


def in_markdown(evaluation: Evaluation) -> str:
    """The tables under each other, then what they depend on."""
    tables = [f"### {part.title}\n\n{markdown(part.lines)}" for part in of(evaluation)]
    tables = [text.replace("\N{NO-BREAK SPACE}", " ") for text in tables]
    return "\n".join([*tables, "\n\n".join([settings(evaluation), *remarks(evaluation)])]) + "\n"


def in_latex(evaluation: Evaluation) -> str:
    """The tables of the package booktabs; the first one's caption says what all depend on."""
    words, tables = settings(evaluation), []
    for number, part in enumerate(of(evaluation)):
        caption = [f"{part.title}.", words, *(() if number else remarks(evaluation))]
        tables.append(latex(part.lines, " ".join(caption)))
    return "\n".join(tables)


def latex(table: Sequence[Sequence[str]], words: str) -> str:
    """A table of the package booktabs, the caption below it; headings have a word on each line."""
    heads, *rows = table
    header = " & ".join(stacked(head) for head in heads) + r" \\"
    kinds = "l" + "r" * (len(heads) - 1)
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in rows]
    body = "\n".join([r"\toprule", header, r"\midrule", *lines, r"\bottomrule"])
    return (
        f"\\begin{{table}}\n\\centering\n\\begin{{tabular}}{{{kinds}}}\n{body}\n\\end{{tabular}}\n"
        f"\\caption{{{escaped(words)}}}\n\\end{{table}}\n"
    )


def stacked(head: str) -> str:
    """A heading with a word on each line."""
    words = [escaped(word) for word in head.split(" ")]
    return words[0] if len(words) == 1 else r"\shortstack[r]{" + r"\\".join(words) + "}"


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return "".join(SPECIAL.get(sign, sign) for sign in " ".join(text.splitlines()))


def keep(folder: Path) -> None:
    """Copy an evaluation and its page to the next number in `evaluations/`, unless its newest copy is the same."""
    current, kept_in = folder / "evaluation.json", folder / "evaluations"
    if not current.exists():
        return
    kept = sorted(kept_in.glob("[0-9]*.json"))
    if kept and kept[-1].read_bytes() == current.read_bytes():
        return
    copy = kept_in / f"{int(kept[-1].stem) + 1 if kept else 1:04d}.json"
    kept_in.mkdir(exist_ok=True)
    for name, ending in PAGES.items():
        if (folder / name).exists():
            shutil.copyfile(folder / name, copy.with_suffix(ending))
    shutil.copyfile(current, copy)
    logger.info("the evaluation so far is kept as %s", copy)


def replace_by(evaluation: Evaluation, folder: Path) -> None:
    """Write an evaluation as JSON and as tables, and keep another one that lies there."""
    path = folder / "evaluation.json"
    if path.exists() and not same(evaluation, path):
        keep(folder)
    evaluation.save(path)
    save(evaluation, folder)


def same(evaluation: Evaluation, path: Path) -> bool:
    """Whether a file holds this evaluation."""
    try:
        return Evaluation.load(path) == evaluation
    except ValueError:
        return False


def save(evaluation: Evaluation, folder: Path) -> None:
    """Write `evaluation.md` and `evaluation.tex` beside the JSON."""
    for name, text in (("evaluation.md", in_markdown(evaluation)), ("evaluation.tex", in_latex(evaluation))):
        with whole(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
