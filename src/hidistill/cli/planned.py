"""Says what a run would take, and starts nothing."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hidistill.cli.lookup import Recipe
from hidistill.cli.progress import duration
from hidistill.scores import markdown
from hidistill.train.experiment import Experiment
from hidistill.train.planning import IN_A_MACHINE, Layout, counted, plan, rows, warning
from hidistill.train.rates import datasheet, measured

Machine = Literal["here", "H100", "H200", "A100"]


@dataclass(frozen=True)
class Setting:
    """On what a run is planned.

    Args:
        layout: processes, one for each device, and how the networks lie on them.
        machine: this one, measured, or an accelerator off its datasheet.
        share: of the datasheet's products a second that the run is taken to reach.
        device: of this machine, where it is measured.
        price: of an hour of one device; 0 leaves costs out.
    """

    layout: Layout = field(default_factory=Layout)
    machine: Machine = "here"
    share: float = 1.0
    device: str = "cpu"
    price: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no effect."""
        if self.machine == "here" and self.share != 1.0:
            raise ValueError(
                f"--share {self.share:g} is a share of a datasheet's rate, and this machine is measured; say --machine "
                "H100, or leave --share out"
            )
        if self.machine != "here" and self.device != "cpu":
            raise ValueError(
                f"--device {self.device} is of this machine, and --machine {self.machine} is off its datasheet; leave "
                "one of them out"
            )


def foretell(recipe: Recipe, arguments: Mapping[str, Any], setting: Setting) -> int:
    """Print what each process of a run would take: memory by role, products, seconds of a step, hours."""
    experiment = recipe.function(**arguments)
    if not isinstance(experiment, Experiment):
        raise TypeError(f"recipe {recipe.name} returned a {type(experiment).__name__}; a recipe returns an Experiment")
    say(planned(experiment, setting))
    return 0


def planned(experiment: Experiment, setting: Setting) -> str:
    """The table of a plan, and what it rests on, in Markdown."""
    layout = setting.layout
    work = counted(experiment, layout, device=setting.device if setting.machine == "here" else "cuda")
    if setting.machine == "here":
        works = [each for updates in work.values() for each in updates.values()]
        rates = measured(works, precision=experiment.precision, device=setting.device)
    else:
        rates = datasheet(setting.machine, share=setting.share)
    found = plan(experiment, work, rates, layout=layout)
    seconds = sum(each.steps * each.seconds for each in found)
    unsent = any(each.sending is None for each in found)
    left_out = ", checkpoints and what is sent between processes" if unsent else " and checkpoints"
    if layout.processes > 1 and not unsent:
        left_out += ", nothing of what is sent overlapping with what is computed"
    lines = [
        markdown(rows(found, layout=layout, precision=experiment.precision)),
        f"Rates: {rates.machine}. In all about {duration(seconds)} for {experiment.total_steps:,} steps, without "
        f"evaluations{left_out}.",
    ]
    if layout.offload_frozen:
        lines.append("How long frozen networks take from the CPU's memory to the device is not foretold.")
    if unsent:
        lines.append("How fast processes of this machine share its cores and links is not foretold.")
    if setting.price:
        hours = seconds / 3600 * layout.processes
        lines.append(
            f"That is {hours:,.0f} hours of a device, {hours * setting.price:,.0f} at {setting.price:g} an hour."
        )
    return "\n".join([*lines, *filter(None, [warning(found, rates)])]) + "\n"


def launch(words: Sequence[str], processes: int) -> str:
    """The command that starts a run, in words.

    Args:
        words: of `hidistill train`: the recipe and its options.
        processes: one for each device; beyond one machine's over several, as many on each.
    """
    run = shlex.join(["-m", "hidistill", "train", *words])
    if processes == 1:
        return f"The run:\n\n    python {run}\n"
    if processes <= IN_A_MACHINE:
        return f"The run:\n\n    torchrun --standalone --nproc-per-node {processes} {run}\n"
    each = max(n for n in range(1, IN_A_MACHINE + 1) if processes % n == 0)
    machines = f"--nnodes {processes // each} --nproc-per-node {each}"
    meeting = "--rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id 1"
    return f"The run, on each machine, of which HOST is one:\n\n    torchrun {machines} {meeting} {run}\n"


def without(option: str, argv: Sequence[str]) -> list[str]:
    """The words of a command line without an option that has one value."""
    names, left, words = {f"--{option}", f"--{option.replace('-', '_')}"}, [], iter(argv)
    for word in words:
        if word in names:
            next(words, None)
        elif word.partition("=")[0] not in names:
            left.append(word)
    return left


def say(text: str) -> None:
    """Print a table as it is, whatever the terminal's width."""
    sys.stdout.write(text)
