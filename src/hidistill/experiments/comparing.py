"""Which differences between rows of evaluations are there, and which are not resolved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hidistill.experiments.statistics import CONFIDENCE, student_quantile
from hidistill.report.scores import columns, meaning, of_real, show, space
from hidistill.scores import Evaluation, Row, jackknife_error

DEFAULT = "student, 1 step"


@dataclass(frozen=True)
class Entry:
    """A row, and which run it is of."""

    run: str
    row: Row

    @property
    def name(self) -> str:
        """Run and row."""
        return f"{self.row.name} of {self.run}" if self.run else self.row.name


@dataclass(frozen=True)
class Verdict:
    """A difference of one number: second minus first, with its interval of 95 % confidence.

    Of a number that is best at 1 it is the difference of the distances to 1, `|second - 1| - |first - 1|`: 0.5 and 1.5
    do not differ in it.

    Args:
        metric: which number.
        first: its value for the first entry.
        second: for the second.
        low: end of the interval of the difference.
        high: the other end.
    """

    metric: str
    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Second minus first, or that of their distances to 1."""
        return compared(self.metric, self.second) - compared(self.metric, self.first)

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    @property
    def better(self) -> bool | None:
        """Whether the second is better; None where that is not resolved, or no side is good."""
        good = meaning(self.metric).good
        if not self.resolved or good == "neither":
            return None
        return self.difference > 0 if good == "large" else self.difference < 0


def compared(metric: str, value: float) -> float:
    """What is compared of a number: its distance to 1 where that is best, else the number itself."""
    return abs(value - 1) if meaning(metric).good == "one" else value


def paired(metric: str, first: Row, second: Row) -> Verdict:
    """The difference of two rows that were drawn from the same noise.

    Each number is known without each of g groups of images, which are the same images in both rows. The jackknife's
    error of the difference is taken from the g differences, so what both rows share cancels; the interval has the
    quantile of Student's distribution with g - 1 degrees of freedom. Real images are held fixed.

    A distance to 1 has a bend at 1: of a number that is 1 within its own error the jackknife's error is a rough one.

    Raises:
        ValueError: if the rows have no left-out groups, or not equally many.
    """
    a, b = first.left_out.get(metric, ()), second.left_out.get(metric, ())
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"{metric} has {len(a)} and {len(b)} left-out groups; an interval needs equally many: evaluate both with "
            "`hidistill evaluate RUN --groups 20`"
        )
    error = jackknife_error([compared(metric, y) - compared(metric, x) for x, y in zip(a, b, strict=True)])
    half = student_quantile((1 + CONFIDENCE) / 2, len(a) - 1) * error
    found = Verdict(metric, first.metrics[metric], second.metrics[metric], 0.0, 0.0)
    return replace(found, low=found.difference - half, high=found.difference + half)


def sentence(verdict: Verdict, first: str, second: str) -> str:
    """A difference in words."""
    where = f" in {space(verdict.metric)}" if space(verdict.metric) else ""
    label = f"{meaning(verdict.metric).label}{where}"
    numbers = f"{show(verdict.metric, verdict.second)} against {show(verdict.metric, verdict.first)}"
    near = meaning(verdict.metric).good == "one"
    what = "difference of the distances to 1" if near else "difference"
    interval = f"{what} {verdict.difference:.3g}, 95 % interval {verdict.low:.3g} to {verdict.high:.3g}"
    if not verdict.resolved:
        alike = "equally near to 1" if near else "alike"
        return f"{label}: not resolved: {second} and {first} may be {alike} ({numbers}; {interval})."
    if verdict.better is None:
        word = "is above" if verdict.difference > 0 else "is below"
    else:
        words = ("is nearer to 1 than", "is farther from 1 than") if near else ("is better than", "is worse than")
        word = words[0] if verdict.better else words[1]
    return f"{label}: {second} {word} {first} ({numbers}; {interval})."


def read(runs: Sequence[Path], rows: Sequence[str]) -> list[Entry]:
    """The wanted rows of some runs, whose evaluations must be of the same noise and the same real images.

    Raises:
        ValueError: if a run was not evaluated, evaluations differ, a row is missing, or there is nothing to compare.
    """
    found: dict[Path, Evaluation] = {}
    for run in runs:
        path = run / "evaluation.json" if run.is_dir() else run
        if not path.is_file():
            raise ValueError(f"{run} has no evaluation.json; run `hidistill evaluate {run} --groups 20` first")
        found[run] = Evaluation.load(path)
    first = next(iter(found.values()))
    for run, evaluation in found.items():
        for what, (one, other) in alike(evaluation, first).items():
            if one != other:
                raise ValueError(
                    f"{run} was evaluated with {what} = {one}, {runs[0]} with {other}; only the same noise and the "
                    "same real images compare: evaluate again"
                )
    entries, titles = [], titles_of(list(found))
    for (run, evaluation), title in zip(found.items(), titles, strict=True):
        by_name = {row.name: row for row in evaluation.rows}
        for name in rows:
            if name not in by_name:
                raise ValueError(f"{run} has no row {name!r}; it has {', '.join(map(repr, by_name))}")
            entries.append(Entry(title if len(found) > 1 else "", by_name[name]))
    if len(entries) < 2:
        raise ValueError("there is one row to compare; give a second run, or two rows: --rows 'student, 1 step' ...")
    return entries


def titles_of(runs: Sequence[Path]) -> list[str]:
    """What runs are called: by their folders' names if these tell them apart, else as they were given."""
    names = [(run if run.is_dir() else run.parent).resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def alike(one: Evaluation, other: Evaluation) -> dict[str, tuple[object, object]]:
    """What must be the same in two evaluations; where the real images lay is not of it."""
    found: dict[str, tuple[object, object]] = {
        what: (getattr(one, what), getattr(other, what)) for what in ("n", "seed", "labels")
    }
    first, second = ({key: given for key, given in each.real.items() if key != "path"} for each in (one, other))
    return found | {"real": (first, second)}


def compare(entries: Sequence[Entry]) -> Mapping[str, list[Verdict]]:
    """Every later entry against the first, in every number that both know with intervals.

    Raises:
        ValueError: if there is none.
    """
    first, *others = entries
    found = {}
    for other in others:
        shared = [
            metric
            for metric in columns([{"metrics": first.row.metrics}])
            if not of_real(metric)
            and metric in other.row.metrics
            and metric in first.row.left_out
            and metric in other.row.left_out
        ]
        if not shared:
            raise ValueError(
                f"{first.name} and {other.name} share no number with an interval; evaluate both with "
                "`hidistill evaluate RUN --groups 20`"
            )
        found[other.name] = [paired(metric, first.row, other.row) for metric in shared]
    return found
