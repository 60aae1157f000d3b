"""What `hidistill doctor` says beforehand against what is then measured: seconds of a step, and memory.

python benchmarks/planning.py [--rounds 3]

A round measures the machine's rates, foretells, and then times the steps; what is printed are medians over the rounds.
Both are told on one thread by the processor's clock, which stands still while others have the processor: on an idle
machine it is the wall's.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from math import lcm
from statistics import median

import torch
from measuring.memory import allocated
from measuring.results import options, publish

from hidistill.derivative import Forward
from hidistill.guidance import Guided
from hidistill.recipes import digits, fashion
from hidistill.recipes.stages import sketch
from hidistill.teachers.dit import DiT
from hidistill.train.counting import count
from hidistill.train.experiment import Experiment
from hidistill.train.loop import steps
from hidistill.train.planning import plan
from hidistill.train.rates import measured
from hidistill.types import Batch

Cases = Mapping[str, Callable[[], Experiment]]
Rows = list[dict[str, object]]
PERIODS = 4
"""Of a stage's updates, that are timed."""


def tiny(batch_size: int) -> Experiment:
    """A sketch of the demo's network, on noise."""
    torch.manual_seed(0)
    teacher = DiT(image_size=28, channels=1, classes=10, size="tiny", patch=4).requires_grad_(False)
    student = teacher.student()

    def batch_at(step: int) -> Batch:
        torch.manual_seed(step)
        return Batch(torch.randn(batch_size, 1, 28, 28), torch.randint(10, (batch_size,)))

    stage = sketch(student, Guided(teacher, 1.5), steps=100, derivative=Forward())
    return Experiment([stage], {"student": student}, batch_at, seed=0, frozen={"teacher": teacher})


CASES: dict[str, Callable[[], Experiment]] = {
    "fashion.distill, batch 16": partial(fashion.distill, batch_size=16),
    "fashion.distill, batch 32": partial(fashion.distill, batch_size=32),
    "fashion.distill, batch 64": partial(fashion.distill, batch_size=64),
    "DiT-tiny, batch 32": partial(tiny, 32),
    "digits.teacher": digits.teacher,
}
"""What is foretold."""


def seconds_of(experiment: Experiment) -> Iterator[float]:
    """Seconds of a step of each stage, on the mean over its updates' periods, the first left out."""
    for index, stage in enumerate(experiment.stages):
        period = lcm(*(update.every for update in stage.updates.values()))
        offset = experiment.offset(index)
        reports = steps(
            stage,
            lambda step, offset=offset: experiment.batch_at(offset + step),
            seed=experiment.seed,
            precision=experiment.precision,
        )
        taken = []
        while len(taken) <= PERIODS:
            began = time.process_time()
            for _ in islice(reports, period):
                pass
            taken.append((time.process_time() - began) / period)
        yield median(taken[1:])


def times(cases: Cases, rounds: int) -> Rows:
    """Foretold and measured seconds of a step."""
    lines: Rows = []
    for name, make in cases.items():
        experiment = make()
        work = count(experiment)
        works = [each for updates in work.values() for each in updates.values()]
        found: dict[str, list[tuple[float, float]]] = {}
        flops: dict[str, float] = {}
        for _ in range(rounds):
            plans = plan(experiment, work, measured(works, precision=experiment.precision, clock=time.process_time))
            for each, real in zip(plans, seconds_of(experiment), strict=True):
                found.setdefault(each.name, []).append((each.computing, real))
                flops[each.name] = each.flops
        for stage, pairs in found.items():
            ratios = sorted(said / real for said, real in pairs)
            said, real = (median(column) for column in zip(*pairs, strict=True))
            line: dict[str, object] = {"run": name, "stage": stage, "GFLOP a step": flops[stage] / 1e9}
            line |= {"foretold, ms": 1e3 * said, "measured, ms": 1e3 * real, "foretold / measured": median(ratios)}
            lines.append(line | {"over the rounds": f"{ratios[0]:.2f} to {ratios[-1]:.2f}"})
    return lines


def memory(cases: Cases) -> Rows:
    """Foretold and measured bytes of each update, beyond what lasts."""
    lines: Rows = []
    for name, make in cases.items():
        experiment = make()
        work = count(experiment)
        for index, stage in enumerate(experiment.stages):
            batch = experiment.batch_at(experiment.offset(index))
            for update in stage.updates.values():
                for parameter in update.parameters():
                    parameter.requires_grad_(False)
            for label, update in stage.updates.items():
                real = allocated(update, batch, precision=experiment.precision)
                said = work[stage.name][label].peak_bytes
                line: dict[str, object] = {"run": name, "stage, update": f"{stage.name}, {label}"}
                line |= {"foretold, MiB": said / 2**20, "measured, MiB": real / 2**20}
                lines.append(line | {"foretold / measured": said / real})
    return lines


if __name__ == "__main__":
    parser = options(__doc__, "planning", clocks=())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="part of the names of the runs that are foretold")
    torch.set_num_threads(1)
    given = parser.parse_args()
    chosen = {name: make for name, make in CASES.items() if given.only in name}
    tables = {"Seconds of a step": times(chosen, given.rounds), "Memory of an update": memory(chosen)}
    sys.stdout.write(publish("planning", tables, given.out))
