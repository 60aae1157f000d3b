"""Distillations of networks of any size, on paper: for `hidistill doctor`, to be planned and not to be run."""

from copy import deepcopy

import torch

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.recipes.stages import refine, sketch
from hidistill.teachers.dit import SIZES, DiT, Size
from hidistill.train.experiment import Experiment
from hidistill.types import Batch

IMAGENET = 1_281_167
"""Training images of ImageNet-1k, of which an epoch is made."""


def on_paper(
    *,
    size: str = "XL",
    image_size: int = 32,
    channels: int = 4,
    classes: int = 1000,
    patch: int = 2,
    batch_size: int = 256,
    sketch_steps: int = 300_000,
    refine_steps: int = 200_000,
    every: int = 5,
    instantaneous: float = 0.75,
    guidance: float = 1.5,
    precision: str = "bfloat16",
    reuse: bool = False,
) -> Experiment:
    """Both stages on a DiT that has shapes and no numbers: what would such a run take?

    Needs: nothing; `hidistill doctor hidistill.recipes.sizes:on_paper --machine H100 --processes 8` plans it.
    Reaches: nothing, for it cannot be run.

    Args:
        size: name of a DiT's size: mini, slim, tiny, compact, S, B, L or XL; or width x depth x heads, as 1152x28x16.
        image_size: side of the images or latents; 32 for 256 pixels behind Stable Diffusion's autoencoder.
        channels: of the images or latents.
        classes: number of classes.
        patch: side of a patch.
        batch_size: images of a step, over all processes.
        sketch_steps: length of the first stage; 300,000 of 256 images are 60 epochs of ImageNet.
        refine_steps: length of the second stage, in updates of the critics.
        every: the student moves on each such step of refine.
        instantaneous: share of the sketch's rows with r = t.
        guidance: scale of the teacher's guidance; 1 is none and saves a pass.
        precision: float32 or bfloat16.
        reuse: whether critics take what the student's update of the same step has drawn.
    """
    with torch.device("meta"):
        teacher = DiT(image_size=image_size, channels=channels, classes=classes, patch=patch, size=size_of(size))
        teacher.requires_grad_(False)
        student, fake = teacher.student(), deepcopy(teacher)
        head = Adaptive(teacher.feature_channels)
        guided = Guided(teacher, guidance)
        first = sketch(student, guided, steps=sketch_steps, derivative=Forward(), instantaneous=instantaneous)
        second = refine(student, guided, fake, head, steps=refine_steps, every=every, reuse=reuse)

    def batch_at(step: int) -> Batch:
        """The shape of a batch."""
        side = (batch_size, channels, image_size, image_size)
        return Batch(torch.zeros(1).expand(side), torch.zeros(batch_size, dtype=torch.long), step)

    return Experiment(
        stages=[first, second],
        modules={"student": student, "fake": fake, "discriminator": head},
        batch_at=batch_at,
        seed=0,
        precision=precision,
        frozen={"teacher": teacher},
    )


def size_of(words: str) -> Size:
    """The size that a name or three numbers mean.

    Raises:
        ValueError: if they mean none.
    """
    parts = words.split("x")
    if words in SIZES:
        return SIZES[words]
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"size={words!r} is none; give {', '.join(SIZES)}, or width x depth x heads as 1152x28x16")
    return Size(*map(int, parts))
