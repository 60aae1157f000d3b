"""WebDataset shards: tar files in which the files of one sample share a name and follow one another.

They are read with Python's own `tarfile` and not with the package webdataset, which reads the data of every sample that
it passes over and keeps order only under the right options. Both end quietly at a damaged header; here it is an error.
"""

import json
import re
import tarfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from hidistill.pictures import Broken, endings, pixels_or_none, refuse_choices
from hidistill.records import as_caption, caption_field, digest, first_caption, first_five, refuse_start
from hidistill.types import Record, Source

END = 1024
"""Zeros that close a tar file, in bytes."""
PADDING = 1 << 20
"""Writers fill up the last record with more zeros, to 10 kB by default; beyond this it is a hole."""


@dataclass(frozen=True)
class Sample:
    """The files of one sample.

    Args:
        key: what their names share.
        tar: the open shard.
        parts: the files by the rest of their names, such as `jpg`, in lower case.
    """

    key: str
    tar: tarfile.TarFile
    parts: Mapping[str, tarfile.TarInfo]

    def __str__(self) -> str:
        return f"sample {self.key} of {self.tar.name}"

    def read(self, part: str) -> bytes:
        """The bytes of one file."""
        file = self.tar.extractfile(self.parts[part])
        assert file is not None
        with file:
            return file.read()

    def text(self, part: str) -> str:
        """One file as UTF-8, without the white space around it."""
        try:
            return self.read(part).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self}: {part} is not UTF-8 ({error}); write the shard anew as UTF-8") from error


@dataclass(frozen=True)
class Layout:
    """What each sample holds beside its picture.

    Args:
        caption: the part with the caption, and the field of it if it is `json`; None if there are no captions.
        label: whether there is a class.
    """

    caption: str | None
    label: bool


def read(pattern: str | Path, *, size: int, broken: Broken = "refuse") -> Source:
    """Every sample of the shards: sorted by the shards' names, and within a shard as written.

    A sample's key is what its files' names share. Its picture is the part with an ending that Pillow reads; its caption
    is `txt`, or else the field text, caption or prompt of `json`; its class is the number in `cls`. The first sample
    decides which of these there are. Beginning in the middle reads the headers of what comes before, not the data.

    Args:
        pattern: uncompressed tar files on this machine, such as `data/{000..012}.tar` or `data/*.tar`.
        size: side of the square, in pixels.
        broken: whether a broken picture raises, or gives its record without an image.

    Raises:
        FileNotFoundError: if a shard is not there.
        ValueError: if shards are cut off, or the first sample has no picture or two captions. While iterating: if a
            sample has not what the first one has, no more and no less; names the sample and its shard.
    """
    refuse_choices(size, broken)
    shards = expanded(str(pattern))
    refuse_cut(shards)
    with closing(samples(shards)) as found:
        first = next(found, None)
        if first is None:
            raise ValueError(f"{pattern}: {len(shards)} shards without samples; give shards with files such as 0.jpg")
        caption, text = caption_of(first)
        layout = Layout(caption, "cls" in first.parts)
        used = {picture_of(first), (caption or "").split(" ")[0], "cls"}
        notes = [
            f"{len(shards)} shards; {f'captions from {caption}' if caption else 'no captions'}, "
            f"{'classes from cls, without names' if layout.label else 'no classes'}, as in {first}"
        ]
        notes += [first_caption({first.key: text})] if text else []
        unused = [part for part in first.parts if part not in used]
        notes += [f"parts of it that are not used: {first_five(unused)}"] if unused else []
    return Source(
        records=lambda start: walk(shards, layout, start, size=size, broken=broken),
        count=None,
        digest=digest([size, *((shard.name, shard.stat().st_size) for shard in shards)]),
        notes=tuple(notes),
    )


def walk(shards: Sequence[Path], layout: Layout, start: int, *, size: int, broken: Broken) -> Iterator[Record]:
    """The records from an index on."""
    refuse_start(start, None)
    count = 0
    for sample in samples(shards):
        count += 1
        if count > start:
            yield recorded(sample, layout, size=size, broken=broken)
    refuse_start(start, count)


def recorded(sample: Sample, layout: Layout, *, size: int, broken: Broken) -> Record:
    """A sample's record.

    Raises:
        ValueError: if the sample is laid out in another way, or empty, or broken.
    """
    caption, text = caption_of(sample)
    if caption != layout.caption:
        raise ValueError(
            f"{sample} has {f'a caption in {caption}' if caption else 'no caption'}, but the first sample has "
            f"{f'one in {layout.caption}' if layout.caption else 'none'}; captions are for all or for none, and the "
            "files of a sample follow one another, so write this shard anew"
        )
    if text == "":
        raise ValueError(f"{sample} has an empty caption in {caption}; captions are for all, so write the shard anew")
    if ("cls" in sample.parts) != layout.label:
        raise ValueError(
            f"{sample} has {'a' if 'cls' in sample.parts else 'no'} class in cls, unlike the first sample; classes are "
            "for all or for none, so write this shard anew"
        )
    label = sample.text("cls") if layout.label else None
    if label is not None and not re.fullmatch("[0-9]+", label):
        raise ValueError(f"{sample} has the class {label!r:.40}; cls holds a number from 0 on, so write it anew")
    part = picture_of(sample)
    image = pixels_or_none(sample.read(part), size, broken=broken, where=f"{sample} ({part})")
    return Record(sample.key, image, None if label is None else int(label), text)


def picture_of(sample: Sample) -> str:
    """The part that is the picture."""
    readable = endings()
    found = [part for part in sample.parts if f".{part}" in readable]
    if len(found) != 1:
        raise ValueError(
            f"{sample} has the parts {', '.join(sample.parts)}, {len(found)} of them pictures; each sample has one, "
            "and its files follow one another, so write this shard anew"
        )
    return found[0]


def caption_of(sample: Sample) -> tuple[str | None, str | None]:
    """Where the caption is, and the caption; None for both if there is none."""
    if "txt" in sample.parts:
        return "txt", sample.text("txt")
    if "json" not in sample.parts:
        return None, None
    try:
        row = json.loads(sample.text("json"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{sample}: json is no JSON ({error}); write this shard anew") from error
    field = caption_field(row, f"{sample}: json") if isinstance(row, dict) else None
    return (f"json ({field})", as_caption(row[field], f"{sample}: {field}")) if field else (None, None)


def samples(shards: Sequence[Path]) -> Generator[Sample, None, None]:
    """The samples in their order, by headers alone; each can be read until the next one is asked for.

    Hidden files, files without an ending, and files called `__like_this__` are none.
    """
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                sample = None
                for member in tar:
                    folder, slash, name = member.name.rpartition("/")
                    stem, dot, part = name.partition(".")
                    if not (member.isfile() and stem and dot) or (stem.startswith("__") and stem.endswith("__")):
                        continue
                    key, part = folder + slash + stem, part.lower()
                    if sample is None or sample.key != key:
                        if sample is not None:
                            yield sample
                        sample = Sample(key, tar, {part: member})
                    elif part in sample.parts:
                        raise ValueError(f"{sample} has two files {part}; a sample has one of each, so write it anew")
                    else:
                        sample = Sample(key, tar, {**sample.parts, part: member})
                refuse_rest(shard, tar.offset)
                if sample is not None:
                    yield sample
        except tarfile.ReadError as error:
            raise ValueError(f"{shard} is damaged or cut off ({error}); fetch or write this shard anew") from error


def refuse_cut(shards: Sequence[Path]) -> None:
    """Raise if shards do not end as tar files do; names them together, before the first is read."""
    cut = []
    for shard in shards:
        with shard.open("rb") as file:
            file.seek(max(0, shard.stat().st_size - END))
            if file.read() != bytes(END):
                cut.append(str(shard))
    if cut:
        raise ValueError(
            f"{len(cut)} of {len(shards)} shards do not end as uncompressed tar files do: {first_five(cut)}; they are "
            "cut off or compressed, so fetch them anew or unpack them"
        )


def refuse_rest(shard: Path, end: int) -> None:
    """Raise if anything but padding follows where reading ended: `tarfile` ends quietly at a damaged header."""
    with shard.open("rb") as file:
        file.seek(end)
        rest = file.read(PADDING + 1)
    if len(rest) > PADDING or len(rest) < END or any(rest):
        raise ValueError(
            f"{shard} ends after {end:,} of its {shard.stat().st_size:,} bytes: it is damaged, fetched in part, or "
            "several tar files in one; fetch or write this shard anew"
        )


def expanded(pattern: str) -> list[Path]:
    """The shards that a pattern means, sorted by name.

    Raises:
        FileNotFoundError: if one is not there, or none; names them.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ValueError(f"{pattern} is no file of this machine; fetch the shards and give their names")
    if Path(pattern).is_dir():
        raise ValueError(f"{pattern} is a folder; give the tar files in it, such as {Path(pattern) / '*.tar'}")
    named = [name for part in braces(pattern) for name in (sorted(glob(part)) if has_magic(part) else [part])]
    shards = sorted({Path(name) for name in named}, key=Path.as_posix)
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if not shards:
        raise FileNotFoundError(f"{pattern} fits no file; correct it, such as data/*.tar")
    if missing:
        raise FileNotFoundError(
            f"{pattern}: {len(missing)} of {len(shards)} shards are not there: {first_five(missing)}; fetch them, or "
            "correct the pattern"
        )
    return shards


def braces(pattern: str) -> list[str]:
    """What a shell makes of `{000..012}` and `{a,b}`."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    inner = found[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if numbers:
        first, last = numbers.groups()
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        choices = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inner.split(",")
    if len(choices) < (1 if numbers else 2):
        raise ValueError(f"{pattern}: {{{inner}}} means nothing; write {{000..012}} or {{a,b}}")
    return [whole for c in choices for whole in braces(pattern[: found.start()] + c + pattern[found.end() :])]
