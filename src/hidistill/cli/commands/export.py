"""`hidistill export`: a student in the formats of others."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def command(argv: Sequence[str]) -> int:
    """Run the command; the options are those of `hidistill.recipes.exporting.export`."""
    from hidistill.cli.options import parse
    from hidistill.recipes.exporting import export

    arguments = parse(export, argv, prog="hidistill export", positional="source")
    source: Path = arguments.pop("source")
    done = export(source, **arguments)
    for line in done.words:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    return 0
