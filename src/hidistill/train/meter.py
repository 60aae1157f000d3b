"""How fast a run goes, and what holds it up: measured step by step, beside the losses."""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from hidistill.train.counting import Uncountable, Work, count
from hidistill.train.experiment import Experiment
from hidistill.train.folder import write_json
from hidistill.types import Batch

MIB = 1024**2


class Load(NamedTuple):
    """What a meter needs of a `Work`: products of so many samples, how often, and tokens of a sample."""

    flops: int
    every: int
    tokens: int
    samples: int


Loads = Mapping[str, Mapping[str, Load]]


def remembered(experiment: Experiment, path: Path) -> tuple[Loads, str]:
    """What each update of each stage takes, counted at a run's first start and read from its folder later on.

    Returns:
        The loads by stage and update, and in words why there are none; empty if there are.
    """
    if path.exists():
        found = json.loads(path.read_text())
        return {s: {u: Load(**load) for u, load in updates.items()} for s, updates in found["updates"].items()}, ""
    try:
        work = count(experiment)
    except Uncountable as error:
        write_json(path, {"updates": {}, "why": str(error)})
        return {}, str(error)
    loads = {s: {u: load_of(each) for u, each in updates.items()} for s, updates in work.items()}
    write_json(path, {"updates": {s: {u: x._asdict() for u, x in updates.items()} for s, updates in loads.items()}})
    return loads, ""


def load_of(work: Work) -> Load:
    """What a meter needs of it."""
    return Load(work.flops, work.every, work.tokens, work.samples)


class Meter:
    """Turns a step's seconds into rates.

    Args:
        work: of the stage's updates by name, as `remembered` has it; empty if it could not be counted.
        peak: products a second that the machine is capable of; 0 if nobody knows.
        device: where the networks run.
        processes: that take equally many rows of each batch, of which this is one; rates are of all of them.
    """

    def __init__(self, work: Mapping[str, Load], *, peak: float, device: str, processes: int = 1) -> None:
        self.work, self.peak, self.device, self.processes = work, peak, device, processes
        self.samples, self.waited = 0, 0.0

    def timed(self, batch_at: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """`batch_at`, with the time that a step waits for it taken."""

        def measured(step: int) -> Batch:
            began = time.perf_counter()
            batch = batch_at(step)
            self.waited += time.perf_counter() - began
            self.samples = len(batch.x)
            return batch

        return measured

    def read(self, step: int, seconds: float) -> dict[str, float]:
        """The rates of a step that took so long; `step` counts from 1.

        samples_per_second and tokens_per_second (where there is attention); flops_per_second, products only, and
        utilization, their share of the machine's; data_share, of the step's time that was spent waiting for its batch;
        memory_mib, the high-water mark so far: of the device's memory on a GPU, of the process elsewhere.
        """
        waited, self.waited = self.waited, 0.0
        samples = self.samples * self.processes
        found = {"samples_per_second": samples / seconds, "data_share": waited / seconds}
        ran = [work for work in self.work.values() if step % work.every == 0]
        if self.work:
            flops = sum(work.flops * self.samples / work.samples for work in ran)
            found["flops_per_second"] = flops * self.processes / seconds
            if self.peak:
                found["utilization"] = flops / seconds / self.peak
        if tokens := max((work.tokens for work in self.work.values()), default=0):
            found["tokens_per_second"] = tokens * samples / seconds
        found["memory_mib"] = high_water(self.device) / MIB
        return {name: float(f"{value:.6g}") for name, value in found.items()}


def high_water(device: str) -> int:
    """Most bytes in use so far: on a GPU by its tensors, elsewhere by the process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
