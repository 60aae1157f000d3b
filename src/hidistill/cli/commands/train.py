"""`hidistill train RECIPE`: a recipe is a function, and its keyword arguments are the options."""

import ast
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

USAGE = """usage: hidistill train RECIPE [--out DIR] [--device DEVICE] [OPTIONS]
       torchrun --nproc-per-node N -m hidistill train RECIPE [...]

RECIPE is one of

{names}

which `hidistill list` describes, or a function of your own: FILE.py:FUNCTION or MODULE:FUNCTION.
`hidistill train RECIPE --help` shows its options. The same command again goes on where the run stopped."""


def names() -> list[str]:
    """The bundled recipes, read from their sources: importing them would let the help wait for torch."""
    found = []
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RECIPES":
                found += [f"{path.stem}.{ast.unparse(each)}" for each in getattr(node.value, "elts", ())]
    return found


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    if not argv or argv[0] in ("-h", "--help"):
        usage = USAGE.format(names="\n".join(f"  {name}" for name in names()))
        Console().print(usage, markup=False, highlight=False, soft_wrap=True)
        return 0 if argv else 2
    if argv[0].startswith("-"):
        raise ValueError(f"{argv[0]!r} came before the recipe; write hidistill train RECIPE {argv[0]} ...")
    from hidistill.cli.lookup import find
    from hidistill.cli.options import parse
    from hidistill.cli.running import carry_out

    recipe = find(argv[0])
    out = (
        Path,
        Path("runs") / folder_name(recipe.name),
        "the run's folder; one that holds this run is taken up again.",
    )
    device = (str, "cpu", "where the networks run, e.g. cuda; a run may be taken up on another one.")
    passes = (int, 1, "in how many passes a process takes its rows of a batch: less memory for the same step.")
    timeout = (float, 600.0, "seconds after which a process that does not answer is given up, under torchrun.")
    extra = {"out": out, "device": device, "passes": passes, "timeout_seconds": timeout}
    arguments = parse(recipe.function, argv[1:], prog=f"hidistill train {recipe.name}", extra=extra)
    settings = {name: arguments.pop(name) for name in extra}
    return carry_out(recipe, arguments, settings.pop("out"), **settings)


def folder_name(recipe: str) -> str:
    """Name of a recipe's folder under runs/."""
    source, colon, function = recipe.rpartition(":")
    return f"{Path(source).stem}.{function}" if colon else recipe
