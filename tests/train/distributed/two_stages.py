"""A small distillation of both stages, with every role of it."""

from copy import deepcopy

import torch

from hidistill.derivative import Central, Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.recipes.stages import refine, sketch
from hidistill.seeds import fold_in
from hidistill.teachers.dit import DiT, Size
from hidistill.train.experiment import Experiment, Product
from hidistill.types import Batch

ROWS = 16


def batch_at(step):
    generator = torch.Generator().manual_seed(fold_in(0, "data", step))
    x = torch.randn(ROWS, 1, 8, 8, generator=generator)
    return Batch(x, torch.randint(4, (ROWS,), generator=generator))


def build(steps=20, derivative="forward", eps=1e-3, adversarial=True):
    """Both stages; Adam's eps keeps it from turning rounding into steps of full length, as 1e-8 does."""
    torch.manual_seed(5)
    teacher = DiT(image_size=8, channels=1, classes=4, patch=2, size=Size(32, 2, 2), data_std=1.0)
    for parameter in teacher.parameters():  # a DiT at its start answers with zeros
        parameter.data += 0.05 * torch.randn_like(parameter)
    teacher.eval().requires_grad_(False)
    student, fake = teacher.student(), deepcopy(teacher)
    head = Adaptive(teacher.feature_channels, width=16) if adversarial else None
    guided = Guided(teacher, scale=1.5)
    taken = {"forward": Forward(), "central": Central()}[derivative]
    first = sketch(student, guided, steps=steps, derivative=taken)
    second = refine(
        student, guided, fake, head, steps=steps, penalty=0.1, starts=(1.0, 0.5),
        trajectory=first.updates["student"].objective,
    )  # fmt: skip
    for update in (*first.updates.values(), *second.updates.values()):
        for group in update.optimizer.param_groups:
            group["eps"] = eps
    product = Product("student", "student.safetensors", "dit-flow-map", student.config)
    return Experiment(
        stages=[first, second],
        modules={"student": student, "fake": fake} | ({"discriminator": head} if head is not None else {}),
        batch_at=batch_at,
        seed=3,
        products={"refine": product},
        frozen={"teacher": teacher},
    )
