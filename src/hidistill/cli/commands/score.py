"""`hidistill score`: judges pictures that are there already."""

from collections.abc import Sequence


def command(argv: Sequence[str]) -> int:
    """Run the command; the options are those of `hidistill.recipes.scoring.score`."""
    from rich.console import Console

    from hidistill.cli.options import parse
    from hidistill.cli.outcome import table, wide_console
    from hidistill.cli.pace import drawing
    from hidistill.recipes.scoring import score
    from hidistill.report.folder import document

    arguments = parse(score, argv, prog="hidistill score", positional="samples")
    with drawing() as tell:
        arguments["on_progress"] = tell
        found = score(**arguments)
    out = arguments["out"]
    wide_console().print(table(document(out / "evaluation.json") or {}, costs=False))
    for note in found.notes:
        Console().print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    Console().print(f"table: {out / 'evaluation.md'}", markup=False, highlight=False, soft_wrap=True)
    return 0
