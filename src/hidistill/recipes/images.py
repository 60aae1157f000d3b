"""Any folder of pictures: its own teacher, and the teacher's distillation into a one-step student."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW

from hidistill.codecs import Pixels
from hidistill.data.images import Pictures, read
from hidistill.discriminators.adaptive import QUERY_STD
from hidistill.metrics.classifier import Classifier, accuracy, read_classifier, save_classifier, train_classifier
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.recipes.judging import Jury, jury, read_teacher
from hidistill.recipes.patches import choose_patch
from hidistill.recipes.two_stages import Matching, Plan, distillation, settings
from hidistill.seeds import fold_in, shuffled
from hidistill.share import Drawn
from hidistill.teachers.dit import SIZES, DiT
from hidistill.times import Arcsine, LogitNormal
from hidistill.train.ema import Average
from hidistill.train.experiment import Experiment, Product
from hidistill.train.loop import quickest
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Batch, Split, TimeLaw

FEW = 20
"""Training pictures of a class below which the teacher's recipe says so."""

logger = logging.getLogger(__name__)

SKETCH = {"lr": 1e-3}
"""Sketch in few steps on pictures."""

REFINE = {"lr_fake": 1e-3, "lr_discriminator": 1.5e-3, "feature_gradient": 0.03}
"""Refine in few steps on pictures: a fake score that learns fast, and a faint adversarial gradient."""


def batches(split: Split, *, batch_size: int, seed: int) -> Drawn:
    """Batches of a split as a function of the step; pixels become floats only when they are drawn."""
    images, labels, codec = split.images, split.labels, Pixels()

    def take(rows: Tensor, step: int) -> Batch:
        return Batch(codec.encode(images[rows].float() / 255), labels[rows], step)

    return Drawn(lambda step: shuffled(len(images), batch_size=batch_size, step=step, seed=seed), take)


def flow_matching(
    net: DiT,
    split: Split,
    *,
    steps: int,
    decay_steps: int,
    polish_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    card: dict[str, str],
    notes: tuple[str, ...] = (),
) -> Experiment:
    """The training of a class-conditional teacher by flow matching, with an average and dropped labels.

    First at times that are mostly in the middle, where structure is decided; then, at a lower rate, at times that are
    often near the ends. A one-step student asks its teacher at t = 1, and what leaks through there stays in its images.
    """
    refuse_training(lr=lr, steps=steps, batch_size=batch_size)
    warmup = min(200, steps // 4)
    if polish_steps < 0 or not 0 <= decay_steps <= steps - warmup:
        raise ValueError(
            f"polish_steps={polish_steps}, decay_steps={decay_steps}: polish_steps must not be negative, and of "
            f"{steps} steps the last 0 to {steps - warmup} can be decay_steps"
        )
    rates = WarmupDecay(steps, warmup, decay_steps)
    stages = [regression("teacher", net, LogitNormal(0.0, 1.2), steps=steps, lr=lr, schedule=rates, average=0.999)]
    if polish_steps:
        warmup = min(20, polish_steps // 4)
        rates = WarmupDecay(polish_steps, warmup, polish_steps - warmup)
        stages.append(regression("polish", net, Arcsine(), steps=polish_steps, lr=lr / 2, schedule=rates, average=0.99))
    product = Product("teacher", "teacher.safetensors", "dit", net.config, card, split.classes)
    return Experiment(
        stages=stages,
        modules={"teacher": net},
        batch_at=batches(split, batch_size=batch_size, seed=seed),
        seed=seed,
        precision=quickest(),
        products={stage.name: product for stage in stages},
        extendable=("steps", "decay_steps", "polish_steps", "data"),
        notes=notes,
    )


def refuse_network(*, model: str, size: int | None, patch: int | None) -> None:
    """Refuse a network that cannot be, before pictures are read and enlarged for it."""
    if model not in SIZES:
        raise ValueError(f"model={model!r}: unknown; choose one of {', '.join(SIZES)}")
    if patch is not None and patch < 1:
        raise ValueError(f"patch={patch}: the side of a patch is at least 1 pixel; leave it out to have it chosen")
    if size is not None and size > 0 and patch is None:
        choose_patch(size)


def refuse_training(*, lr: float, **counts: int) -> None:
    """Refuse counts below 1 and a learning rate that is not positive; recipes ask before they read their data."""
    wrong = ", ".join(f"{name}={count}" for name, count in counts.items() if count < 1)
    if wrong:
        raise ValueError(f"{wrong}: a teacher's training needs at least 1; leave it out for the usual number")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr={lr}: a learning rate is a positive number; leave it out for the usual one")


def regression(
    name: str, net: DiT, times: TimeLaw, *, steps: int, lr: float, schedule: WarmupDecay, average: float
) -> Stage:
    """A stage in which a velocity field learns from data."""
    optimizer = AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    objective = FlowMatching(net, times, net.null, drop=0.1 if net.classes else 0.0)
    update = Update(objective, optimizer, schedule=schedule)
    return Stage(name, {"teacher": update}, steps, {"teacher": Average(net, average)})


def scarce(split: Split) -> tuple[str, ...]:
    """A note that names the classes with few pictures, if there are any."""
    counts = torch.bincount(split.labels, minlength=len(split.classes)).tolist()
    few = [f"{name} ({count})" for name, count in zip(split.classes, counts, strict=False) if count < FEW]
    return (f"few training pictures of {', '.join(few)}: too few to learn the class well",) if few else ()


def root_mean_square(split: Split) -> float:
    """Of the encoded pixels, to two digits: what a DiT's preconditioning needs to know of its data."""
    return round(Pixels().encode(split.images[:2000].float() / 255).square().mean().sqrt().item(), 2)


def teacher(
    *,
    images: Path,
    size: int | None = None,
    patch: int | None = None,
    model: str = "slim",
    pixel_channels: int = 16,
    steps: int = 4000,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
) -> Experiment:
    """Train a teacher on a folder of pictures: flow matching, a class per sub-folder or no classes at all.

    Needs: a folder of at least 50 pictures (a few thousand are good); about half an hour on 2 cores at 28 pixels.
    Reaches: what its pictures allow; look at samples before distilling it.

    Args:
        images: folder of pictures; each of its sub-folders is a class.
        size: side in pixels; None chooses it from the pictures.
        patch: side of a patch; None takes the smallest that leaves at most 100 tokens.
        model: name of a DiT's size: mini, slim, tiny, compact, S, B, L or XL.
        pixel_channels: channels of the convolutions around its blocks; 0 is without.
        steps: length of the training; a quarter as many follow, at half the rate and at times near the ends.
        batch_size: pictures per step.
        lr: learning rate of AdamW.
        seed: of weights, data order, noise and dropped labels.
    """
    refuse_training(lr=lr, steps=steps, batch_size=batch_size)
    refuse_network(model=model, size=size, patch=patch)
    pictures = load(images, size)
    side, channels, classes = pictures.choice.size, pictures.choice.channels, len(pictures.classes)
    chosen = patch if patch is not None else choose_patch(side)
    torch.manual_seed(fold_in(seed, "weights"))
    train = pictures.split("train")
    net = DiT(
        image_size=side, channels=channels, classes=classes, patch=chosen, size=model, data_std=root_mean_square(train),
        activation="silu", pixel_channels=pixel_channels,
    )  # fmt: skip
    why = f"patch {chosen}: " + ("asked for" if patch is not None else f"{(side // chosen) ** 2} tokens an image")
    size_of_net = f"model {model}: {sum(p.numel() for p in net.parameters()):,} parameters"
    notes = (*pictures.choice.reasons, *scarce(train), why, size_of_net)
    card = {"data": f"{pictures.facts.count} pictures", "choices": "; ".join(notes)}
    return flow_matching(
        net,
        train,
        steps=steps,
        decay_steps=steps // 4,
        polish_steps=steps // 4,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        card=card,
        notes=notes,
    )


def distill(
    *,
    images: Path,
    teacher: Path,
    sketch_steps: int = 500,
    refine_steps: int = 400,
    batch_size: int = 32,
    guidance: float = 1.5,
    discriminator: Literal["adaptive", "pooled", "convolutional", "per_token", "none"] = "adaptive",
    query_std: float = QUERY_STD,
    matching: Matching = "dmd",
    derivative: Literal["forward", "central"] = "forward",
    trajectory_weight: float = 0.02,
    evaluate_samples: int = 500,
    seed: int = 0,
) -> Experiment:
    """Distill the teacher of a folder of pictures into a one-step student: sketch, then refine, then evaluation.

    Needs: the pictures, and a teacher that images.teacher has trained on them; minutes on 2 cores at 28 pixels.
    Reaches: what its teacher allows.

    Args:
        images: the folder of pictures that the teacher was trained on.
        teacher: run folder of images.teacher, or its models/teacher.safetensors.
        sketch_steps: steps of MeanFlow distillation; 0 leaves the stage out.
        refine_steps: steps of distribution matching; 0 leaves the stage out.
        batch_size: pictures per step.
        guidance: scale of the teacher's classifier-free guidance that is distilled; ignored without classes.
        discriminator: the head on the teacher's features; none is distribution matching alone.
        query_std: size of the adaptive head's queries at the start; 0.02 begins, and for long stays, as an average over
            tokens, 1 weighs them apart at once.
        matching: by what refine matches distributions: dmd with the head; dmd2, whose head reads the fake score's
            features; gan, the head alone; or dmd with a distance of features and no head: energy, energy_tokens,
            sliced, moments, drift.
        derivative: how the sketch takes du/dt: forward mode, or central differences.
        trajectory_weight: of the sketch's loss, kept in refine beside DMD; 0 leaves it out, as does no sketch.
        evaluate_samples: images per row of the final table, at most as many as there are test pictures.
        seed: of everything.
    """
    net = read_teacher(weights_of(teacher))
    pictures = load(images, int(net.config["image_size"]))
    refuse_mismatch(net, pictures, images)
    most = len(pictures.split("test").images)
    plan = Plan(
        sketch_steps=sketch_steps,
        refine_steps=refine_steps,
        batch_size=batch_size,
        guidance=guidance if net.classes else 1.0,
        discriminator=discriminator,
        query_std=query_std,
        matching=matching,
        derivative=derivative,
        trajectory_weight=trajectory_weight,
        evaluate_samples=min(evaluate_samples, most),
        seed=seed,
        sketch=SKETCH,
        refine=REFINE,
    )
    batch_at = batches(pictures.split("train"), batch_size=batch_size, seed=seed)
    judges = folder_jury(pictures, weights_of(teacher).parent)
    fewer = (f"{most} images a row of the final table rather than {evaluate_samples}: there are {most} test pictures",)
    experiment = distillation(net, plan, batch_at=batch_at, judges=judges)
    return replace(experiment, notes=fewer if evaluate_samples > most else ())


def load(folder: Path, size: int | None) -> Pictures:
    """A folder's pictures; read once per process."""
    return read_once(folder.resolve(), size)


@lru_cache(maxsize=1)
def read_once(folder: Path, size: int | None) -> Pictures:
    """What `data.images.read` gives."""
    return read(folder, size=size)


def weights_of(teacher: Path) -> Path:
    """The weights file of a teacher's run folder, or the file itself.

    Raises:
        ValueError: if there is none.
    """
    if not teacher.exists():
        raise ValueError(
            f"teacher {teacher}: there is no such file or folder; give the folder of the teacher's run, or its "
            "weights, a .safetensors file"
        )
    path = teacher / "models" / "teacher.safetensors" if teacher.is_dir() else teacher
    if not path.exists():
        raise ValueError(
            f"teacher {teacher}: this folder has no {path.relative_to(teacher)}; finish its training first"
        )
    return path


def refuse_mismatch(net: DiT, pictures: Pictures, folder: Path) -> None:
    """Refuse pictures that the teacher was not made for."""
    here = (pictures.choice.channels, len(pictures.classes))
    if here != (net.channels, net.classes):
        raise ValueError(
            f"{folder} holds pictures of {here[0]} channels in {here[1]} classes; this teacher knows {net.channels} "
            f"channels and {net.classes} classes: give the folder that it was trained on"
        )


def folder_jury(pictures: Pictures, beside: Path) -> Jury:
    """The judges of a folder; with classes, also a classifier trained on its pictures and kept beside the teacher."""
    train, valid, test = (pictures.split(part) for part in ("train", "valid", "test"))
    classifier: Classifier | None = None
    if pictures.classes:
        path = beside / "classifier.safetensors"
        if not path.exists():
            steps = max(100, min(600, 20 * len(train.images) // 128))
            logger.info(
                "training a classifier on the pictures, the judge of the evaluations: %d steps, once; it stays in %s",
                steps, path,
            )  # fmt: skip
            classifier = train_classifier(train, steps=steps)
            save_classifier(path, classifier, {"test_accuracy": f"{accuracy(classifier, test):.4f}"})
        classifier = read_classifier(path)
    return jury(train, valid, test, classifier, "folder-classifier-64")


def bench(run: Path, arguments: Mapping[str, Any]) -> tuple[Jury, DiT, dict[str, Any]]:
    """What `hidistill evaluate` needs to know of a run of `distill`."""
    del run
    path = weights_of(Path(arguments["teacher"]))
    net, folder = read_teacher(path), Path(arguments["images"])
    pictures = load(folder, int(net.config["image_size"]))
    refuse_mismatch(net, pictures, folder)
    return folder_jury(pictures, path.parent), net, settings(arguments)


RECIPES = (teacher, distill)
