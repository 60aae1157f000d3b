"""Fashion-MNIST over seeds: both stages, the same without a trajectory loss in refine, and refine without sketch.

    python scripts/seeds.py --out runs/seeds

Refine without sketch comes twice: at equal refine steps, and at equal compute. Trains every variant with every seed
(two processes of one thread each, which is what two cores do best), then lets all students and the teacher draw from
the same noise, judged on the test pictures. Taken up again where it stopped. Prints the table of means and sample
standard deviations over the training seeds, and writes it to OUT/table.md beside the evaluations of each seed.
"""

import inspect
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro

from hidistill.codecs import Pixels
from hidistill.evaluate import Contestant, Given, balanced_subset, evaluate
from hidistill.recipes.fashion import GUIDANCE, TEACHER, distill, fashion_jury
from hidistill.recipes.judging import read_student, read_teacher, resumable
from hidistill.recipes.samplers import student_row, teacher_row
from hidistill.scores import Evaluation, markdown, summary, table
from hidistill.train.driver import execute
from hidistill.train.loop import quickest
from hidistill.types import Gallery

Variant = Literal["both-stages", "refine-equal-steps", "refine-equal-compute", "no-trajectory-in-refine"]

COLUMNS = ("name", "nfe", "agreement", "diversity", "high_frequency", "end_distance")


def train(folder: Path, variant: str, seed: int, arguments: dict) -> None:
    """One run without its evaluation; nothing if it is finished."""
    torch.set_num_threads(1)
    path = folder / f"{variant}-{seed}"
    defaults = {name: parameter.default for name, parameter in inspect.signature(distill).parameters.items()}
    complete: dict[str, Any] = defaults | arguments | {"seed": seed}
    experiment = replace(distill(**complete), probe=None, finish=None)
    execute(experiment, path, recipe="fashion.distill", arguments=complete)
    sys.stderr.write(f"trained {path}\n")


def judged(out: Path, names: Sequence[str], seed: int, samples: int, scales: Sequence[float]) -> Evaluation:
    """All students of one training seed, and the teacher, from the same noise whatever the seed."""
    judges, net, precision = fashion_jury(), read_teacher(TEACHER), quickest()
    fixed = [teacher_row(net, scale=scale, steps=50, precision=precision) for scale in scales]
    fixed += [teacher_row(net, scale=GUIDANCE, steps=steps, precision=precision) for steps in (1, 2, 4, 16)]
    shared: list[Contestant | Given] = [
        *fixed,
        Given("real training images", Gallery.of(balanced_subset(judges.train, samples))),
    ]
    rows: list[Contestant | Given] = []
    for name in names:
        models = out / f"{name}-{seed}" / "models"
        for file, steps in (("sketch", (1, 4)), ("student", (1, 2, 4))):
            if (models / f"{file}.safetensors").exists():
                student = read_student(models / f"{file}.safetensors")
                rows += [student_row(f"{name} {file}", student, steps=k, precision=precision) for k in steps]
    done, path = out / "teacher.json", out / f"evaluation-{seed}.json"
    settings = {
        "n": samples, "seed": 0, "codec": Pixels(), "shape": judges.shape, "metrics": judges.metrics(),
        "real": Gallery.of(balanced_subset(judges.test, samples)), "reference": fixed[0].name,
        "features": {space.name: words for space, words in judges.spaces.items()},
    }  # fmt: skip
    base = evaluate(shared, done=resumable(done, samples=samples, seed=0), on_row=lambda e: e.save(done), **settings)
    start = resumable(path, samples=samples, seed=0) or base
    result = evaluate([*shared, *rows], done=start, on_row=lambda e: e.save(path), **settings)
    result.save(path)
    return result


def main(
    *,
    out: Path = Path("runs/seeds"),
    seeds: tuple[int, ...] = (0, 1, 2),
    samples: int = 1000,
    scales: tuple[float, ...] = (GUIDANCE, 1.0, 1.25, 2.0),
    sketch_steps: int = 500,
    refine_steps: int = 400,
    equal_compute_steps: int = 875,
    variants: tuple[Variant, ...] = get_args(Variant),
    processes: int = 2,
) -> None:
    """Train, evaluate, and print the table.

    Args:
        out: folder of all runs.
        seeds: of training; at least two.
        samples: pictures per row.
        scales: guidance scales of the teacher in 50 steps; the first is the one that is distilled.
        sketch_steps: of the variants with both stages.
        refine_steps: of every variant but the one of equal compute.
        equal_compute_steps: refine steps without sketch that take as many products as both stages together:
            500 sketch steps of 6.53 F and 400 refine steps of 12.85 F are 875 of 9.6 F (`benchmarks/flops.py`).
        variants: which to train and judge.
        processes: runs at a time, one thread each.
    """
    both = {"sketch_steps": sketch_steps, "refine_steps": refine_steps}
    settings: dict[Variant, dict] = {
        "both-stages": both,
        "refine-equal-steps": {"sketch_steps": 0, "refine_steps": refine_steps},
        "refine-equal-compute": {"sketch_steps": 0, "refine_steps": equal_compute_steps},
        "no-trajectory-in-refine": {**both, "trajectory_weight": 0.0},
    }
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(train, out, name, seed, settings[name]) for seed in seeds for name in variants]
        for job in jobs:
            job.result()
    evaluations = [judged(out, variants, seed, samples, scales) for seed in seeds]
    spreads = summary(evaluations)
    metrics = [key for key in spreads[0].row.metrics if key.startswith(("fd/", "recall/"))]
    text = markdown(table(spreads, [*COLUMNS[:2], *metrics, *COLUMNS[2:]]))
    (out / "table.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    tyro.cli(main)
