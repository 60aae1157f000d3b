"""`hidistill list`: the recipes that come with the package."""

from collections.abc import Sequence

import tyro
from rich.table import Table


def list_recipes() -> int:
    """Show every recipe: what it does, what it needs, and the number it reaches."""
    from hidistill.cli.lookup import bundled, section, summary
    from hidistill.cli.outcome import wide_console

    table = Table(title="hidistill train RECIPE --out DIR", title_justify="left")
    for heading in ("recipe", "what it does", "needs", "reaches"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "recipe")
    for recipe in bundled().values():
        table.add_row(recipe.name, summary(recipe), section(recipe, "Needs"), section(recipe, "Reaches"))
    console = wide_console()
    console.print(table, markup=False)
    console.print("Options of one: hidistill train RECIPE --help. Your own: hidistill train FILE.py:FUNCTION.")
    return 0


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(list_recipes, args=argv, prog="hidistill list")
