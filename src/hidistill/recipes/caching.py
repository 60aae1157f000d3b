"""Caches of latents and conditions: joins a source of pictures or prompts with a teacher's own encoders."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from hidistill.codecs import Autoencoder
from hidistill.data import captioned, fashion, hub, prompts, shards
from hidistill.data.cache import Plan, Progress, Summary, write
from hidistill.foreign.folder import Folder, build
from hidistill.foreign.network import Family
from hidistill.foreign.text import Longer, Prompts, prompt_encoder
from hidistill.pictures import Broken
from hidistill.recipes.originals import Checkpoint, Where, parts_at
from hidistill.recipes.pairing import names_of, paired, renumbered
from hidistill.recipes.teachers import codec_at, part_of
from hidistill.teachers.original import Kind
from hidistill.types import Source

logger = logging.getLogger(__name__)

HUB = "datasets:"
FASHION = "fashion-mnist"
"""The bundled part of Fashion-MNIST, as a source."""
SPLIT = re.compile(r"(?P<name>.+?)(:(?P<split>\w+(\[[^\]]*\])?))?")
"""A dataset's name, and behind a colon a split or a slice of one."""


@dataclass(frozen=True)
class Made:
    """What was made.

    Args:
        summary: of the cache.
        size: side of the pictures in pixels; 0 where there are none.
        words: where conditions and latents come from, in words.
    """

    summary: Summary
    size: int
    words: str


def write_cache(
    *,
    teacher: Path,
    images: str,
    out: Path,
    size: int | None = None,
    workers: int = 1,
    broken: Broken = "refuse",
    longer: Longer = "refuse",
    length: int | None = None,
    instruction: bool = True,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    batch_size: int = 16,
    device: str = "cpu",
    kind: Kind | None = None,
    autoencoder: Where | None = None,
    allow_pickle: bool = False,
    tell: Callable[[Progress], object] | None = None,
) -> Made:
    """Encode pictures and captions as a teacher sees them; the same call again goes on where it stopped.

    Args:
        teacher: folder of a diffusers pipeline, or a checkpoint of DiT or SiT; nothing is written into it.
        images: a folder of pictures, perhaps of parts train, valid and test; `datasets:NAME` or `datasets:NAME:SPLIT`;
            tar files such as `data/{000..012}.tar`; prompts alone in a .txt or .jsonl file; or `fashion-mnist`.
        out: folder of the cache.
        size: side of the pictures in pixels; None is the teacher's.
        workers: 1, whose thread decodes a batch ahead, or 2 to decode pictures in a second process.
        broken: whether broken pictures end the run, or are left out and listed.
        longer: whether captions that are longer than the text encoders take end the run, or are cut.
        length: tokens that a prompt is filled up to; None is the pipeline's default. Where the network is given a mask,
            fewer change nothing but what the cache weighs.
        instruction: whether SANA's lines stand before each prompt, as its pipeline does by default.
        dtype: in which latents and conditions are stored.
        batch_size: pictures that are encoded at a time; another one may change last bits.
        device: where encoders run, e.g. cuda.
        kind: which repository's a checkpoint is, dit or sit.
        autoencoder: of a checkpoint: its folder, or pixels if there is none.
        allow_pickle: whether weights in a pickle may be read, tensors alone.
        tell: is told how far it is.

    Raises:
        FolderError: if the teacher's folder is not known, or lacks parts.
        CacheError: if the cache was begun with other arguments, or is being written.
        OSError: if the disk is full; what was written stays usable.
        ValueError: if the source does not fit the teacher: no captions, no classes, wrong sizes.
        WeightsError: if a checkpoint is damaged, or holds another network.
    """
    folder = parts_at(teacher, kind=kind, autoencoder=autoencoder, allow_pickle=allow_pickle)
    part, family = part_of(folder)
    config = folder.config(part)
    alone = images.endswith(prompts.ENDINGS)
    codec = None if alone else codec_at(folder)
    if isinstance(codec, Autoencoder):
        codec.module.to(device)
    side = 0 if codec is None else side_of(config, size, codec.factor, where=str(folder.place(part)))
    read = reader(images, size=side, broken=broken)
    source = read()
    classes = fitting(source, family, config, alone=alone, where=str(folder.place(part)))
    notes: tuple[str, ...] = ()
    if classes and source.classes:
        labels, note = paired(source.classes, names_of(folder.index), classes=classes)
        read, notes = partial(renumbered, read, labels), (note,) if note else ()
    encoder = None
    if family.texts:
        assert isinstance(folder, Folder)
        encoder = encoder_of(folder, longer, length, instruction, device)
    for note in (*source.notes, *notes, *(encoder.notes if encoder is not None else ())):
        logger.info(note)
    plan = Plan(
        codec=codec,
        codec_digest="" if codec is None else codec.digest,
        prompts=encoder,
        size=side,
        channels=codec.image_channels if isinstance(codec, Autoencoder) else int(config.get("in_channels", 3)),
        classes=classes,
        teacher={"pipeline": folder.pipeline, "family": family.name},
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        notes=notes,
    )
    return Made(write(out, read, plan, tell=tell), side, described(folder, codec, family))


def encoder_of(folder: Folder, longer: Longer, length: int | None, instruction: bool, device: str) -> Prompts:
    """The text encoders, asked as the caller wishes."""
    before = None if instruction else ()
    return prompt_encoder(folder, length=length, instruction=before, longer=longer, device=device)


def reader(images: str, *, size: int, broken: Broken) -> Callable[[], Source]:
    """What reads the source that a person named; pickle can carry it.

    Raises:
        ValueError: if it names a place on the network.
    """
    if images.startswith(HUB):
        found = SPLIT.fullmatch(images.removeprefix(HUB))
        if found is None:
            raise ValueError(f"{images!r} names no dataset; write {HUB}NAME or {HUB}NAME:SPLIT")
        return partial(hub.mapped, found["name"], split=found["split"] or "train", size=size, broken=broken)
    if "://" in images or images.startswith("pipe:"):
        raise ValueError(f"{images} is on the network; fetch it, and give the folder or the tar files")
    if images.endswith(".tar"):
        return partial(shards.read, images, size=size, broken=broken)
    if images.endswith(prompts.ENDINGS):
        return partial(prompts.read, Path(images))
    if images == FASHION:
        if size != fashion.SIZE:
            raise ValueError(f"{FASHION} has pictures of {fashion.SIZE} pixels a side, and {size} were asked for")
        return fashion.source
    read = captioned.divided if captioned.parts_of(Path(images)) else captioned.read
    return partial(read, Path(images), size=size, broken=broken)


def side_of(config: Mapping[str, Any], size: int | None, factor: int, *, where: str) -> int:
    """Side of the pictures in pixels: what was asked for, or what the teacher was made for.

    Raises:
        ValueError: if the latents would have no whole side, or the teacher does not say its size.
    """
    if size is not None:
        if size < 1 or size % factor:
            near = max(factor, round(size / factor) * factor)
            raise ValueError(f"size={size}: this teacher's autoencoder takes multiples of {factor}; give e.g. {near}")
        return size
    own = config.get("sample_size")
    sides = {own} if isinstance(own, int) else set(own or ())
    if len(sides) != 1:
        what = f"is made for samples of {own}" if sides else "does not say for which size it is made"
        example = 128 * factor
        raise ValueError(f"{where} {what}; say the side of the square pictures in pixels, e.g. --size {example}")
    return int(sides.pop()) * factor


def fitting(source: Source, family: Family, config: Mapping[str, Any], *, alone: bool, where: str) -> int:
    """The number of the teacher's classes; 0 where it is not conditioned by labels.

    Raises:
        ValueError: if the source has not what the teacher is conditioned by.
    """
    first = next(source.records(0), None)
    if first is None:
        raise ValueError("the source is empty; give one with pictures or prompts")
    if family.texts:
        if first.caption is None:
            raise ValueError(
                f"the source has no captions, and a {family.name} is conditioned by prompts; write a metadata.jsonl, "
                "or a text file beside each picture"
            )
        return 0
    if alone:
        raise ValueError(f"prompts alone came, and a {family.name} is not conditioned by prompts; give pictures")
    with torch.device("meta"):
        classes = family.classes(build(config, where=where))
    if not classes or (classes == 1 and first.label is None):
        return 0
    if first.label is None or len(source.classes) > classes:
        there = f"{len(source.classes)} classes" if source.classes else "no classes"
        raise ValueError(
            f"the source has {there}, and the teacher {classes}; give a folder with a sub-folder for each of the "
            "teacher's classes, named by label or name, or in their order"
        )
    return classes


def described(folder: Folder | Checkpoint, codec: object, family: Family) -> str:
    """What encoded what, in words."""
    pictures = ""
    if codec is not None:
        pictures = f"latents of its {type(codec.module).__name__}" if isinstance(codec, Autoencoder) else "pixels"
    conditions = f"prompts as {', '.join(family.texts)}" if family.texts else "labels"
    return f"for the {folder.pipeline} in {folder.root}: {' and '.join(filter(None, (pictures, conditions)))}"
