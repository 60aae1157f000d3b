"""What shard i of each part is to hold, gathered from records."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hidistill.data.cache.manifest import PARTS
from hidistill.foreign.text import Prompts
from hidistill.pictures import GRAY_TOLERANCE
from hidistill.types import Codec, Images, Record

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """What a cache is to hold.

    Args:
        codec: gives the latents; None where the source has prompts alone.
        codec_digest: tells it from others.
        prompts: gives the conditions; None where they are labels.
        size: side of the pictures in pixels; 0 where there are none.
        channels: of the pictures: 1 for gray, 3 for color.
        classes: of the teacher; labels from there on are refused. 0 leaves labels as they are.
        teacher: names of its pipeline and family.
        dtype: in which latents and conditions are stored: float32, float16 or bfloat16.
        batch_size: records that are encoded at a time; other sizes may change last bits.
        workers: 1, or 2: another process decodes pictures while this one encodes.
        rows: records of a shard; None chooses by their size.
        notes: what a person should know.
    """

    codec: Codec | None
    codec_digest: str
    prompts: Prompts | None
    size: int
    channels: int = 3
    classes: int = 0
    teacher: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    batch_size: int = 16
    workers: int = 1
    rows: int | None = None
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: if a number is out of range, or there is nothing to store.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: numbers are stored as {', '.join(DTYPES)}; choose one of them")
        if self.batch_size < 1 or (self.rows is not None and self.rows < 1):
            raise ValueError(f"batch_size={self.batch_size}, rows={self.rows}: both are at least 1; leave them out")
        if self.workers not in (1, 2):
            raise ValueError(f"workers={self.workers}: 1, or 2 to decode pictures in a second process")
        if self.codec is None and self.prompts is None:
            raise ValueError("neither pictures nor prompts came, so there is nothing to store; give one of them")


class Segment:
    """What shard i of each part is to hold, while it is gathered."""

    def __init__(self) -> None:
        self.records = 0
        self.broken: list[str] = []
        self.tensors: dict[str, dict[str, list[Tensor]]] = {part: {} for part in PARTS}
        self.lines: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}

    def add(self, batch: Sequence[Record], plan: Plan) -> None:
        """Encode a batch and sort its rows into parts."""
        self.records += len(batch)
        kept = [record for record in batch if plan.codec is None or record.image is not None]
        self.broken += [record.key for record in batch if plan.codec is not None and record.image is None]
        if not kept:
            return
        row: dict[str, Tensor] = {}
        images: Tensor | None = None
        if plan.codec is not None:
            images = torch.stack([picture(record, plan.channels) for record in kept])
            row["x"] = latents(plan.codec, images)
        cut: list[tuple[str, ...]] = [()] * len(kept)
        if plan.prompts is None:
            row["label"] = torch.tensor([label_of(record, plan.classes) for record in kept])
        else:
            captions = [caption_of(record) for record in kept]
            row |= {f"cond.{key}": value for key, value in plan.prompts(captions).items()}
            cut = plan.prompts.cut(captions)
        for i, record in enumerate(kept):
            part = part_of(record)
            for name, value in row.items():
                self.tensors[part].setdefault(name, []).append(value[i].to(stored_type(value, plan)))
            if images is not None and part != "train":
                self.tensors[part].setdefault("image", []).append(images[i])
            line = {"key": record.key, "caption": record.caption, "label": record.label, "cut": list(cut[i])}
            self.lines[part].append({name: value for name, value in line.items() if value not in (None, [])})


def picture(record: Record, channels: int) -> Tensor:
    """The pixels of a record, of one channel if the teacher's pictures are gray.

    Raises:
        ValueError: if they are to be gray, and are not.
    """
    assert record.image is not None
    if channels == record.image.shape[0]:
        return record.image
    spread = record.image.amax(0).int() - record.image.amin(0).int()
    if channels != 1 or spread.max() > GRAY_TOLERANCE:
        raise ValueError(
            f"the picture {record.key} has color, and the teacher's pictures have {channels} channel(s); turn the "
            "pictures gray first, or use a teacher of color pictures"
        )
    return record.image[1:2]


@torch.no_grad()
def latents(codec: Codec, images: Tensor) -> Tensor:
    """What a codec makes of bytes."""
    scaled: Images = images.float() / 255
    return codec.encode(scaled)


def label_of(record: Record, classes: int) -> int:
    """The label of a record; 0 where neither the source nor the teacher has classes.

    Raises:
        ValueError: if the teacher has classes, and the label is missing or none of theirs.
    """
    if classes and (record.label is None or not 0 <= record.label < classes):
        raise ValueError(
            f"{record.key} has the label {record.label}, and the teacher is conditioned by labels from 0 to "
            f"{classes - 1}; give pictures in sub-folders, one for each of the teacher's classes in their order"
        )
    return record.label or 0


def caption_of(record: Record) -> str:
    """The caption of a record.

    Raises:
        ValueError: if it has none.
    """
    if record.caption is None:
        raise ValueError(
            f"{record.key} has no caption, and the teacher is conditioned by prompts; give a source with captions"
        )
    return record.caption


def stored_type(value: Tensor, plan: Plan) -> torch.dtype:
    """The type in which a tensor is stored."""
    return DTYPES[plan.dtype] if value.is_floating_point() else value.dtype


def part_of(record: Record) -> str:
    """The part of a record: its own, or else eight tenths are to train on, one to validate, one to test.

    By a hash of the caption, whatever its case and white space, so that each caption is in one part alone; of the
    key where there are none.
    """
    if record.part is not None:
        return record.part
    words = " ".join(record.caption.split()).casefold() if record.caption else record.key
    tenth = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") % 10
    return {0: "test", 5: "valid"}.get(tenth, "train")
