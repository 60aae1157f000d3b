"""Fashion-MNIST, 28 x 28 gray, ten classes: a teacher, and its distillation into a one-step student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from hidistill.data import fashion
from hidistill.discriminators.adaptive import QUERY_STD
from hidistill.metrics.classifier import read_classifier
from hidistill.recipes.images import REFINE, SKETCH, batches, flow_matching, refuse_training, root_mean_square
from hidistill.recipes.judging import Jury, jury, read_teacher
from hidistill.recipes.two_stages import Matching, Plan, distillation, settings
from hidistill.seeds import fold_in
from hidistill.teachers.dit import DiT
from hidistill.train.experiment import Experiment

TEACHER = Path(__file__).parent / "assets" / "fashion-teacher.safetensors"
GUIDANCE = 1.5
"""The guidance scale that is distilled: the usual one (arXiv 2212.09748); 2 is no better on validation images."""


def teacher(
    *,
    steps: int = 3800,
    decay_steps: int = 1400,
    polish_steps: int = 700,
    batch_size: int = 128,
    lr: float = 2e-3,
    size: str = "slim",
    pixel_channels: int = 16,
    data: Path | None = None,
    seed: int = 0,
) -> Experiment:
    """Train the Fashion-MNIST teacher: a class-conditional DiT by flow matching on the 60,000 training images.

    Needs: the full set (`hidistill data fashion-mnist`), about 40 minutes on 2 cores.
    Reaches: see the model card beside the bundled weights.

    Args:
        steps: length of the first stage.
        decay_steps: the last of these steps, over which the learning rate falls to zero.
        polish_steps: further steps at times near the ends.
        batch_size: images per step.
        lr: learning rate of AdamW.
        size: name of a DiT's size: mini, slim, tiny, compact, S, B, L or XL.
        pixel_channels: channels of the convolutions around its blocks; 0 is without.
        data: folder of the four idx.gz files; None is where `hidistill data fashion-mnist` puts them.
        seed: of weights, data order, noise and dropped labels.
    """
    refuse_training(lr=lr, steps=steps, batch_size=batch_size)
    split = fashion.full("train", data)
    torch.manual_seed(fold_in(seed, "weights"))
    net = DiT(
        image_size=28, channels=1, classes=10, patch=4, size=size, data_std=root_mean_square(split),
        activation="silu", pixel_channels=pixel_channels,
    )  # fmt: skip
    return flow_matching(
        net,
        split,
        steps=steps,
        decay_steps=decay_steps,
        polish_steps=polish_steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        card={"data": "Fashion-MNIST, 60,000 training images (MIT)", "license": "Apache-2.0"},
    )


def distill(
    *,
    sketch_steps: int = 500,
    refine_steps: int = 400,
    batch_size: int = 32,
    guidance: float = GUIDANCE,
    discriminator: Literal["adaptive", "pooled", "convolutional", "per_token", "none"] = "adaptive",
    query_std: float = QUERY_STD,
    matching: Matching = "dmd",
    derivative: Literal["forward", "central"] = "forward",
    trajectory_weight: float = 0.02,
    evaluate_samples: int = 500,
    teacher_weights: Path | None = None,
    seed: int = 0,
) -> Experiment:
    """Distill the bundled Fashion-MNIST teacher into a one-step student: sketch, then refine, then evaluation.

    Needs: nothing beyond the package; at most 10 minutes on 2 cores.
    Reaches: the table in the README.

    Args:
        sketch_steps: steps of MeanFlow distillation; 0 leaves the stage out.
        refine_steps: steps of distribution matching; 0 leaves the stage out.
        batch_size: images per step.
        guidance: scale of the teacher's classifier-free guidance that is distilled; 1 is none.
        discriminator: the head on the teacher's features; none is distribution matching alone.
        query_std: size of the adaptive head's queries at the start; 0.02 begins, and for long stays, as an average over
            tokens, 1 weighs them apart at once.
        matching: by what refine matches distributions: dmd with the head; dmd2, whose head reads the fake score's
            features; gan, the head alone; or dmd with a distance of features and no head: energy, energy_tokens,
            sliced, moments, drift.
        derivative: how the sketch takes du/dt: forward mode, or central differences.
        trajectory_weight: of the sketch's loss, kept in refine beside DMD; 0 leaves it out, as does no sketch.
        evaluate_samples: images per row of the final table.
        teacher_weights: another teacher's file; None is the bundled one.
        seed: of everything.
    """
    net = read_teacher(teacher_weights or TEACHER)
    plan = Plan(
        sketch_steps=sketch_steps,
        refine_steps=refine_steps,
        batch_size=batch_size,
        guidance=guidance,
        discriminator=discriminator,
        query_std=query_std,
        matching=matching,
        derivative=derivative,
        trajectory_weight=trajectory_weight,
        evaluate_samples=evaluate_samples,
        seed=seed,
        sketch=SKETCH,
        refine=REFINE,
    )
    batch_at = batches(fashion.bundled("train"), batch_size=batch_size, seed=seed)
    return distillation(net, plan, batch_at=batch_at, judges=fashion_jury())


def fashion_jury() -> Jury:
    """The bundled judges: 2,000 held-out images, the last 1,000 bundled training images for choosing."""
    parts = (fashion.bundled("train"), fashion.bundled("valid"), fashion.bundled("test"))
    return jury(*parts, read_classifier(), "fashion-classifier-64")


def bench(run: Path, arguments: Mapping[str, Any]) -> tuple[Jury, DiT, dict[str, Any]]:
    """What `hidistill evaluate` needs to know of a run of `distill`."""
    del run
    given = arguments.get("teacher_weights")
    return fashion_jury(), read_teacher(Path(given) if given else TEACHER), settings(arguments)


RECIPES = (teacher, distill)
