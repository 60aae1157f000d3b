"""Runs a recipe in a folder, with its progress shown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from hidistill.cli.lookup import Recipe
from hidistill.cli.outcome import show
from hidistill.cli.progress import display
from hidistill.train.driver import Event, execute, refuse_device
from hidistill.train.experiment import Experiment

STOPPED = 130


def carry_out(recipe: Recipe, arguments: Mapping[str, Any], out: Path, *, device: str = "cpu", **how: Any) -> int:  # noqa: ANN401 -- see below
    """Build the experiment, run it with its progress shown, and show what it reached.

    Args:
        recipe: what is run.
        arguments: of the recipe.
        out: the run's folder.
        device: where the networks run.
        how: further arguments of `execute`.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder, which may be new")
    refuse_device(device)
    console = Console()
    console.print(f"{recipe.name} in {out}", markup=False, highlight=False, soft_wrap=True)
    experiment = recipe.function(**arguments)
    if not isinstance(experiment, Experiment):
        raise TypeError(f"recipe {recipe.name} returned a {type(experiment).__name__}; a recipe returns an Experiment")
    saved = 0
    try:
        with display(console, "evaluation and report" if experiment.finish else "") as tell:

            def on_event(event: Event) -> None:
                nonlocal saved
                if event.kind in ("checkpoint", "resume"):
                    saved = event.global_step
                tell(event)

            execute(experiment, out, recipe=recipe.name, arguments=arguments, device=device, on_event=on_event, **how)
    except KeyboardInterrupt:
        left = f"stopped; the same command goes on from step {saved} of {experiment.total_steps}"
        Console(stderr=True).print(left, markup=False, highlight=False)
        return STOPPED
    show(out)
    return 0
