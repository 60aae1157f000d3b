"""`hidistill experiment NAME`: a question, a grid of runs over seeds, a table, a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


def experiment(
    name: Annotated[str, tyro.conf.Positional],
    *,
    size: Literal["small", "full"] = "small",
    out: Path | None = None,
    seeds: tuple[int, ...] = (),
    variants: tuple[str, ...] = (),
    jobs: int | None = None,
    document: Path | None = None,
) -> int:
    """Run an experiment, and write its table, its figure and its section of a document.

    Every cell of the grid, a variant with a seed, is a process of one thread. The same command again measures only the
    cells that are missing.

    Args:
        name: of the experiment; `hidistill experiment list` names them all.
        size: small ends within a quarter of an hour on two cores; full may take hours.
        out: folder of the experiment; by default runs/experiments/NAME-SIZE.
        seeds: in place of the grid's own.
        variants: rows of the table to run, to which come those that they are compared with; by default all.
        jobs: cells at a time; by default as many as there are cores.
        document: Markdown file whose section of this experiment is written anew; it must have marks for it, and other
            ones for size full.
    """
    import os

    from hidistill.experiments import grid, report

    console = Console()
    if name == "list":
        for each in grid.known():
            console.print(f"{each}: {grid.find(each).question}", markup=False, highlight=False, soft_wrap=True)
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folder = Path("runs") / "experiments" / f"{name}-{size}" if out is None else out
    if document is not None:
        report.place(document, report.label(name, size))
    results = grid.run(name, size, folder, jobs=cores if jobs is None else jobs, seeds=seeds, variants=variants)
    text = report.write(results, folder, name=name, size=size, document=document)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(experiment, args=argv, prog="hidistill experiment")
