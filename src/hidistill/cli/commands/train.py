"""`hidistill train RECIPE`: a recipe is a function, and its keyword arguments are the options."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

USAGE = """usage: hidistill train RECIPE [--out DIR] [--device DEVICE] [--journal NAME ...] [--dry-run N] [OPTIONS]
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
    from hidistill.cli.options import parse, settings_options
    from hidistill.cli.running import Settings, carry_out

    recipe = find(argv[0])
    out = (
        Path,
        Path("runs") / folder_name(recipe.name),
        "the run's folder; one that holds this run is taken up again.",
    )
    device = (str, "cpu", "where the networks run, e.g. cuda; a run may be taken up on another one.")
    journal = (
        tuple[Literal["tensorboard", "wandb", "trackio"], ...],
        (),
        "where scalars go beside metrics.jsonl; each is an extra of its name, stays on this machine and opens no port.",
    )
    tf32 = (bool, False, "whether a GPU may make products of float32 in TF32, which has 10 bits behind the point.")
    compiles = (
        bool,
        False,
        "compile the networks' passes: minutes at the start, for less time in each step.",
    )
    dry_run = (int, 0, "print what each of so many processes would take, and start nothing; see hidistill doctor.")
    extra = {"out": out, "device": device, "journal": journal, "tf32": tf32, "compile": compiles, "dry_run": dry_run}
    options = settings_options(Settings)
    arguments = parse(recipe.function, argv[1:], prog=f"hidistill train {recipe.name}", extra=extra | options)
    where, device, journals, tf32, compiled, dry_run = (arguments.pop(name) for name in extra)
    settings = Settings(**{name: arguments.pop(name) for name in options})
    if dry_run:
        from hidistill.cli.planned import Setting, foretell, launch, say, without

        foretell(recipe, arguments, Setting(settings.layout(dry_run), device=device))
        say(launch(without("dry-run", argv), dry_run))
        return 0
    how = {"journals": journals, "tf32": tf32, "compiled": compiled}
    return carry_out(recipe, arguments, where, device=device, settings=settings, **how)


def folder_name(recipe: str) -> str:
    """Name of a recipe's folder under runs/."""
    source, colon, function = recipe.rpartition(":")
    return f"{Path(source).stem}.{function}" if colon else recipe
