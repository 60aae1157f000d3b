"""Runs a recipe in a folder, with its progress shown."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from hidistill.cli import complain
from hidistill.cli.lookup import Recipe
from hidistill.cli.outcome import show
from hidistill.cli.progress import display
from hidistill.train.checkpoint import Best, CheckpointError
from hidistill.train.distributed.joining import join
from hidistill.train.distributed.ranks import Agreed, LostRank
from hidistill.train.distributed.watch import GIVEN_UP
from hidistill.train.distributed.work import Sharding, Work
from hidistill.train.driver import Event, execute, refuse_device
from hidistill.train.experiment import Experiment
from hidistill.train.loop import NonFinite
from hidistill.train.patience import Terminated
from hidistill.train.planning import Layout

STOPPED, TERMINATED, BAD_INPUT = 130, 143, 2
"""Exit statuses: 128 and the number of the signal, as shells have them."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is carried out, whatever its recipe; options of `hidistill train`.

    Args:
        passes: in how many passes a process takes its rows of a batch: less memory for the same step.
        workers: threads that read batches ahead.
        sharded: each process holds a part of every network (FSDP2); needs torchrun.
        recompute: with --sharded, blocks run again in the backward pass rather than keep what it needs.
        offload_frozen: with --sharded, frozen networks rest in the memory of the CPU.
        offload_optimizer: optimizers' moments lie in the memory of the CPU but for the time of a step; not with
            --sharded.
        checkpoint_every: steps between two checkpoints.
        keep: newest checkpoints that stay.
        keep_best: a number of the short evaluations; the checkpoint where it is least stays too, or where it is
            largest, written as max:NAME.
        background_saves: a thread writes checkpoints while training goes on.
        skip_spikes: updates where a role's gradient is so many times its usual one are skipped and counted; 0 is none.
        timeout_seconds: after which a process that does not answer is given up, under torchrun.
    """

    passes: int = 1
    workers: int = 0
    sharded: bool = False
    recompute: bool = False
    offload_frozen: bool = False
    offload_optimizer: bool = False
    checkpoint_every: int = 100
    keep: int = 2
    keep_best: str = ""
    background_saves: bool = False
    skip_spikes: float = 0.0
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        """Refuse what has no effect."""
        self.layout(1)

    def layout(self, processes: int) -> Layout:
        """How the networks lie on so many processes, to be planned."""
        how = {each.name: getattr(self, each.name) for each in fields(Layout) if each.name != "processes"}
        return Layout(processes, **how)

    @property
    def execution(self) -> dict[str, Any]:
        """What `execute` is told."""
        sharding = Sharding(self.recompute, self.offload_frozen) if self.sharded else None
        metric = self.keep_best.removeprefix("max:")
        best = Best(metric, largest=metric != self.keep_best) if metric else None
        return {
            "checkpoint_every": self.checkpoint_every,
            "keep": self.keep,
            "best": best,
            "background": self.background_saves,
            "sharding": sharding,
            "offload_optimizer": self.offload_optimizer,
        }


USUAL = Settings()


def carry_out(
    recipe: Recipe,
    arguments: Mapping[str, Any],
    out: Path,
    *,
    device: str = "cpu",
    settings: Settings = USUAL,
    **how: Any,  # noqa: ANN401 -- see below
) -> int:
    """Build the experiment, run it with its progress shown, and show what it reached.

    Started by torchrun, this is one of several processes that do so together; the first of them speaks.

    Args:
        recipe: what is run.
        arguments: of the recipe.
        out: the run's folder.
        device: where the networks run.
        settings: how it is carried out.
        how: further arguments of `execute`.
    """
    refuse_device(device)
    ranks = join(device, timeout_seconds=settings.timeout_seconds)
    try:
        with nullcontext() if ranks.first else silence():
            return together(recipe, arguments, out, Work(ranks, settings.passes, settings.workers), settings, **how)
    except (Agreed, NonFinite, CheckpointError):
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


def together(
    recipe: Recipe,
    arguments: Mapping[str, Any],
    out: Path,
    work: Work,
    settings: Settings,
    **how: Any,  # noqa: ANN401 -- further arguments of `execute`
) -> int:
    """Do this process's part of a run."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder, which may be new")
    console = Console()
    console.print(f"{recipe.name} in {out}", markup=False, highlight=False, soft_wrap=True)
    experiment = recipe.function(**arguments)
    if not isinstance(experiment, Experiment):
        raise TypeError(f"recipe {recipe.name} returned a {type(experiment).__name__}; a recipe returns an Experiment")
    if settings.skip_spikes:
        experiment = experiment.skipping(settings.skip_spikes)
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
                on_event=on_event, **settings.execution, **how,
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        left = f"stopped; the same command goes on from step {saved} of {experiment.total_steps}"
        Console(stderr=True).print(left, markup=False, highlight=False)
        return TERMINATED if isinstance(stop, Terminated) else STOPPED
    show(out)
    return 0
