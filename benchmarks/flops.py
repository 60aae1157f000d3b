"""What each step costs, in forwards F of the student: products counted, so the machine does not matter.

python benchmarks/flops.py
"""

import sys
from copy import deepcopy

import torch
from measuring.counting import flops, moving
from measuring.results import options, publish

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.recipes.stages import refine, sketch
from hidistill.teachers.dit import DiT
from hidistill.train.stage import Update
from hidistill.types import Batch

BATCH = 8
COLUMNS = (
    "sketch, 25 % r < t",
    "sketch, 75 % r < t",
    "refine, student",
    "refine, student with trajectory",
    "refine, critics",
)


def spent(update: Update, batch: Batch) -> int:
    """Products of one update, where only what it moves has a gradient."""
    return flops(moving(update.parameters(), lambda: update.objective(batch).value.mean()))


def costs(size: str, pixel_channels: int = 0) -> dict[str, object]:
    """The line of one size."""
    teacher = DiT(image_size=28, channels=1, classes=10, size=size, pixel_channels=pixel_channels)
    teacher.requires_grad_(False)
    student, fake = teacher.student().requires_grad_(False), deepcopy(teacher)
    head = Adaptive(teacher.feature_channels).requires_grad_(False)
    batch, t = Batch(torch.randn(BATCH, 1, 28, 28), torch.arange(BATCH)), torch.rand(BATCH)
    f = flops(lambda: student.mean_velocity(batch.x, t=t, r=0.5 * t, cond=batch.cond))
    guided = Guided(teacher, scale=1.5)
    stages = [sketch(student, guided, steps=10, derivative=Forward(), instantaneous=share) for share in (0.75, 0.25)]
    kept = stages[-1].updates["student"].objective
    stages.append(refine(student, guided, fake, head, steps=10))
    stages.append(refine(student, guided, fake, head, steps=10, trajectory=kept))
    updates = [*(stage.updates["student"] for stage in stages), stages[-1].updates["critics"]]
    name = f"{size}, {pixel_channels} pixel channels" if pixel_channels else size
    counted = {column: spent(update, batch) / f for column, update in zip(COLUMNS, updates, strict=True)}
    return {"size": name, "F, GFLOP an image": f / BATCH / 1e9, **counted}


if __name__ == "__main__":
    chosen = options(__doc__, "flops", clocks=()).parse_args()
    networks = (("mini", 0), ("slim", 16), ("tiny", 0), ("compact", 0), ("S", 0))
    rows = [costs(*network) for network in networks]
    sys.stdout.write(publish("flops", {"Products of a step, in forwards F of the student": rows}, chosen.out))
