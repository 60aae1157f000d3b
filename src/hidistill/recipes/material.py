"""What a distillation from a cache learns from and is judged by: latents and conditions, or a teacher's own samples."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hidistill.data.cache import Cache
from hidistill.data.cache.reading import lines_of
from hidistill.evaluate import BATCH, seeds_of
from hidistill.files import whole
from hidistill.foreign.folder import Folder
from hidistill.foreign.text import text_digest
from hidistill.metrics.classifier import Classifier, accuracy, read_classifier, save_classifier, train_classifier
from hidistill.metrics.efficientnet import EfficientNetLite0
from hidistill.metrics.prompts import PromptAgreement, Ridge, choose
from hidistill.path import rows_of
from hidistill.recipes.judging import Jury, jury
from hidistill.recipes.samplers import teacher_row
from hidistill.recipes.teachers import Loaded, shape_of
from hidistill.seeds import fold_in, normal, shuffled
from hidistill.share import Drawn
from hidistill.train.loop import quickest
from hidistill.types import Batch, Cond, Metric, Split

MOST_DECODED = 2000
"""Training pictures that the judges see, decoded from their latents."""
SAMPLED = 2048
"""Prompts of the training part that a teacher draws for, where there are no pictures."""
DRAWING_STEPS = 20

logger = logging.getLogger(__name__)


class Held(NamedTuple):
    """A held-out part: pictures, what they were asked for with, and the words of it."""

    split: Split
    cond: Cond
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """Batches, and pictures to judge by.

    Args:
        batch_at: latents and conditions as a function of the step.
        train: training pictures, decoded from their latents.
        train_cond: their conditions.
        valid: pictures for the short evaluations.
        test: pictures on which nothing is chosen.
        shape: of one sample.
        notes: what a person should know.
    """

    batch_at: Callable[[int], Batch]
    train: Split
    train_cond: Cond
    valid: Held
    test: Held
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()


def refuse_unfit(loaded: Loaded, stored: Cache) -> None:
    """Refuse a cache that was made for another teacher, and give the teacher the cache's empty prompt.

    Raises:
        CacheError: if the autoencoder or the text encoders are others.
        ValueError: if conditions are of another kind, latents of another shape, or there are too many classes.
    """
    network = loaded.network
    wanted = "text" if network.family.texts else "label"
    if stored.condition != wanted:
        raise ValueError(
            f"{stored.root} holds {stored.condition}s as conditions; a {network.family.name} needs {wanted}s: make a "
            "cache for this teacher"
        )
    texts = None
    if network.family.texts and stored.made_from["text"]:
        assert isinstance(loaded.folder, Folder)
        texts = text_digest(loaded.folder)
    stored.check(codec_digest=loaded.codec_digest if stored.has_latents else None, text_digest=texts)
    shape = shape_of(network)
    if stored.has_latents and shape is not None and stored.shape != shape:
        raise ValueError(
            f"{stored.root} holds latents of shape {stored.shape}; this teacher's are {shape}: make a cache with "
            "pictures of its size"
        )
    if not stored.has_latents and shape is None:
        raise ValueError(
            f"{stored.root} holds prompts alone, and this {network.family.name} does not say for which size it was "
            "made: make a cache from pictures with captions"
        )
    if len(stored.classes) > max(network.classes, 1) and not network.family.texts:
        raise ValueError(
            f"{stored.root} has {len(stored.classes)} classes and this teacher knows {network.classes}; give the "
            "pictures that it was trained on"
        )
    if network.family.texts:
        network.set_null(stored.null)


def from_cache(loaded: Loaded, stored: Cache, *, batch_size: int, seed: int) -> Material:
    """A cache with latents."""
    batch_at = stored.drawn(batch_size=batch_size, seed=seed)

    def held(part: Literal["valid", "test"]) -> Held:
        kept = stored.split(part)
        return Held(kept.split, kept.cond, tuple(kept.captions))

    count = min(MOST_DECODED, stored.count("train"))
    some = stored.batch_at(0, batch_size=count, seed=fold_in(0, "judges"))
    train = split_of(decoded(loaded, some.x), some.cond, stored)
    return Material(batch_at, train, some.cond, held("valid"), held("test"), tuple(some.x.shape[1:]))


def from_prompts(loaded: Loaded, stored: Cache, *, batch_size: int, guidance: float, seed: int) -> Material:
    """A cache of prompts alone: the teacher draws what stands for pictures, once; it stays in the cache's folder."""
    asked = [loaded.digest, dict(loaded.network.net.config), dict(loaded.scheduler), loaded.embedded, guidance]  # type: ignore[arg-type]
    told = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
    name = f"drawn-{told}-{DRAWING_STEPS}.safetensors"
    path = stored.root / name
    counts = {
        part: min(stored.count(part), SAMPLED if part == "train" else SAMPLED // 4)
        for part in ("train", "valid", "test")
    }
    conds = {part: stored.conditions(part, torch.arange(count)) for part, count in counts.items()}
    if not path.exists():
        total = sum(counts.values())
        logger.info(
            "no pictures in %s: the teacher draws %d in %d steps at scale %g, once; they stay in %s",
            stored.root, total, DRAWING_STEPS, guidance, path,
        )  # fmt: skip
        drawn = {
            part: latents_of(loaded, cond, count=counts[part], guidance=guidance, part=part)
            for part, cond in conds.items()
        }
        with whole(path) as partial:
            save_file(drawn, partial)
    x = load_file(path)

    batch_at = Drawn(
        lambda step: shuffled(counts["train"], batch_size=batch_size, step=step, seed=seed),
        lambda rows, step: Batch(x["train"][rows], rows_of(conds["train"], rows), step),
    )

    def held(part: str) -> Held:
        lines = [line for shard in stored.shards[part] for line in lines_of(shard.lines)][: counts[part]]
        captions = tuple(line.get("caption", "") for line in lines)
        return Held(split_of(decoded(loaded, x[part]), conds[part], stored), conds[part], captions)

    count = min(MOST_DECODED, counts["train"])
    cond = rows_of(conds["train"], slice(0, count))
    train = split_of(decoded(loaded, x["train"][:count]), cond, stored)
    notes = (
        f"no pictures: {counts['train']} samples of the teacher itself, in {DRAWING_STEPS} steps, are the data of both "
        "stages, the discriminator's real pictures and what the table compares with",
    )
    return Material(batch_at, train, cond, held("valid"), held("test"), tuple(x["train"].shape[1:]), notes)


@torch.no_grad()
def latents_of(loaded: Loaded, cond: Cond, *, count: int, guidance: float, part: str) -> Tensor:
    """Samples of the guided teacher, one per condition."""
    row = teacher_row(loaded.network, scale=guidance, steps=DRAWING_STEPS, precision=quickest())
    shape, seeds = shape_of(loaded.network), seeds_of(count, fold_in(0, "drawn", part))
    assert shape is not None
    found = []
    for start in range(0, count, BATCH):
        rows = slice(start, start + BATCH)
        found.append(row.sample(normal(seeds[rows], shape), rows_of(cond, rows)))
    return torch.cat(found)


@torch.no_grad()
def decoded(loaded: Loaded, x: Tensor) -> Tensor:
    """Latents as uint8 pictures."""
    return torch.cat([(255 * loaded.codec.decode(rows)).round().to(torch.uint8) for rows in x.split(64)])


def split_of(images: Tensor, cond: Cond, stored: Cache) -> Split:
    """Pictures with their labels, where conditions are labels and have names."""
    labels = cond if isinstance(cond, Tensor) and stored.classes else torch.zeros(len(images), dtype=torch.long)
    return Split(images, labels, stored.classes)


def judges_of(loaded: Loaded, material: Material, *, classifier: Path | None, beside: Path) -> Jury:
    """Who judges: Fréchet distances; with classes a classifier, with prompts their agreement.

    Args:
        loaded: the teacher.
        material: the pictures.
        classifier: weights of a classifier of these classes; None trains one, once, and keeps it beside the cache.
        beside: the cache's folder.
    """
    test, valid = material.test, material.valid
    judge: Classifier | None = None
    if test.split.classes:
        judge = classifier_of(material, classifier, beside)
    found = jury(
        material.train, valid.split, test.split, judge, "cache-classifier-64" if classifier is None else classifier.stem
    )
    asked = {"valid": valid.cond, "test": test.cond} if isinstance(test.cond, Mapping) else {}
    extra: tuple[Metric, ...] = (prompt_judge(material),) if asked else ()
    return Jury(
        test.split, material.train, valid.split, judge, found.spaces,
        codec=loaded.codec, sample_shape=material.shape, asked=asked, extra=extra,
        captions=test.captions if asked else (),
    )  # fmt: skip


def classifier_of(material: Material, given: Path | None, beside: Path) -> Classifier:
    """The classifier that was given, or one trained on the training pictures."""
    path = given if given is not None else beside / "classifier.safetensors"
    if given is None and not path.exists():
        steps = max(100, min(600, 20 * len(material.train.images) // 128))
        logger.info(
            "training a classifier on the cache's pictures, which judges: %d steps, once; it stays in %s",
            steps,
            path,
        )
        trained = train_classifier(material.train, steps=steps)
        save_classifier(path, trained, {"test_accuracy": f"{accuracy(trained, material.test.split):.4f}"})
    return read_classifier(path)


def prompt_judge(material: Material) -> PromptAgreement:
    """Agreement with prompts, learned from the training pictures and their captions."""
    space = EfficientNetLite0()
    train, valid = (space(split.images.float() / 255) for split in (material.train, material.valid.split))
    words, own = sentence(material.train_cond), sentence(material.valid.cond)
    penalty = choose(train, words, valid, own)
    return PromptAgreement(space, Ridge.fit(train, words, penalty), sentence(material.test.cond), penalty)


def sentence(cond: Cond) -> Tensor:
    """One embedding per prompt: the mean over its tokens that count."""
    assert isinstance(cond, Mapping)
    tokens = cond["text"].double()
    if "mask" not in cond:
        return tokens.mean(1)
    mask = cond["mask"].double()[:, :, None]
    return (tokens * mask).sum(1) / mask.sum(1).clamp(min=1)
