"""`hidistill demo`: the whole method on the bundled teacher and data."""

from collections.abc import Sequence
from pathlib import Path

import tyro

RECIPE = "fashion.distill"


def demo(*, out: Path = Path("runs/demo"), seed: int = 0, device: str = "cpu") -> int:
    """Distill the bundled Fashion-MNIST teacher into a one-step student, evaluate it, and write a report.

    The same command again goes on where it stopped, or shows the table of a finished run. Other settings are those of
    the recipe behind it: `hidistill train fashion.distill --help`.

    Args:
        out: the run's folder.
        seed: of everything in the run.
        device: where the networks run, e.g. cuda.
    """
    import inspect

    from hidistill.cli.lookup import find
    from hidistill.cli.running import carry_out
    from hidistill.seeds import refuse_seed

    refuse_seed(seed)
    recipe = find(RECIPE)
    parameters = inspect.signature(recipe.function).parameters.values()
    arguments = {parameter.name: parameter.default for parameter in parameters} | {"seed": seed}
    return carry_out(recipe, arguments, out, device=device)


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(demo, args=argv, prog="hidistill demo")
