"""What an experiment is: variants, seeds, a cell that measures one of each, and what its numbers mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hidistill.experiments.figure import Picture
from hidistill.seeds import refuse_seed

Size = Literal["small", "full"]
LEAST_SEEDS = 5
"""Fewer resolve nothing."""


@dataclass(frozen=True)
class Variant:
    """One way of doing it.

    Args:
        name: of its row.
        arguments: of the cell, as JSON holds them.
        against: the variants that it is compared with; None is the experiment's reference.
    """

    name: str
    arguments: Mapping[str, Any]
    against: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Grid:
    """What is run: every variant with every seed.

    Args:
        variants: in the order of their rows.
        seeds: of training, data order and noise; equal seeds are compared in pairs.
    """

    variants: Sequence[Variant]
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        """Refuse grids of nothing and rows that cannot be told apart."""
        names = [variant.name for variant in self.variants]
        if not names or not self.seeds or len(set(names)) < len(names) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"variants {names} and seeds {list(self.seeds)}: an experiment needs at least one of each, and none "
                "twice"
            )
        for seed in self.seeds:
            refuse_seed(seed)
        strangers = {name for variant in self.variants for name in variant.against or ()} - set(names)
        if strangers:
            raise ValueError(f"variants are compared with {sorted(strangers)}, which are not run; these are {names}")


@dataclass(frozen=True)
class Column:
    """One number of the table.

    Args:
        key: in what a cell returns.
        heading: with its unit.
        better: which way is better; empty where neither is.
    """

    key: str
    heading: str
    better: Literal["lower", "higher", ""] = "lower"


Cell = Callable[..., Mapping[str, float]]
"""Measures one variant with one seed: `cell(seed=..., folder=..., **arguments)` gives numbers by name.

`folder` is the cell's own, for what it wants to keep, perhaps with what an interrupted attempt left. A number that does
not exist for a variant is absent. A function of a module, so that another process finds it.
"""


@dataclass(frozen=True)
class Study:
    """An experiment.

    Args:
        question: what it asks, in a sentence.
        setting: what was done, in a few sentences that a caption can hold.
        grids: by size.
        cell: measures.
        columns: of the table.
        reference: the variant that others are compared with where they do not say another.
        figure: draws the results.
    """

    question: str
    setting: str
    grids: Mapping[Size, Grid]
    cell: Cell
    columns: Sequence[Column]
    reference: str
    figure: Callable[["Results"], Picture]

    def __post_init__(self) -> None:
        """Refuse a reference that is not run."""
        for size, grid in self.grids.items():
            names = [variant.name for variant in grid.variants]
            if self.reference not in names:
                raise ValueError(f"reference {self.reference!r} is no variant of size {size!r}; these are {names}")


@dataclass(frozen=True)
class Results:
    """What the cells of an experiment found.

    Args:
        study: the experiment.
        grid: what was run.
        numbers: by variant and seed.
        codes: what the code was that measured each.
    """

    study: Study
    grid: Grid
    numbers: Mapping[tuple[str, int], Mapping[str, float]]
    codes: Mapping[tuple[str, int], str] = field(default_factory=dict)

    def of(self, variant: str, key: str) -> list[float]:
        """A number of a variant for each seed that has it, in their order; a run that diverged has few numbers."""
        return [number for (number,) in self.together((variant,), key)]

    def together(self, variants: Sequence[str], key: str) -> list[tuple[float, ...]]:
        """A number of several variants for each seed for which all of them have it."""
        rows = [[self.numbers[name, seed].get(key) for name in variants] for seed in self.grid.seeds]
        return [tuple(n for n in row if n is not None) for row in rows if None not in row]

    def by_variant(self, key: str) -> dict[str, list[float]]:
        """A number of every variant that has it, over the seeds."""
        return {each.name: values for each in self.grid.variants if (values := self.of(each.name, key))}

    def panels(self, *keys: str) -> dict[str, dict[str, list[float]]]:
        """Some of the study's columns by heading, as a figure has them beside each other; see `by_variant`."""
        headings = {column.key: column.heading for column in self.study.columns}
        return {headings[key]: self.by_variant(key) for key in keys}
