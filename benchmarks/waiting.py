"""The share of a training step that is spent waiting for its batch: pictures in memory, and latents of a cache.

    python benchmarks/waiting.py

Batches of the demo's pictures against a sketch step of the demo's networks; batches of a cache's latents (3 x 32 x 32,
mapped from disk, 64 classes) against one of DiT-tiny on them. Medians; both in seconds of this process.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from measuring.counting import moving
from measuring.results import options, publish
from measuring.timing import Spread, seconds

from hidistill.codecs import Pixels
from hidistill.data.cache import Cache, Plan, write
from hidistill.data.fashion import bundled
from hidistill.derivative import Forward
from hidistill.guidance import Guided
from hidistill.recipes.fashion import TEACHER, batches
from hidistill.recipes.judging import read_teacher
from hidistill.recipes.stages import sketch
from hidistill.teachers.dit import DiT
from hidistill.types import Batch, Record, Source

COUNT, BATCH, SIDE, CLASSES = 2000, 32, 32, 64


def source() -> Source:
    """Pictures that are numbers."""

    def records(start: int) -> Iterator[Record]:
        for index in range(start, COUNT):
            torch.manual_seed(index)
            pixels = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)
            yield Record(f"{index:05d}.png", pixels, index % CLASSES)

    return Source(records, COUNT, "numbers", tuple(str(i) for i in range(CLASSES)))


def row(name: str, teacher: DiT, batch_at: Callable[[int], Batch], *, rounds: int, clock: str) -> dict[str, object]:
    """Waiting beside working."""
    student = teacher.requires_grad_(False).student()
    update = sketch(student, Guided(teacher, 1.5), steps=10, derivative=Forward()).updates["student"]
    batch = batch_at(0)
    step = moving(update.parameters(), lambda: update.objective(batch).value.mean())
    step()
    waits, works = [], []
    for index in range(rounds):
        waits.append(seconds(lambda index=index: batch_at(index + 1), clock))
        works.append(seconds(step, clock))
    wait, work = Spread.of(waits), Spread.of(works)
    share = wait.median / (wait.median + work.median)
    return {"batches": name, "wait, s": wait.text(), "step, s": work.text(), "share of waiting, %": 100 * share}


def main() -> None:
    """Measure both."""
    parser = options(__doc__, "waiting")
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    timing = {"rounds": chosen.rounds, "clock": chosen.clock}
    demo = batches(bundled("train"), batch_size=BATCH, seed=0)
    rows = [row("the demo's pictures", read_teacher(TEACHER), demo, **timing)]
    with tempfile.TemporaryDirectory() as place:
        plan = Plan(codec=Pixels(), codec_digest="pixels", prompts=None, size=SIDE, batch_size=BATCH, rows=500)
        write(Path(place), source, plan)
        cache = Cache.open(Path(place))
        net = DiT(image_size=SIDE, channels=3, classes=CLASSES, size="tiny", patch=4)
        rows.append(row("a cache's latents", net, partial(cache.batch_at, batch_size=BATCH, seed=0), **timing))
    sys.stdout.write(publish("waiting", {"Waiting for data": rows}, chosen.out))


if __name__ == "__main__":
    main()
