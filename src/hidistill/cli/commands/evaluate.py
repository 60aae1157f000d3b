"""`hidistill evaluate`: measures a finished run again."""

from collections.abc import Sequence
from pathlib import Path


def command(argv: Sequence[str]) -> int:
    """Run the command; the options are those of `hidistill.recipes.again.judge`."""
    from hidistill.cli.options import parse
    from hidistill.cli.outcome import show
    from hidistill.cli.pace import drawing
    from hidistill.recipes.again import judge

    arguments = parse(judge, argv, prog="hidistill evaluate", positional="run")
    run: Path = arguments.pop("run")
    with drawing() as tell:
        arguments["on_progress"] = tell
        judge(run, **arguments)
    show(run, full=True)
    return 0
