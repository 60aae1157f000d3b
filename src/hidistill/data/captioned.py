"""A folder of pictures with captions, with classes, or with neither.

One of four conventions is found in the folder, in this order:

- `metadata.jsonl` or `metadata.csv`: a `file_name` and a `text`, `caption` or `prompt` for each picture;
- a text file beside each picture: `a.txt` for `a.png`;
- sub-folders, each of them a class; no captions;
- pictures alone.

A folder with sub-folders train, valid and test is three such folders (`divided`).

Pictures are decoded while iterating, one at a time. A picture whose header cannot be read is found at once; one that
is cut off shows only when it is decoded. `broken` decides about both. With "skip" a broken picture keeps its place
and its record comes without an image: index i is the same picture whatever `broken` is and however many pictures are
broken, so a cache that stopped at one may go on behind it with "skip", and lists the keys without image at its end.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import accumulate, islice
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from hidistill.pictures import DAMAGED, Broken, looked, pictures_below, pixels, refuse_choices, side, told, why
from hidistill.records import (
    as_caption,
    caption_field,
    digest,
    first_caption,
    first_five,
    json_lines,
    refuse_start,
    text_of,
)
from hidistill.types import Record, Source

METADATA = ("metadata.jsonl", "metadata.csv")
AHEAD = 1000
"""Pictures that are looked at behind a broken one, so that one error names several, within seconds."""


@dataclass(frozen=True)
class Told:
    """What a folder says of its pictures.

    Args:
        notes: which convention was found, and what a person should know of it.
        captions: by picture; empty if there are none.
        labels: by picture; empty if there are no classes.
        classes: their names.
    """

    notes: Sequence[str]
    captions: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    classes: Sequence[str] = ()


def read(root: Path, *, size: int, broken: Broken = "refuse") -> Source:
    """Every picture below a folder in the order of its name, the center cropped to a square and resized.

    Args:
        root: the folder; hidden files in it are left out.
        size: side of the square, in pixels.
        broken: whether a broken picture raises, or gives its record without an image.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are no pictures, captions are missing, empty or told in two ways, or pictures are broken.
    """
    refuse_choices(size, broken)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; give a folder of pictures")
    names, others = pictures_below(root)
    names.sort()
    if not names:
        raise ValueError(f"{root} holds no pictures; give a folder of PNG, JPEG or other files that Pillow reads")
    what = convention(root, names, others)
    used = {*METADATA, *(beside(name) for name in what.captions)}
    unused = [name for name in others if name not in used]
    notes = [*what.notes, *headers(root, names, size, broken)]
    if what.captions:
        notes.append(first_caption(what.captions))
    if unused:
        notes.append(f"{len(unused):,} other files left out: {first_five(unused)}")
    files = ((name, (root / name).stat().st_size, what.captions.get(name)) for name in names)
    return Source(
        records=lambda start: walk(root, names, what, start, size=size, broken=broken),
        count=len(names),
        digest=digest([size, *files]),
        classes=tuple(what.classes),
        notes=tuple(notes),
    )


def divided(root: Path, *, size: int, broken: Broken = "refuse") -> Source:
    """A folder whose sub-folders are parts of their own, as image folders of Hugging Face: `read` of each, one by one.

    A key begins with the name of its record's part, "train", "valid" or "test"; the sub-folder of the second may be
    "validation".

    Args:
        root: a folder for which `parts_of` is not empty.
        size: side of the square, in pixels.
        broken: as for `read`.

    Raises:
        FileNotFoundError, ValueError: as `read`; also if the parts have different classes.
    """
    sources = {part: read(place, size=size, broken=broken) for part, place in parts_of(root).items()}
    classes = {tuple(source.classes) for source in sources.values()}
    if len(classes) != 1:
        told_apart = ", ".join(f"{part} has {len(source.classes)}" for part, source in sources.items())
        raise ValueError(
            f"{root}: the parts have different classes ({told_apart}); give each part the same sub-folders"
        )
    starts = list(accumulate((source.count or 0 for source in sources.values()), initial=0))

    def records(start: int) -> Iterator[Record]:
        refuse_start(start, starts[-1])
        for first, (part, source) in zip(starts, sources.items(), strict=False):
            if start < first + (source.count or 0):
                for record in source.records(max(0, start - first)):
                    yield record._replace(key=f"{part}/{record.key}", part=part)

    notes = [f"{part}: {note}" for part, source in sources.items() for note in source.notes]
    shown = ", ".join(f"{source.count:,} {part}" for part, source in sources.items())
    return Source(
        records=records,
        count=starts[-1],
        digest=digest([part, source.digest] for part, source in sources.items()),
        classes=classes.pop(),
        notes=(f"parts of the folder's own: {shown}", *notes),
    )


def parts_of(root: Path) -> dict[str, Path]:
    """The sub-folders that are parts, by name; empty unless they are train and at least one held-out part."""
    names = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
    places = {part: [root / name for name in known if (root / name).is_dir()] for part, known in names.items()}
    here = {part: found[0] for part, found in places.items() if found}
    return here if "train" in here and len(here) > 1 else {}


def walk(root: Path, names: Sequence[str], what: Told, start: int, *, size: int, broken: Broken) -> Iterator[Record]:
    """The records from an index on; nothing before it is opened."""
    refuse_start(start, len(names))
    return (
        Record(
            key=names[i],
            image=picture(root, names[i : i + AHEAD], size, broken),
            label=what.labels.get(names[i]),
            caption=what.captions.get(names[i]),
        )
        for i in range(start, len(names))
    )


def picture(root: Path, names: Sequence[str], size: int, broken: Broken) -> UInt8[Tensor, "3 h w"] | None:
    """The first of some pictures; None if it is broken and skipped.

    Raises:
        ValueError: if it is broken and refused; names those that are broken behind it, too.
    """
    # Read apart from decoding: a file that vanished or a disk that failed is no broken picture.
    data = (root / names[0]).read_bytes()
    try:
        return pixels(data, size)
    except DAMAGED as error:
        if broken == "skip":
            return None

        def look(path: Path) -> None:
            pixels(path.read_bytes(), size)

        more = looked(root, names[1:], look)[1]
        raise ValueError(
            f"{root}: {told({names[0]: why(error)} | more)} (looked at {len(names)}); replace them, or give "
            "broken='skip' to go on without them: all other pictures keep their places"
        ) from error


def headers(root: Path, names: Sequence[str], size: int, broken: Broken) -> list[str]:
    """Notes on what the files' headers show: broken pictures, and enlarged ones.

    Raises:
        ValueError: if headers are broken and refused, or if all are broken; names them.
    """
    sides, bad = looked(root, names, side)
    if bad and (broken == "refuse" or not sides):
        advice = "replace them" if not sides else "replace or remove them, or give broken='skip' to go on without them"
        raise ValueError(f"{root}: {told(bad)}; {advice}")
    notes = [f"{told(bad)}; their records come without an image"] if bad else []
    smaller = [side for side in sides if side < size]
    if smaller:
        notes.append(
            f"{len(smaller):,} of {len(sides):,} pictures (sides {min(sides)} to {max(sides)}) are smaller than {size} "
            f"and are enlarged, half of them at least {size / np.median(smaller):.1f} times"
        )
    return notes


def convention(root: Path, names: Sequence[str], others: Sequence[str]) -> Told:
    """What the folder says of its pictures, in the one way that it says it.

    Raises:
        ValueError: if it says it in two ways, or not of all pictures.
    """
    known = set(others)
    metadata = [name for name in METADATA if name in known]
    texts = sorted({beside(name) for name in names} & known)
    ways = metadata + ([f"text files such as {texts[0]}"] if texts else [])
    if len(ways) > 1:
        raise ValueError(f"{root} holds captions in {' and in '.join(ways)}; keep one of them and move the other away")
    elsewhere = [name for name in others if PurePosixPath(name).stem == "metadata" and name not in METADATA]
    elsewhere = [name for name in elsewhere if name.endswith((*METADATA, "metadata.parquet"))]
    if elsewhere:
        raise ValueError(
            f"{root} holds {first_five(elsewhere)}; captions are read from {' or '.join(METADATA)} at the top, so give "
            "the folder that holds such a file, or turn it into one"
        )
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    if not ways:
        return from_folders(root, names, folders)
    found = from_metadata(root, metadata[0], names) if metadata else from_texts(root, names)
    notes = [f"the {len(folders)} sub-folders are not read as classes: there are captions"] if len(folders) > 1 else []
    return Told([*found.notes, *notes], found.captions)


def beside(name: str) -> str:
    """The text file that may belong to a picture."""
    return PurePosixPath(name).with_suffix(".txt").as_posix()


def from_metadata(root: Path, metadata: str, names: Sequence[str]) -> Told:
    """Captions by the `file_name` of the Hugging Face imagefolder convention."""
    file = root / metadata
    rows = json_lines(file) if file.suffix == ".jsonl" else table(file)
    fields = dict.fromkeys(name for row in rows for name in row)
    column = caption_field(fields, str(file))
    if "file_name" not in fields or column is None:
        raise ValueError(
            f"{file} has the fields {', '.join(fields) or '(none)'}; it needs file_name and one of text, caption and "
            "prompt, so rename them"
        )
    captions: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        name = PurePosixPath(as_caption(row.get("file_name"), f"{file}: file_name of entry {number}")).as_posix()
        if name in captions:
            raise ValueError(f"{file} names {name} twice, the second time in entry {number}; leave one of them")
        captions[name] = as_caption(row.get(column), f"{file}: {column} of {name}")
    unknown = sorted(captions.keys() - set(names))
    if unknown:
        raise ValueError(
            f"{file} names {len(unknown):,} pictures that are not there: {first_five(unknown)}; file names are "
            f"relative to {root}, so add the pictures or remove these entries"
        )
    refuse_gaps(root, names, captions, f"add them to {metadata}, or move these pictures away")
    unused = [name for name in fields if name not in ("file_name", column)]
    notes = [f"fields of {metadata} that are not used: {', '.join(unused)}"] if unused else []
    ordered = {name: captions[name] for name in names}
    return Told([f"captions from the field {column} of {metadata}", *notes], ordered)


def table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file whose first line names the columns."""
    rows = csv.DictReader(StringIO(text_of(file), newline=""))
    found = []
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(
                f"{file}, line {rows.line_num}: the columns are {', '.join(rows.fieldnames or ())}, and this line has "
                "more or fewer; put quotes around captions that contain a comma"
            )
        found.append(row)
    return found


def from_texts(root: Path, names: Sequence[str]) -> Told:
    """The whole text file beside each picture, without the white space around it."""
    captions = {}
    for name in names:
        file = root / beside(name)
        if file.is_file():
            captions[name] = text_of(file).strip()
    refuse_gaps(root, names, captions, "write a text file of the same name beside each, or move these pictures away")
    lines = sum("\n" in caption for caption in captions.values())
    notes = [f"{lines:,} captions have several lines and are used whole"] if lines else []
    return Told(["captions from the text file beside each picture", *notes], captions)


def refuse_gaps(root: Path, names: Sequence[str], captions: Mapping[str, str], advice: str) -> None:
    """Raise if a picture has no caption, or an empty one."""
    for what, gaps in (
        ("have no caption", [name for name in names if name not in captions]),
        ("have an empty caption", [name for name in names if not captions.get(name, "?")]),
    ):
        if gaps:
            raise ValueError(
                f"{root}: {len(gaps):,} of {len(names):,} pictures {what}: {first_five(gaps)}; captions are for all "
                f"pictures or for none, so {advice}"
            )


def from_folders(root: Path, names: Sequence[str], folders: Sequence[str]) -> Told:
    """Classes by sub-folder; none if there are fewer than two."""
    empty = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    empty = [name for name in empty if name not in folders]
    if empty:
        raise ValueError(f"{root}: the sub-folders {first_five(empty)} hold no pictures; fill or remove them")
    if {"train", "test"} <= set(folders):
        raise ValueError(
            f"{root} holds the folders train and test, which are no classes; give {root / 'train'} instead"
        )
    lone = [name for name in names if "/" not in name]
    if folders and lone:
        raise ValueError(
            f"{root} holds {len(lone):,} pictures beside its {len(folders)} sub-folders: {first_five(lone)}; each "
            "sub-folder is a class, so move these pictures into one, or give a folder without sub-folders"
        )
    if len(folders) < 2:
        return Told(["no captions and no classes: neither metadata, nor text files, nor two sub-folders"])
    labels = {name: folders.index(name.split("/")[0]) for name in names}
    shown = ", ".join(islice(folders, 5)) + (", ..." if len(folders) > 5 else "")
    return Told([f"no captions; {len(folders)} classes by sub-folder: {shown}"], labels=labels, classes=tuple(folders))
