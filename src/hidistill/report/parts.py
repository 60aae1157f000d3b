"""An evaluation's numbers in tables that a reader takes in at once: by feature space and by kind, with their errors."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from hidistill.report.scores import (
    ABSENT,
    ARROWS,
    Row,
    columns,
    deviation,
    finite,
    meaning,
    milliseconds,
    of_real,
    quantity,
    show,
    space,
)
from hidistill.report.scores import value as number_of

MOST = 6
"""Numbers beside each other on paper: with standard errors more do not fit."""
NEIGHBORS = ("recall", "precision", "coverage", "density", "nearest")
PICTURES = "The pictures themselves"
FREQUENCIES = ("high_frequency", "spectrum", "power_low", "power_middle", "power_high")


class Part(NamedTuple):
    """A table: what it shows, and its lines, of which the first is the header."""

    title: str
    lines: list[list[str]]


def parts(rows: Sequence[Row]) -> list[Part]:
    """All numbers of some rows, as a file holds them: what a row costs, then a part for each feature space and kind."""
    known, found = homes(rows), {}
    for metric in ordered(columns(rows), known):
        found.setdefault(title_of(metric, known), []).append(metric)
    return [
        *costs(rows),
        *(measured(rows, title, few) for title, metrics in found.items() for few in pieces(metrics, MOST)),
    ]


def few_parts(rows: Sequence[Row]) -> list[Part]:
    """All numbers that depend on what was drawn: what a row costs, then a part for each feature space, however wide."""
    known, found = homes(rows), {}
    for metric in ordered(columns(rows), known):
        if not of_real(metric):
            title = f"Features of {known[space(metric)]}" if space(metric) else PICTURES
            found.setdefault(title, []).append(metric)
    return [*costs(rows), *(measured(rows, title, metrics) for title, metrics in found.items())]


def measured(rows: Sequence[Row], title: str, metrics: Sequence[str]) -> Part:
    """A part of some numbers."""
    header = ["", *(heading(metric, title) for metric in metrics)]
    return Part(title, [header, *([name(row), *cells(row, metrics)] for row in rows)])


def ordered(metrics: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """Metrics by their feature space, those of none last; within a space by kind, each deviation after its number."""
    spaces = list(dict.fromkeys(known.values()))
    place = {metric: i for i, metric in enumerate(metrics)}

    def key(metric: str) -> tuple[int, int, int, int]:
        base = metric.replace(quantity(metric), quantity(metric).removesuffix("_std"), 1)
        first = spaces.index(known[space(metric)]) if space(metric) else len(spaces)
        return first, kind(metric), place.get(base, place[metric]), place[metric]

    return sorted(metrics, key=key)


def homes(rows: Iterable[Row]) -> dict[str, str]:
    """The feature space under whose name each one is shown: its own, or that which it is a variant of by its name."""
    spaces = dict.fromkeys(space(metric) for row in rows for metric in row.get("metrics", {}) if space(metric))
    return {one: min((o for o in spaces if one == o or one.startswith(f"{o}-")), key=len) for one in spaces}


def kind(metric: str) -> int:
    """0 for distances and scores, 1 for what neighbors tell, 2 for spatial frequencies."""
    return 1 if quantity(metric) in NEIGHBORS else (2 if quantity(metric) in FREQUENCIES else 0)


def title_of(metric: str, known: Mapping[str, str]) -> str:
    """The title of the part that shows a metric; names keep their case."""
    home = known.get(space(metric))
    if home is None:
        return (PICTURES, "Neighbors", "Spatial frequencies")[kind(metric)]
    return (f"Features of {home}", f"Neighbors in {home}", f"Frequencies in {home}")[kind(metric)]


def heading(metric: str, title: str) -> str:
    """What a column shows, in which features if the title does not say it, and which way is better.

    A heading may be broken between words; an arrow stays with the word before it.
    """
    of = "" if title.endswith(f" {space(metric)}") else space(metric)
    words = " ".join(filter(None, (meaning(metric).label, of)))
    return "\N{NO-BREAK SPACE}".join(filter(None, (words, *ARROWS[meaning(metric).good].split())))


def cells(row: Row, metrics: Sequence[str]) -> list[str]:
    """A row's numbers, with standard errors where they are known."""
    numbers = [number_of(row, metric) for metric in metrics]
    pairs = zip(metrics, numbers, strict=True)
    return [ABSENT if number is None else show(metric, number) + deviation(row, metric) for metric, number in pairs]


def costs(rows: Sequence[Row]) -> list[Part]:
    """How many images a row has and what one costs, as far as it is known; nothing where rows differ in none of it."""
    plain = {"images": "n", "scale": "scale", "steps": "steps", "network passes": "nfe"}
    found = {head: [plain_number(row.get(key)) for row in rows] for head, key in plain.items()}
    for head, key in (("ms\N{NO-BREAK SPACE}/ image", "seconds_per_image"), ("latency, ms", "latency_seconds")):
        found[head] = [milliseconds(row[key]) if finite(row.get(key)) else ABSENT for row in rows]
    known = {head: column for head, column in found.items() if set(column) != {ABSENT}}
    if set(known) <= {"images"} and len(set(known.get("images", ()))) < 2:
        return []
    lines = [[name(row), *(column[i] for column in known.values())] for i, row in enumerate(rows)]
    return [Part("Rows, and what an image costs", [["", *known], *lines])]


def plain_number(number: object) -> str:
    """A number that is no metric."""
    plain = finite(number)
    if plain is None:
        return ABSENT
    return f"{plain:.0f}" if plain.is_integer() else f"{plain:g}"


def name(row: Row) -> str:
    """A row's name."""
    return str(row.get("name", "?"))


def pieces(metrics: Sequence[str], most: int) -> list[Sequence[str]]:
    """Metrics in as few runs as `most` allows, about equally long."""
    count = -(-len(metrics) // most)
    edges = [round(i * len(metrics) / count) for i in range(count + 1)]
    return [metrics[start:end] for start, end in pairwise(edges)]
