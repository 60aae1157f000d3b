"""What several processes cost: steps at 1 and 2 processes, and checkpoints with and without a thread that writes them.

`python benchmarks/scale.py` starts torchrun for each measurement. Three lines of steps: one process with the whole
batch; one with half of it, which is what each of two would ideally take; two processes with half each. What the third
takes beyond the second is communication, and waiting for one another.
"""

import json
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from measuring.results import options, publish
from torch.distributed.run import __file__ as torchrun

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.recipes.stages import refine, sketch
from hidistill.seeds import fold_in
from hidistill.teachers.dit import DiT
from hidistill.train.distributed.joining import join
from hidistill.train.distributed.work import Sharding, Work
from hidistill.train.experiment import Experiment
from hidistill.train.loop import steps
from hidistill.train.preparing import divide
from hidistill.train.saving import Keeping, Saver
from hidistill.train.snapshot import Position, take
from hidistill.types import Batch

STEPS = 24
ROWS = 32


def build(size: str) -> Experiment:
    """Both stages at the size of the demo's pictures."""
    torch.manual_seed(0)
    teacher = DiT(image_size=28, channels=1, classes=10, patch=4, size=size)
    teacher.eval().requires_grad_(False)
    student, fake, head = teacher.student(), deepcopy(teacher), Adaptive(teacher.feature_channels)
    guided = Guided(teacher, scale=1.5)
    first = sketch(student, guided, steps=STEPS, derivative=Forward())
    stages = [first, refine(student, guided, fake, head, steps=STEPS)]
    modules = {"student": student, "fake": fake, "discriminator": head}
    return Experiment(stages, modules, lambda step: batch(step, ROWS), seed=0, frozen={"teacher": teacher})


def batch(step: int, rows: int) -> Batch:
    """Noise for pictures: what is measured does not depend on them."""
    generator = torch.Generator().manual_seed(fold_in(0, step))
    return Batch(torch.randn(rows, 1, 28, 28, generator=generator), torch.randint(10, (rows,), generator=generator))


def measure(size: str, rows: int, *, sharded: bool) -> None:
    """Seconds of a step as the first process sees them: the quickest two, for other programs only slow them."""
    torch.set_num_threads(1)
    ranks, experiment = join("cpu", timeout_seconds=60.0), build(size)
    work = Work(ranks, averaging=divide(experiment, Sharding() if sharded else None, ranks))
    found = {}
    for stage in experiment.stages:
        taken, began = [], time.perf_counter()
        for _ in steps(stage, lambda step: batch(step, rows), seed=0, work=work):
            taken.append(time.perf_counter() - began)
            began = time.perf_counter()
        pairs = [first + second for first, second in zip(taken[2::2], taken[3::2], strict=True)]
        found[stage.name] = min(pairs) / 2
    if ranks.first:
        sys.stdout.write(json.dumps(found) + "\n")
    ranks.close()


def torchrun_once(count: int, *words: str) -> dict[str, float]:
    """What the first of some processes measures."""
    command = [sys.executable, torchrun, "--standalone", f"--nproc-per-node={count}", __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def saving(size: str) -> list[dict[str, object]]:
    """Seconds for which a checkpoint holds up training, and until it is on the disk."""
    experiment = build(size)
    for _ in zip(range(2), steps(experiment.stages[1], experiment.batch_at, seed=0), strict=False):
        pass
    position = Position(1, 2, STEPS + 2)
    size_in_bytes = take(experiment, position, recipe="bench").bytes
    rows: list[dict[str, object]] = []
    for background in (False, True):
        stalls, wholes = [], []
        for _ in range(5):
            with TemporaryDirectory(dir=Path.cwd()) as place:
                saver = Saver(Path(place) / "c", experiment, "bench", Keeping(background=background), Work().ranks)
                began = time.perf_counter()
                saver.save(position, {}, told=lambda _: None)
                stalls.append(time.perf_counter() - began)
                saver.wait(lambda _: None)
                wholes.append(time.perf_counter() - began)
                saver.close()
        how = f"checkpoint of {size_in_bytes / 2**20:.0f} MiB, {'by a thread' if background else 'at once'}"
        waits = {"training waits, ms": 1000 * median(stalls), "on the disk after, ms": 1000 * median(wholes)}
        rows.append({"saving": how} | waits)
    return rows


def main() -> None:
    """Print the tables."""
    parser = options(__doc__, "scale", clocks=())
    parser.add_argument("--size", default="mini")
    parser.add_argument("--rows", type=int, default=0, help="measure one process of a run whose processes have so many")
    parser.add_argument("--sharded", action="store_true")
    given = parser.parse_args()
    if given.rows:
        measure(given.size, given.rows, sharded=given.sharded)
        return
    steps_taken: list[dict[str, object]] = []
    for name, count, rows, more in (
        ("1 process, 32 rows", 1, 32, ()),
        ("1 process, 16 rows", 1, 16, ()),
        ("2 processes, 16 rows each, networks whole", 2, 16, ()),
        ("2 processes, 16 rows each, networks in parts", 2, 16, ("--sharded",)),
    ):
        found = torchrun_once(count, "--size", given.size, "--rows", str(rows), *more)
        seconds = {f"{stage}, ms a step": 1000 * found[stage] for stage in ("sketch", "refine")}
        steps_taken.append({"processes": name} | seconds)
    tables = {f"Steps, {given.size}": steps_taken, "Checkpoints": saving("compact")}
    sys.stdout.write(publish("scale", tables, given.out))


if __name__ == "__main__":
    main()
