"""Handwritten digits of 8 x 8 pixels: a teacher and both stages in minutes, judged by numbers that can fail.

hidistill train digits.teacher --out TEACHER
hidistill train digits.smoke --teacher TEACHER --out RUN
python -m hidistill.recipes.digits RUN
"""

import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from hidistill.data.digits import digits
from hidistill.metrics.classifier import Classifier, train_classifier
from hidistill.recipes.images import batches, flow_matching, refuse_training, root_mean_square, weights_of
from hidistill.recipes.judging import Jury, jury, read_teacher
from hidistill.recipes.two_stages import Plan, distillation, settings
from hidistill.scores import Evaluation
from hidistill.seeds import fold_in
from hidistill.teachers.dit import DiT, Size
from hidistill.train.experiment import Experiment

SPACE = "digits-classifier-64"
CRITERIA = {
    "agreement": (0.90, 1.01),
    "high_frequency": (0.75, 1.30),
    f"recall/{SPACE}": (0.35, 1.01),
}
"""What the one-step student must reach: lowest and highest allowed."""
LARGEST_SHARE = 0.8
"""The student's Fréchet distance in one step must be below this share of the sketch's."""


def teacher(*, steps: int = 1200, batch_size: int = 64, lr: float = 2e-3, seed: int = 0) -> Experiment:
    """Train a teacher on scikit-learn's digits: 1,080 pictures of 8 x 8 pixels in ten classes.

    Needs: scikit-learn; about two minutes on 2 cores.
    Reaches: class agreement above 0.95 at guidance 1.5.

    Args:
        steps: length of the training; a third as many follow, at half the rate and at times near the ends.
        batch_size: pictures per step.
        lr: learning rate of AdamW.
        seed: of weights, data order, noise and dropped labels.
    """
    refuse_training(lr=lr, steps=steps, batch_size=batch_size)
    torch.manual_seed(fold_in(seed, "weights"))
    split = digits("train")
    net = DiT(image_size=8, channels=1, classes=10, patch=2, size=Size(96, 4, 3), data_std=root_mean_square(split))
    return flow_matching(
        net,
        split,
        steps=steps,
        decay_steps=steps // 3,
        polish_steps=steps // 3,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        card={"data": "digits of scikit-learn, three fifths of them"},
    )


def smoke(
    *,
    teacher: Path,
    sketch_steps: int = 250,
    refine_steps: int = 160,
    evaluate_samples: int = 300,
    seed: int = 0,
) -> Experiment:
    """Distill the digits teacher into a one-step student; small enough to be run at every change.

    Needs: a run of digits.teacher; about two minutes on 2 cores.
    Reaches: the criteria that `python -m hidistill.recipes.digits RUN` checks.

    Args:
        teacher: run folder of digits.teacher, or its models/teacher.safetensors.
        sketch_steps: steps of MeanFlow distillation.
        refine_steps: steps of distribution matching.
        evaluate_samples: images per row of the final table.
        seed: of everything.
    """
    plan = Plan(
        sketch_steps=sketch_steps,
        refine_steps=refine_steps,
        batch_size=64,
        guidance=1.5,
        discriminator="adaptive",
        derivative="forward",
        trajectory_weight=0.02,
        evaluate_samples=evaluate_samples,
        seed=seed,
        scales=(),
        teacher_steps=(),
    )
    batch_at = batches(digits("train"), batch_size=64, seed=seed)
    return distillation(read_teacher(weights_of(teacher)), plan, batch_at=batch_at, judges=digits_jury())


@lru_cache(maxsize=1)
def classifier() -> Classifier:
    """The judge of digits, trained afresh in seconds."""
    return train_classifier(digits("train"), steps=300, shift=1)


def digits_jury() -> Jury:
    """The digits' judges."""
    return jury(digits("train"), digits("valid"), digits("test"), classifier(), SPACE)


def bench(run: Path, arguments: Mapping[str, Any]) -> tuple[Jury, DiT, dict[str, Any]]:
    """What `hidistill evaluate` needs to know of a run of `smoke`."""
    del run
    return digits_jury(), read_teacher(weights_of(Path(arguments["teacher"]))), settings({"guidance": 1.5})


def verdict(evaluation: Evaluation) -> list[str]:
    """What a run's one-step student misses, in words; empty if nothing."""
    rows = {row.name: row.metrics for row in evaluation.rows}
    student, sketch = rows["student, 1 step"], rows["sketch, 1 step"]
    missed = [
        f"{name} = {student[name]:.3f}, allowed is {low} to {high}"
        for name, (low, high) in CRITERIA.items()
        if not low <= student[name] <= high
    ]
    distance, limit = student[f"fd/{SPACE}"], LARGEST_SHARE * sketch[f"fd/{SPACE}"]
    return missed + ([] if distance <= limit else [f"fd/{SPACE} = {distance:.3f}, at most {limit:.3f} is allowed"])


RECIPES = (teacher, smoke)

if __name__ == "__main__":
    missed = verdict(Evaluation.load(Path(sys.argv[1]) / "evaluation.json"))
    sys.stdout.write("\n".join(missed or ["the one-step student meets every criterion"]) + "\n")
    sys.exit(1 if missed else 0)
