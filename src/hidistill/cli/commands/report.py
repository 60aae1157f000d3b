"""`hidistill report`: a run's page and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


def report(run: Annotated[Path, tyro.conf.Positional]) -> int:
    """Write report.html and its pictures again, from what the run's folder holds.

    Args:
        run: the run's folder.
    """
    from hidistill.report.page import write

    page = write(run)
    Console().print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    return 0


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(report, args=argv, prog="hidistill report")
