"""Runs a recipe in a folder, with its progress shown."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console

from hidistill.cli import complain
from hidistill.cli.lookup import Recipe
from hidistill.cli.outcome import show
from hidistill.cli.progress import display
from hidistill.train.distributed.ranks import Agreed, LostRank, join
from hidistill.train.distributed.watch import GIVEN_UP
from hidistill.train.distributed.work import Work
from hidistill.train.driver import Event, execute, refuse_device
from hidistill.train.experiment import Experiment
from hidistill.train.loop import NonFinite
from hidistill.train.patience import Terminated

STOPPED, TERMINATED, BAD_INPUT = 130, 143, 2
"""Exit statuses: 128 and the number of the signal, as shells have them."""


def carry_out(
    recipe: Recipe,
    arguments: Mapping[str, Any],
    out: Path,
    *,
    device: str = "cpu",
    passes: int = 1,
    timeout_seconds: float = 600.0,
) -> int:
    """Build the experiment, run it with its progress shown, and show what it reached.

    Started by torchrun, this is one of several processes that do so together; the first of them speaks.
    """
    refuse_device(device)
    ranks = join(device, timeout_seconds=timeout_seconds)
    try:
        with nullcontext() if ranks.first else silence():
            return together(recipe, arguments, out, Work(ranks, passes))
    except (Agreed, NonFinite):
        if ranks.first:
            raise
        return BAD_INPUT
    except LostRank as error:
        complain(str(error))
        return GIVEN_UP
    finally:
        ranks.close()


@contextmanager
def silence() -> Iterator[None]:
    """Within, nothing is printed but errors."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def together(recipe: Recipe, arguments: Mapping[str, Any], out: Path, work: Work) -> int:
    """Do this process's part of a run."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder, which may be new")
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

            execute(
                experiment, out, recipe=recipe.name, arguments=arguments, device=work.ranks.device, work=work,
                on_event=on_event,
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        left = f"stopped; the same command goes on from step {saved} of {experiment.total_steps}"
        Console(stderr=True).print(left, markup=False, highlight=False)
        return TERMINATED if isinstance(stop, Terminated) else STOPPED
    show(out)
    return 0
