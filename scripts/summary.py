"""Mean and sample standard deviation over runs that differ in their seeds, row by row, from their evaluations.

    python scripts/summary.py RUN RUN ... --columns name nfe fd/efficientnet-lite0-64px high_frequency

A run is its folder, or the JSON file of one of its evaluations. Columns are fields of a row and names of metrics;
without any, the number of passes and all Fréchet distances. Rows that not all runs have are left out, and named.
"""

import sys
from dataclasses import replace
from pathlib import Path

import tyro

from hidistill.scores import Evaluation, markdown, summary, table


def main(runs: tyro.conf.Positional[tuple[Path, ...]], *, columns: tuple[str, ...] = ()) -> None:
    """Print the table.

    Args:
        runs: two or more.
        columns: what is shown.
    """
    found = [Evaluation.load(run / "evaluation.json" if run.is_dir() else run) for run in runs]
    shared = set.intersection(*({row.name for row in each.rows} for each in found))
    left = sorted({row.name for each in found for row in each.rows} - shared)
    spreads = summary([replace(each, rows=tuple(row for row in each.rows if row.name in shared)) for each in found])
    distances = [key for key in spreads[0].row.metrics if key.startswith("fd/")]
    sys.stdout.write(markdown(table(spreads, columns or ("name", "nfe", *distances))))
    sys.stdout.write(f"{len(found)} runs, {found[0].n} images a row\n")
    if left:
        sys.stdout.write(f"not in all of them: {', '.join(left)}\n")


if __name__ == "__main__":
    tyro.cli(main)
