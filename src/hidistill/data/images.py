"""Any folder of pictures: one sub-folder per class, or no sub-folders and no classes."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from hidistill.pictures import colored, each, pictures_below, side, square
from hidistill.types import Split

MINIMUM = 50
"""Fewer pictures leave too few to validate and test on."""
SIDES = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64)
"""Sizes that are chosen; a larger one has to be asked for, since its cost grows with the fourth power of the side."""
UPSCALED = 0.1
"""Share of the pictures that may be smaller than the chosen size."""
PARTS = ("train", "valid", "test")

Part = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Facts:
    """What a folder holds.

    Args:
        count: number of pictures.
        sides: how many pictures have each shorter side, in pixels.
        per_class: number of pictures by class; empty if there are no classes.
        ignored: files that are not pictures by their name.
    """

    count: int
    sides: Mapping[int, int]
    per_class: Mapping[str, int]
    ignored: Sequence[str]


@dataclass(frozen=True)
class Choice:
    """How the pictures are brought to one shape, and why.

    Args:
        size: side of the square, in pixels.
        channels: 1 for gray, 3 for color.
        reasons: one sentence for each choice.
    """

    size: int
    channels: int
    reasons: Sequence[str]


@dataclass(frozen=True)
class Pictures:
    """A whole folder in memory.

    Args:
        images: all pictures, (n, c, size, size).
        labels: their classes; all 0 where there are none.
        classes: names of the classes, sorted.
        part: for each picture an index into `PARTS`.
        facts: what was found.
        choice: what was made of it.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    classes: Sequence[str]
    part: Int[Tensor, " n"]
    facts: Facts
    choice: Choice

    def split(self, part: Part) -> Split:
        """One part: eight tenths of the pictures to train on, one to validate, one to test."""
        if part not in PARTS:
            raise ValueError(f"part {part!r}: pictures come in the parts {', '.join(PARTS)}; choose one of them")
        chosen = self.part == PARTS.index(part)
        return Split(self.images[chosen], self.labels[chosen], self.classes)


def folder(root: Path, *, part: Part, size: int | None = None) -> Split:
    """One part of a folder of pictures; `read` gives all parts at the cost of one."""
    return read(root, size=size).split(part)


def read(root: Path, *, size: int | None = None) -> Pictures:
    """Every picture of a folder, its center cropped to a square and resized.

    Args:
        root: a folder with a sub-folder per class, or with pictures alone.
        size: side of the square; None chooses it from the data.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the folder is empty, too small or mixed, or files are broken; names them.
    """
    if size is not None and size < SIDES[0]:
        raise ValueError(f"size={size}: pictures need at least {SIDES[0]} pixels a side; give a larger size or none")
    names, labels, classes, ignored = listing(root)
    sides = each(root, names, side)
    facts = Facts(
        len(names), dict(sorted(Counter(sides).items())), {c: labels.count(i) for i, c in enumerate(classes)}, ignored
    )
    chosen, why = (size, asked_size(size, sides)) if size is not None else choose_size(sides)
    pixels = decoded(root, names, chosen)
    color = colored(pixels)
    if not color:
        pixels = pixels[..., 1:2]
    shown = "3 channels: there is color" if color else "1 channel: every picture is gray"
    if len(classes) == 1:
        classes, labels = (), [0] * len(labels)
    reasons = [why, shown, f"{len(classes)} classes: sub-folders" if classes else "no classes: no two sub-folders"]
    reasons += [f"{len(ignored)} other files left out, e.g. {ignored[0]}"] if ignored else []
    return Pictures(
        images=torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))),
        labels=torch.tensor(labels),
        classes=classes,
        part=parts(names, labels),
        facts=facts,
        choice=Choice(chosen, pixels.shape[3], tuple(reasons)),
    )


def listing(root: Path) -> tuple[list[str], list[int], tuple[str, ...], list[str]]:
    """Relative names of the pictures, their labels, the classes, and the names of other files; all sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; give a folder of pictures, or of one sub-folder per class")
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if {"train", "test"} <= set(classes):
        raise ValueError(
            f"{root} holds the folders train and test, which are no classes; give {root / 'train'} instead"
        )
    names, ignored = pictures_below(root)
    labels = [classes.index(name.split("/")[0]) if "/" in name else -1 for name in names]
    refuse(root, labels, classes)
    return names, [max(label, 0) for label in labels], classes, ignored


def refuse(root: Path, labels: Sequence[int], classes: Sequence[str]) -> None:
    """Raise if a folder cannot be learned from."""
    if not labels:
        raise ValueError(f"{root} holds no pictures; give a folder of PNG, JPEG or other files that Pillow reads")
    if classes and -1 in labels:
        raise ValueError(
            f"{root} holds {labels.count(-1)} pictures beside its {len(classes)} sub-folders; each sub-folder is a "
            "class, so move these pictures into one, or give a folder without sub-folders"
        )
    empty = [c for i, c in enumerate(classes) if i not in labels]
    if empty:
        raise ValueError(f"{root}: the sub-folders {', '.join(empty)} hold no pictures; fill or remove them")
    if len(labels) < MINIMUM:
        raise ValueError(f"{root} holds {len(labels)} pictures; at least {MINIMUM} are needed, some thousands are good")


def decoded(root: Path, names: Sequence[str], size: int) -> np.ndarray:
    """Colors (n, size, size, 3) of the pictures."""
    return np.stack(each(root, names, lambda path: square(path, size)))


def asked_size(size: int, sides: Sequence[int]) -> str:
    """What to know of a size that was asked for."""
    smaller = [side for side in sides if side < size]
    if not smaller:
        return f"size {size}: asked for"
    factor = size / np.median(smaller)
    return (
        f"size {size}: asked for; {len(smaller):,} of {len(sides):,} pictures (sides {min(sides)} to {max(sides)}) are "
        f"smaller and are enlarged, half of them at least {factor:.1f} times, which adds cost and no detail"
    )


def choose_size(sides: Sequence[int]) -> tuple[int, str]:
    """The largest of `SIDES` that upscales few of the pictures, and the reason in words."""
    small = sorted(sides)[int(UPSCALED * len(sides))]
    fitting = [side for side in SIDES if side <= small]
    if not fitting:
        raise ValueError(
            f"most pictures have a side below {SIDES[0]} pixels (median {int(np.median(sides))}); use larger"
        )
    size = fitting[-1]
    share = sum(side >= size for side in sides) / len(sides)
    capped = ", and the largest chosen unasked" if size == SIDES[-1] else ""
    return (
        size,
        f"size {size}: {share:.0%} of the pictures (sides {min(sides)} to {max(sides)}) are at least as large{capped}",
    )


def parts(names: Sequence[str], labels: Sequence[int]) -> Int[Tensor, " n"]:
    """An index into `PARTS` for each picture.

    Of the pictures by class, and within a class by a hash of their names, every tenth is for test and the next one
    for validation: shares hold within each class, and neither order nor time of the files matters.
    """
    order = sorted(range(len(names)), key=lambda i: (labels[i], hashlib.sha256(names[i].encode()).digest()))
    chosen = torch.zeros(len(names), dtype=torch.int64)
    chosen[torch.tensor(order[0::10])] = PARTS.index("test")
    chosen[torch.tensor(order[5::10])] = PARTS.index("valid")
    return chosen
