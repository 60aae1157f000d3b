"""What an evaluation found: rows of numbers, kept as JSON, shown as tables, summed up over seeds.

The JSON file of an evaluation, with null for what does not apply to a row:

    {"n": 2000, "seed": 0,
     "real": {"n": 2000, "classes": 10, "shape": [1, 28, 28], "digest": "9f86d081884c"},
     "judges": ["frechet/classifier", ...],
     "features": {"classifier": "what these features are", ...},
     "floor": {"fd/classifier": 0.5, ...},
     "rows": [{"name": "student, 1 step", "kind": "student", "n": 2000, "steps": 1, "nfe": 1, "scale": null,
               "seconds_per_image": 0.001, "latency_seconds": null, "metrics": {"fd/classifier": 1.7, ...},
               "left_out": {"fd/classifier": [1.8, 1.6, ...], ...}}, ...],
     "labels": "in turn", "notes": ["500 images a row for 1,280 features ..."]}

`seed` is that of the noise, null where the pictures were there already. `kind` is "teacher", "student", "samples" or
"real"; `floor` repeats the metrics of the first real row, for readers.
`left_out` has each number again without the first, the second, ... group of the row's images: the jackknife's values.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean, stdev

from hidistill.files import whole


@dataclass(frozen=True)
class Row:
    """What the metrics say of one contestant; `n` counts its images."""

    name: str
    kind: str
    n: int
    steps: int | None = None
    nfe: int | None = None
    scale: float | None = None
    seconds_per_image: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    latency_seconds: float | None = None
    left_out: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def error(self, metric: str) -> float | None:
        """The jackknife's standard error of a number, if groups were left out."""
        values = self.left_out.get(metric)
        return None if not values or metric not in self.metrics else jackknife_error(values)


@dataclass(frozen=True)
class Spread:
    """One row over several runs: means of the numbers in `row`, their sample standard deviations in `std`."""

    row: Row
    std: Mapping[str, float]
    runs: int


@dataclass(frozen=True)
class Evaluation:
    """Rows of numbers, and what they depend on; the module says what the fields hold."""

    n: int
    seed: int | None
    real: Mapping[str, object]
    judges: Sequence[str]
    features: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    labels: str = "in turn"
    notes: Sequence[str] = ()

    @property
    def floor(self) -> Mapping[str, float]:
        """Metrics of the first real row; empty if there is none."""
        return next((row.metrics for row in self.rows if row.kind == "real"), {})

    def table(self, columns: Sequence[str]) -> list[list[str]]:
        """A header and a line per row; columns are fields of `Row` or names of metrics."""
        return table([Spread(row, {}, 1) for row in self.rows], columns)

    def save(self, path: Path) -> None:
        """Write JSON; a reader sees the old file or the new one, never a part."""
        content = asdict(self)
        rows = content.pop("rows")
        text = json.dumps(content | {"floor": dict(self.floor), "rows": rows}, indent=1, allow_nan=False) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            partial.write_text(text)

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is no evaluation.
        """
        try:
            content = json.loads(path.read_text())
            del content["floor"]
            rows, notes = tuple(Row(**row) for row in content["rows"]), tuple(content.get("notes", ()))
            return cls(**{**content, "rows": rows, "notes": notes})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no evaluation ({error}); delete it and evaluate again") from error


def jackknife_error(values: Sequence[float]) -> float:
    """Standard error of a statistic from its values without one group each (Efron and Stein 1981)."""
    g, mean = len(values), fmean(values)
    return math.sqrt((g - 1) / g * sum((value - mean) ** 2 for value in values))


def summary(evaluations: Sequence[Evaluation]) -> list[Spread]:
    """Mean and sample standard deviation (n - 1) of every number of every row, over runs that differ in their seeds.

    Raises:
        ValueError: if there are fewer than two runs, or they differ in more than their numbers.
    """
    if len(evaluations) < 2:
        raise ValueError(f"{len(evaluations)} evaluation came; a spread needs at least 2: run another seed")
    spreads = []
    names = [{row.name for row in evaluation.rows} for evaluation in evaluations]
    if any(each != names[0] for each in names):
        odd = sorted(set.union(*names) - set.intersection(*names))
        raise ValueError(
            f"the rows {odd} are not in all evaluations; a spread needs all of them: finish or drop these rows"
        )
    for first in evaluations[0].rows:
        rows = [row for evaluation in evaluations for row in evaluation.rows if row.name == first.name]
        plain = [replace(row, seconds_per_image=None, latency_seconds=None, metrics={}, left_out={}) for row in rows]
        keys = [set(row.metrics) for row in rows]
        if plain.count(plain[0]) != len(rows) or keys.count(keys[0]) != len(rows):
            raise ValueError(
                f"the row {first.name!r} is not the same in all evaluations; evaluate them with equal settings"
            )
        values = {key: [row.metrics[key] for row in rows] for key in first.metrics}
        seconds = [row.seconds_per_image for row in rows if row.seconds_per_image is not None]
        mean = replace(
            first,
            seconds_per_image=fmean(seconds) if seconds else None,
            metrics={key: fmean(value) for key, value in values.items()},
            latency_seconds=None,
            left_out={},
        )
        spreads.append(Spread(mean, {key: stdev(value) for key, value in values.items()}, len(rows)))
    return spreads


def table(spreads: Sequence[Spread], columns: Sequence[str]) -> list[list[str]]:
    """A header and a line per row; columns are fields of `Row` or names of metrics; "-" where a row has no number.

    Raises:
        ValueError: if no row knows a column.
    """
    plain = [each.name for each in fields(Row) if each.name not in ("metrics", "left_out")]
    known = set(plain).union(*(spread.row.metrics for spread in spreads))
    unknown = [column for column in columns if column not in known]
    if unknown:
        raise ValueError(f"no row has {unknown}; columns are {', '.join(sorted(known))}")
    lines = [list(columns)]
    for spread in spreads:
        values = [getattr(spread.row, c) if c in plain else spread.row.metrics.get(c) for c in columns]
        pairs = zip(columns, values, strict=True)
        lines.append([cell(value) + (f" ± {cell(spread.std[c])}" if c in spread.std else "") for c, value in pairs])
    return lines


def cell(value: str | int | float | None) -> str:
    """A value of a table: "-" for None; floats with three decimals, or with two digits if they are below 0.01."""
    if value is None or isinstance(value, str | int):
        return "-" if value is None else str(value)
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def in_cell(text: str) -> str:
    """Text that stays within its cell of a Markdown table."""
    return " ".join(text.splitlines()).replace("\\", r"\\").replace("|", r"\|")


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, its first line as the header; what would end a cell or a line in a name does not."""
    header, *rest = ["| " + " | ".join(map(in_cell, line)) + " |" for line in lines]
    return "\n".join([header, "|---" * len(lines[0]) + "|", *rest]) + "\n"
