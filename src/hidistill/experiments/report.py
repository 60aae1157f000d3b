"""What an experiment found, as a table, sentences, a figure and a section of a document."""

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from hidistill.experiments.statistics import Difference, Spread, paired
from hidistill.experiments.study import LEAST_SEEDS, Column, Results, Size
from hidistill.files import whole
from hidistill.scores import cell, markdown


def table(results: Results) -> str:
    """A row per variant: mean and standard deviation of each number over the seeds, and what a cell took."""
    columns = list(results.study.columns)
    lines = [["variant", *(column.heading for column in columns), "CPU seconds"]]
    for variant in results.grid.variants:
        values = [results.of(variant.name, column.key) for column in columns]
        seconds = Spread.of(results.of(variant.name, "seconds"))
        cells = [spread(each, seeds=len(results.grid.seeds)) for each in values]
        lines.append([variant.name, *cells, f"{seconds.mean:.0f}"])
    return markdown(lines)


def spread(values: Sequence[float], *, seeds: int) -> str:
    """A cell of the table; says so where not all seeds have the number."""
    if not values:
        return "-"
    found = Spread.of(values)
    some = f" ({found.n} of {seeds})" if found.n < seeds else ""
    return short(found.mean) + (f" ± {short(found.std)}" if found.std > 0 else "") + some


def short(value: float) -> str:
    """A value of a table as everywhere, but one of 10 and more without the decimals that no seed repeats."""
    if abs(value) < 10:
        return cell(value)
    return f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def comparisons(results: Results) -> str:
    """Paired differences from the references with their intervals, and which of them are resolved; empty for none."""
    columns = [column for column in results.study.columns if column.better]
    lines = [["variant", "against", *(column.heading for column in columns)]]
    for variant in results.grid.variants:
        others = (results.study.reference,) if variant.against is None else variant.against
        for other in others:
            if other != variant.name:
                cells = [compared(results, variant.name, other, column) for column in columns]
                lines.append([variant.name, other, *cells])
    return markdown(lines) if lines[1:] else ""


def compared(results: Results, variant: str, other: str, column: Column) -> str:
    """One paired difference, in figures and a word; says so where not all seeds have both numbers."""
    pairs = results.together((variant, other), column.key)
    if not pairs:
        return "-"
    found = paired([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
    if found.n == 1:
        return f"{signed(found.mean)} (one seed)"
    seeds = len(results.grid.seeds)
    some = f" ({found.n} of {seeds})" if found.n < seeds else ""
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}] {verdict(found, column)}{some}"


def verdict(found: Difference, column: Column) -> str:
    """Better, worse, or not resolved."""
    if not found.resolved:
        return "not resolved"
    return "better" if (found.mean < 0) == (column.better == "lower") else "worse"


def signed(value: float) -> str:
    """A number with its sign."""
    return ("+" if value >= 0 else "-") + short(abs(value))


def label(name: str, size: Size) -> str:
    """What an experiment's section, marks and picture are called: small and full ones stand side by side."""
    return name if size == "small" else f"{name}-{size}"


def section(results: Results, *, name: str, size: Size, wall: float, figure: str, caption: str) -> str:
    """The experiment's section of a document, in Markdown.

    Args:
        results: what was found.
        name: of the experiment.
        size: of the grid.
        wall: CPU seconds of all cells together.
        figure: path of the picture, as seen from the document.
        caption: of the picture.
    """
    study, seeds = results.study, results.grid.seeds
    several = len(set(results.codes.values()))
    mixed = f" The cells were measured by {several} different states of the code." if several > 1 else ""
    ran, there = len(results.grid.variants), len(study.grids[size].variants)
    part = f" Of the {there} variants of this size {ran} were run." if ran < there else ""
    compared_with = (
        "Differences of pairs of equal seeds, with intervals of 95 % (bootstrap over seeds, expanded for small "
        "samples: about 92 % for five normal values; comparisons are many and not corrected for). With fewer than "
        f"{LEAST_SEEDS} seeds, or zero within, they are not resolved."
    )
    done = (
        f"{study.setting} `hidistill experiment {name} --size {size}`; seeds {', '.join(map(str, seeds))}; "
        f"{len(results.numbers)} cells, {wall / 60:.0f} CPU minutes (a first cell's hold what all share).{part}{mixed}"
    )
    differences = comparisons(results)
    parts = [
        f"### {label(name, size)}\n",
        *(paragraph(text) for text in (study.question, done)),
        table(results),
        *((paragraph(compared_with), differences) if differences else ()),
        f"![{caption}]({figure})\n",
        paragraph(f"*{caption}*"),
    ]
    return "\n".join(parts)


def paragraph(text: str) -> str:
    """Words in lines, as documents hold them; code stays in one."""
    joined = re.sub(r"`[^`]*`", lambda code: code.group().replace(" ", "\0"), text)
    return fill(joined, 120, break_long_words=False, break_on_hyphens=False).replace("\0", " ") + "\n"


def write(results: Results, out: Path, *, name: str, size: Size, document: Path | None) -> str:
    """Write the section into OUT/section.md, and between a document's marks, and the figure, as PNG and SVG, beside it.

    Raises:
        ValueError: if the document has no marks for this experiment.
    """
    picture, called = results.study.figure(results), label(name, size)
    pictures = out if document is None else document.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for kind, content in (("png", picture.png), ("svg", picture.svg)):
        with whole(pictures / f"{called}.{kind}") as path:
            path.write_bytes(content)
    wall = sum(numbers["seconds"] for numbers in results.numbers.values())
    figure = f"{called}.png" if document is None else f"pictures/{called}.png"
    text = section(results, name=name, size=size, wall=wall, figure=figure, caption=picture.caption)
    with whole(out / "section.md") as path:
        path.write_text(text, encoding="utf-8")
    if document is not None:
        insert(document, called, text)
    return text


def place(document: Path, called: str) -> tuple[str, str]:
    """A document's text up to an experiment's section, and from its end on, with the marks; asked before hours of work.

    Args:
        document: Markdown.
        called: the section's `label`.

    Raises:
        ValueError: if there are no marks, or no such document.
    """
    begin, end = (f"<!-- {word} experiment {called} -->" for word in ("begin", "end"))
    if not document.is_file():
        raise ValueError(f"there is no document {document}; make one with the lines\n{begin}\n{end}")
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{document} has no place for this; put the lines\n{begin}\n{end}\nwhere the section belongs")
    return before + begin, end + after


def insert(document: Path, called: str, text: str) -> None:
    """Put a section between a document's marks, in place of what is there.

    Raises:
        ValueError: if there are no marks.
    """
    before, after = place(document, called)
    with whole(document) as path:
        path.write_text(f"{before}\n{text}{after}", encoding="utf-8")
