"""What a run will take, said before it is started: memory of each process by role, products, seconds.

Everything comes from `counting`, and from `rates`, which are measured or a datasheet's; nothing is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from hidistill.train.counting import Work, count, tensors_of
from hidistill.train.experiment import Experiment
from hidistill.train.loop import Precision
from hidistill.train.rates import Rates

Counted = Mapping[str, Mapping[str, Work]]
"""Work by stage and update."""
GIB = 1024**3
IN_A_MACHINE = 8
"""Processes that share a machine, and its fast links."""
SPARE = 0.1
"""Of a device's memory, that a plan leaves free: what its library takes, and the gaps between allocations."""


@dataclass(frozen=True)
class Layout:
    """Processes, and how the networks lie on them.

    Args:
        processes: one for each device; the batch is split over them.
        sharded: every network, gradient, optimizer's state and average is cut into as many parts, one for each.
        passes: in which a process takes its rows, one after the other.
        recompute: whether blocks of sharded networks run again in the backward pass.
        offload_frozen: whether sharded networks that do not move rest in the CPU's memory.
        offload_optimizer: whether optimizers' states of whole networks lie in the CPU's memory but for the time of a
            step.
    """

    processes: int = 1
    sharded: bool = False
    passes: int = 1
    recompute: bool = False
    offload_frozen: bool = False
    offload_optimizer: bool = False

    def __post_init__(self) -> None:
        """Refuse less than one process or pass, and what goes with sharded networks without them."""
        if self.processes < 1 or self.passes < 1:
            raise ValueError(f"processes={self.processes}, passes={self.passes}: a run has 1 or more")
        if (self.recompute or self.offload_frozen) and not self.sharded:
            raise ValueError("--recompute and --offload-frozen are of networks held in parts; add --sharded")
        if self.offload_optimizer and self.sharded:
            raise ValueError("--offload-optimizer is of networks held whole; leave it out, or --sharded")

    def share(self, samples: int) -> int:
        """Rows of a batch for each pass of each process.

        Raises:
            ValueError: if it cannot be split evenly.
        """
        parts = self.processes * self.passes
        if samples % parts:
            each = f" of {self.passes} passes each" if self.passes > 1 else ""
            raise ValueError(
                f"a batch of {samples} cannot be split evenly over {self.processes} processes{each}; use a multiple of "
                f"{parts}, such as {samples // parts * parts or parts}"
            )
        return samples // parts


@dataclass(frozen=True)
class StagePlan:
    """One stage on each process.

    Args:
        name: of the stage.
        steps: its length.
        samples: rows of the whole batch.
        work: of each update, with this process's share of the batch.
        memory: bytes by what they are for; activations are those of the dearest update.
        computing: seconds of a step, on the mean over the updates' periods.
        sending: seconds of a step that a process sends and receives, if none of it overlaps with computing; None where
            nobody knows how fast the processes' links are.
    """

    name: str
    steps: int
    samples: int
    work: Mapping[str, Work]
    memory: Mapping[str, int]
    computing: float
    sending: float | None

    @property
    def flops(self) -> float:
        """Products of a step on one process, on the mean."""
        return sum(work.flops / work.every for work in self.work.values())

    @property
    def total(self) -> int:
        """Bytes on one process."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """Of a step, with nothing overlapping; of what is computed alone, where what is sent is not foretold."""
        return self.computing + (self.sending or 0.0)


def counted(experiment: Experiment, layout: Layout = Layout(), *, device: str = "cpu") -> Counted:
    """The work of each update on one process, by stage.

    Args:
        experiment: built, with its networks anywhere, even without numbers (on the device "meta").
        layout: processes, over which the batch is split.
        device: what will do the work.

    Raises:
        Uncountable: if an update's operations depend on numbers.
        ValueError: if the batch cannot be split over the processes.
    """
    rows = layout.share(len(experiment.batch_at(0).x))
    found = count(experiment, samples=rows, recompute=layout.recompute, device=device)
    return {
        stage: {name: work.repeated(layout.passes) for name, work in updates.items()}
        for stage, updates in found.items()
    }


def plan(experiment: Experiment, work: Counted, rates: Rates, *, layout: Layout = Layout()) -> list[StagePlan]:
    """What each stage of an experiment takes; nothing is computed, drawn or changed.

    Args:
        experiment: what was counted.
        work: of one process; see `counted`.
        rates: of a process's device.
        layout: processes, and how the networks lie on them.
    """
    rows = layout.processes * max(each.samples for updates in work.values() for each in updates.values())
    states, found = 0, []
    for stage in experiment.stages:
        if stage.name not in work:
            continue
        each = [state_of(update.optimizer) for update in stage.updates.values()]
        states += sum(each)
        mine = work[stage.name]
        memory = memory_of(experiment, mine, states=states, layout=layout)
        if layout.offload_optimizer:  # those of one come at a time, into the room that activations have left
            memory["optimizers"] = max(0, max(each) - memory["activations"])
        computing = sum(rates.seconds_of(each) / each.every for each in mine.values())
        sending = seconds_sent(experiment, mine, rates, layout)
        found.append(StagePlan(stage.name, stage.steps, rows, mine, memory, computing, sending))
    return found


def state_of(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's state: two numbers for each weight of Adam and its relatives; what else it has now."""
    weights = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    return (2 if "betas" in optimizer.defaults else 1 if optimizer.defaults.get("momentum") else 0) * weights


def memory_of(experiment: Experiment, work: Mapping[str, Work], *, states: int, layout: Layout) -> dict[str, int]:
    """Bytes of one process by what they are for.

    The states of an optimizer stay when its stage has ended, as its averages are there before it begins. Gradients are
    those of the update that moves most, for each update forgets its own; the peak that was counted has them in it. In
    parts each goes to its owners when it is done, and what is alive beside those that are done counts.
    """
    parts = layout.processes if layout.sharded else 1
    roles = {**experiment.modules, **experiment.frozen}
    found = {role: bytes_of(module) // parts for role, module in roles.items()}
    if layout.offload_frozen:
        found |= dict.fromkeys(experiment.frozen, 0)
    found["averages"] = sum(bytes_of(a.module) for s in experiment.stages for a in s.averages.values()) // parts
    found["optimizers"] = states // parts
    gradients = {name: 4 * each.moving for name, each in work.items()}
    dearest = max(work, key=lambda name: work[name].peak_bytes)
    activations = max(work[dearest].peak_bytes - gradients[dearest], work[dearest].saved_bytes)
    if layout.sharded:
        dearest = max(work, key=lambda name: gradients[name] / parts + work[name].activation_bytes)
        activations = work[dearest].activation_bytes
        found["gathered"] = 2 * max(largest_block(module) for module in roles.values())
    return found | {"gradients": gradients[dearest] // parts, "activations": activations}


def bytes_of(module: nn.Module) -> int:
    """Of its parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(module))


def largest_block(module: nn.Module) -> int:
    """Bytes of the largest entry of a list of blocks, which is what a sharded network gathers at once."""
    lists = [block for part in module.modules() if isinstance(part, nn.ModuleList) for block in part]
    return max(map(bytes_of, lists), default=bytes_of(module))


def seconds_sent(experiment: Experiment, work: Mapping[str, Work], rates: Rates, layout: Layout) -> float | None:
    """Of a step: gradients are averaged once; a sharded network is gathered twice as well, for its way there and back.

    Networks in parts do so in each pass. A ring sends `2 (n - 1) / n` of the bytes for an average, half of it for a
    gathering or a scattering. Beyond one machine the slower links between machines are what the ring waits for. None
    where the links are not known.
    """
    n = layout.processes
    link = rates.link if n <= IN_A_MACHINE else rates.between
    if n == 1:
        return 0.0
    if not link:
        return None
    ring = (n - 1) / n / link
    gradients = sum(2 * 4 * each.moving / each.every for each in work.values()) * ring
    if not layout.sharded:
        return gradients
    width = 4  # the weights are float32 under autocast too, and travel so
    roles = {**experiment.modules, **experiment.frozen}
    gathered = sum(2 * width * bytes_of(module) / 4 for module in roles.values()) * ring
    return layout.passes * (gradients / 2 + gathered * sum(1 / each.every for each in work.values()))


def rows(plans: list[StagePlan], *, layout: Layout, precision: Precision) -> list[list[str]]:
    """A plan as a table: a column for each stage."""
    labels = list(dict.fromkeys(label for each in plans for label in each.memory))
    table = [["each process", *(each.name for each in plans)]]
    table += [["batch", *(f"{each.samples // layout.processes} of {each.samples:,}" for each in plans)]]
    for label in labels:
        table.append([f"memory: {label}", *(amount(each.memory.get(label, 0)) for each in plans)])
    table.append(["memory, in all", *(amount(each.total) for each in plans)])
    names = list(dict.fromkeys(name for each in plans for name in each.work))
    for name in names:
        cells = [flops_of(each.work[name]) if name in each.work else "" for each in plans]
        table.append([f"products: update {name}", *cells])
    table.append([f"products a step ({precision})", *(f"{each.flops / 1e12:.4g} T" for each in plans)])
    table.append(["seconds a step, computing", *(f"{each.computing:.3g}" for each in plans)])
    if layout.processes > 1:
        sent = ("not foretold" if each.sending is None else f"{each.sending:.3g}" for each in plans)
        table.append(["seconds a step, sending", *sent])
    table.append(["steps", *(f"{each.steps:,}" for each in plans)])
    table.append(["hours", *(f"{each.steps * each.seconds / 3600:.3g}" for each in plans)])
    return table


def flops_of(work: Work) -> str:
    """Products of an update, and how often it runs."""
    often = "" if work.every == 1 else f", every {work.every} steps"
    return f"{work.flops / 1e12:.4g} T{often}"


def amount(number: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{number / GIB:.2f} GiB" if number >= GIB / 10 else f"{number / 1024**2:.1f} MiB"


def warning(plans: list[StagePlan], rates: Rates) -> str:
    """In words where a plan asks for more memory than a device has; empty if it does not, or nobody knows."""
    if not rates.memory or not plans:
        return ""
    most = max(plans, key=lambda each: each.total)
    if most.total <= (1 - SPARE) * rates.memory:
        return ""
    return (
        f"{most.name} takes {amount(most.total)} of {amount(int(rates.memory))}: it does not fit with a tenth to "
        "spare; split the batch over more processes, shard the networks, or accumulate gradients over smaller batches"
    )
