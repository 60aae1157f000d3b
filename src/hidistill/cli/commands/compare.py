"""`hidistill compare`: which differences between runs are there, and which are not resolved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


def compare(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    rows: tuple[str, ...] = ("student, 1 step",),
    out: Path | None = None,
) -> int:
    """Compare rows of runs that were evaluated with --groups, every one with the first, a sentence for each number.

    Intervals are paired: images are left out of both rows together. That many numbers are looked at is not corrected
    for: of twenty numbers that do not differ, one is expected to look resolved.

    Args:
        runs: folders, or evaluation.json files.
        rows: names of rows of every run; the first row of the first run is what all are compared with.
        out: a file for the sentences as Markdown.
    """
    from hidistill.experiments.comparing import compare as verdicts
    from hidistill.experiments.comparing import read, sentence

    if not runs:
        raise ValueError("no runs came; give at least one folder, e.g. hidistill compare runs/a runs/b")
    entries = read(runs, rows)
    first, console, said = entries[0].name, Console(), []
    for name, found in verdicts(entries).items():
        said.append(f"## {name} against {first}\n")
        said += [f"- {sentence(verdict, first, name)}" for verdict in found]
        resolved = sum(verdict.resolved for verdict in found)
        said.append(f"\n{resolved} of {len(found)} differences are resolved.\n")
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(said) + "\n", encoding="utf-8")
    return 0


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(compare, args=argv, prog="hidistill compare")
