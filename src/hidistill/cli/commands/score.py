"""`hidistill score`: judges pictures that are there already."""

from collections.abc import Sequence


def command(argv: Sequence[str]) -> int:
    """Run the command; with --prompts the options are those of `score_prompts`, else those of `score`."""
    from rich.console import Console

    from hidistill.cli.options import parse
    from hidistill.cli.outcome import say_all
    from hidistill.cli.pace import drawing
    from hidistill.recipes.prompted_scoring import score_prompts
    from hidistill.recipes.scoring import score
    from hidistill.report.folder import document

    judge = score_prompts if any(word.split("=")[0] == "--prompts" for word in argv) else score
    arguments = parse(judge, argv, prog="hidistill score", positional="samples")
    with drawing() as tell:
        arguments["on_progress"] = tell
        judge(**arguments)
    out = arguments["out"]
    say_all(document(out / "evaluation.json") or {})
    Console().print(f"table: {out / 'evaluation.md'}", markup=False, highlight=False, soft_wrap=True)
    return 0
