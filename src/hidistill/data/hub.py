"""Pictures out of Hugging Face datasets: a folder of `save_to_disk`, parquet files, or a name on the Hub.

`mapped` lays the whole set on the disk and knows its length; any record is reached at once. `streamed` stores nothing;
to begin in the middle it has to read what comes before, without decoding the pictures.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from hidistill.foreign.folder import library
from hidistill.pictures import Broken, pixels_or_none, refuse_choices
from hidistill.records import CAPTIONS, as_caption, digest, first_caption, first_five, refuse_start
from hidistill.types import Record, Source

STRINGS = ("string", "large_string", "string_view")
ROWS = 10_000
"""Rows that are checked at a time."""


@dataclass(frozen=True)
class Columns:
    """Where a dataset keeps what a record holds.

    Args:
        image: the column of pictures.
        text: the column of captions; None if there are none.
        label: the column of classes; None if there are none.
        classes: their names.
    """

    image: str
    text: str | None
    label: str | None
    classes: Sequence[str]

    @property
    def used(self) -> list[str]:
        """All of them."""
        return [name for name in (self.image, self.text, self.label) if name is not None]


def mapped(
    name: str | Path,
    *,
    split: str,
    size: int,
    config: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    broken: Broken = "refuse",
) -> Source:
    """A dataset as a memory-mapped table.

    Args:
        name: a folder of `save_to_disk`, a parquet file, or what `datasets.load_dataset` takes: a folder of data
            files, or a name on the Hub. All but the first are copied into the cache of `datasets`.
        split: the part, such as "train"; or a slice of it, such as "train[:1000]", if `load_dataset` reads it.
        size: side of the square, in pixels.
        config: which of the dataset's configurations, if it has several.
        image_column: the column of pictures; None finds the only one.
        text_column: the column of captions; None finds the only one of strings, or among several the one called text,
            caption or prompt; "" reads none.
        label_column: the column of classes; None finds the only one; "" reads none.
        broken: whether a missing or broken picture raises, or gives its record without an image.

    Raises:
        ModuleNotFoundError: if `datasets` is missing.
        ValueError: if the split or a column is missing or ambiguous, or captions are missing; names them.
    """
    refuse_choices(size, broken)
    dataset = saved(Path(name), split) if is_saved(name) else loaded(name, split, config)
    columns = choose(dataset.features, image_column, text_column, label_column, str(name))
    # Bytes instead of pictures: all sources decode alike, and rows that are passed over cost nothing.
    table = dataset.select_columns(columns.used).cast_column(columns.image, package().Image(decode=False))
    rows = list(facts(table.with_format("arrow").iter(ROWS), columns))
    refuse_gaps(f"{name}, split {split}", [caption for *_, caption, _ in rows], columns)

    def records(start: int) -> Iterator[Record]:
        refuse_start(start, len(table))
        # datasets refuses an empty range at the end.
        behind = table.select(range(start, len(table))) if start < len(table) else ()
        return numbered(behind, columns, str(name), start, size=size, broken=broken)

    return Source(
        records=records,
        count=len(table),
        digest=digest([size, columns.used, columns.classes, *rows]),
        classes=tuple(columns.classes),
        notes=(
            *chosen(columns, dataset.features),
            *([first_caption({"0": as_caption(rows[0][2], "row 0")})] if columns.text else []),
        ),
    )


def streamed(
    name: str | Path,
    *,
    split: str,
    size: int,
    config: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    broken: Broken = "refuse",
) -> Source:
    """A dataset that is read as it comes, in the order of its files; the arguments are those of `mapped`.

    Missing captions show while iterating. The length is not known, even where the dataset's card states one.

    Raises:
        ModuleNotFoundError: if `datasets` is missing.
        ValueError: if the split or a column is missing or ambiguous.
    """
    refuse_choices(size, broken)
    if is_saved(name):
        raise ValueError(f"{name} was written by save_to_disk and needs no streaming; give it to mapped")
    kind, file = located(name)
    builder = package().load_dataset_builder(kind, config, data_files=file)
    try:
        dataset = builder.as_streaming_dataset(split=split)
    except ValueError as error:
        raise ValueError(f"{name}, split {split!r}: {error}; name one of its splits") from error
    if dataset.features is None:
        raise ValueError(f"{name} does not say which columns it has before it is read; give it to mapped")
    columns = choose(dataset.features, image_column, text_column, label_column, str(name))
    table = dataset.select_columns(columns.used).cast_column(columns.image, package().Image(decode=False))

    def records(start: int) -> Iterator[Record]:
        refuse_start(start, None)
        return numbered(table.skip(start), columns, str(name), start, size=size, broken=broken)

    files = {str(part): paths for part, paths in (builder.config.data_files or {}).items()}.get(split, [])
    stated = (builder.info.splits or {}).get(split)
    notes = [f"streamed; its card states {stated.num_examples:,} rows"] if stated and stated.num_examples else []
    return Source(
        records=records,
        count=None,
        digest=digest([size, columns.used, columns.classes, split, *map(trace, files)]),
        classes=tuple(columns.classes),
        notes=(*notes, *chosen(columns, dataset.features)),
    )


def is_saved(name: str | Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))


def package() -> ModuleType:
    """The package `datasets`."""
    return library("datasets", extra="data")


def saved(folder: Path, split: str) -> Any:  # noqa: ANN401 (a Dataset, whose package may be missing)
    """A split of a folder of `save_to_disk`; data that was saved without a split is the split train."""
    whole = package().load_from_disk(folder)
    parts = whole if isinstance(whole, dict) else {str(whole.split or "train"): whole}
    if split not in parts:
        raise ValueError(f"{folder} has the splits {', '.join(parts)} and no {split!r}; give one of them")
    return parts[split]


def loaded(name: str | Path, split: str, config: str | None) -> Any:  # noqa: ANN401 (as above)
    """A split by `load_dataset`."""
    kind, file = located(name)
    try:
        return package().load_dataset(kind, config, data_files=file, split=split)
    except ValueError as error:
        raise ValueError(f"{name}, split {split!r}: {error}; name one of its splits, or a slice of one") from error


def located(name: str | Path) -> tuple[str, str | None]:
    """A dataset's name and no file, or a file's format and the file."""
    if not Path(name).is_file():
        return str(name), None
    if Path(name).suffix != ".parquet":
        raise ValueError(f"{name}: a single file is read if it is .parquet; give such a file, or a folder")
    return "parquet", str(name)


def choose(features: Mapping[str, Any], image: str | None, text: str | None, label: str | None, name: str) -> Columns:
    """The columns that hold pictures, captions and classes, by their types.

    Raises:
        ValueError: if one that was asked for is not there, or one that was not is ambiguous; gives the choices.
    """
    datasets = package()
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    texts = [column for column, kind in features.items() if getattr(kind, "dtype", None) in STRINGS]
    texts = [column for column in texts if isinstance(features[column], datasets.Value)]
    named = [column for column in texts if column in CAPTIONS]
    shown = ", ".join(f"{column} ({kind})" for column, kind in features.items())
    where = f"{name} has the columns {shown:.400}"
    picture = one(image, images, "image_column", f"{where}; pictures are of the type Image: cast_column makes them so")
    if not picture:
        raise ValueError(f"{where}, and none of pictures; cast_column(..., datasets.Image()) makes one")
    if text is None and len(named) == 1:
        text = named[0]
    found = one(
        label, labels, "label_column", f"{where}; classes are of the type ClassLabel: cast_column makes them so"
    )
    return Columns(
        image=picture,
        text=one(text, texts, "text_column", f"{where}; captions are one string each"),
        label=found,
        classes=features[found].names if found else (),
    )


def one(asked: str | None, candidates: Sequence[str], argument: str, where: str) -> str | None:
    """The column that was asked for, or else the only candidate, or else None."""
    if asked == "" or (asked is None and not candidates):
        return None
    if asked is None and len(candidates) > 1:
        choices = " or ".join(f"{argument}={column!r}" for column in candidates)
        raise ValueError(f"{where}; several may be meant, so give {choices}, or {argument}='' for none")
    if asked is not None and asked not in candidates:
        raise ValueError(f"{where}; {argument}={asked!r} is none of {', '.join(candidates) or 'these'}, so give one")
    return asked or candidates[0]


def chosen(columns: Columns, features: Mapping[str, Any]) -> list[str]:
    """Notes on the columns that are used, and those that are not."""
    text = f"captions from {columns.text}" if columns.text else "no captions"
    label = f"{len(columns.classes)} classes from {columns.label}" if columns.label else "no classes"
    unused = [name for name in features if name not in columns.used]
    notes = [f"pictures from the column {columns.image}, {text}, {label}"]
    return [*notes, f"columns that are not used: {first_five(unused)}"] if unused else notes


def facts(tables: Iterable[Any], columns: Columns) -> Iterator[tuple[str, int | None, object, int | None]]:
    """Of each row the name and size of its picture's file, the caption and the label; no picture is read."""
    compute = import_module("pyarrow.compute")
    for table in tables:
        image = table[columns.image]
        names = compute.struct_field(image, "path").to_pylist()
        sizes = compute.binary_length(compute.struct_field(image, "bytes")).to_pylist()
        texts = table[columns.text].to_pylist() if columns.text else [None] * len(names)
        labels = table[columns.label].to_pylist() if columns.label else [None] * len(names)
        for path, size, text, label in zip(names, sizes, texts, labels, strict=True):
            if size is None and path is not None:
                yield *trace(path), text, label
            else:
                yield PurePosixPath(path or "").name, size, text, label


def trace(path: str) -> tuple[str, int | None]:
    """A file's name and size if it is on this machine, else its address."""
    return (os.path.basename(path), os.path.getsize(path)) if os.path.isfile(path) else (path, None)


def refuse_gaps(where: str, captions: Sequence[object], columns: Columns) -> None:
    """Raise if a caption is missing or empty."""
    gaps = [i for i, caption in enumerate(captions) if not (caption and str(caption).strip())] if columns.text else []
    if gaps:
        raise ValueError(
            f"{where}: {len(gaps):,} of {len(captions):,} rows have no caption in {columns.text}: rows "
            f"{first_five(gaps)}; captions are for all or for none, so filter these rows, or give text_column=''"
        )


def numbered(
    rows: Iterable[Mapping[str, Any]], columns: Columns, name: str, start: int, *, size: int, broken: Broken
) -> Iterator[Record]:
    """The records of rows that begin with a given number."""
    for number, row in enumerate(rows, start):
        where = f"{name}, row {number}"
        caption = as_caption(row[columns.text], f"{where}: {columns.text}") if columns.text else None
        if caption == "":
            raise ValueError(
                f"{where} has no caption in {columns.text}; captions are for all or for none, so filter such rows, or "
                "give text_column=''"
            )
        label = row[columns.label] if columns.label else None
        if columns.label and (label is None or not 0 <= label < len(columns.classes)):
            raise ValueError(
                f"{where} has the class {label} in {columns.label}; classes are 0 to {len(columns.classes) - 1}, so "
                "filter such rows, or give label_column=''"
            )
        image = pixels_or_none(file_of(row[columns.image]), size, broken=broken, where=f"{where} ({columns.image})")
        yield Record(key=str(number), image=image, label=label, caption=caption)


def file_of(picture: Mapping[str, Any] | None) -> bytes | None:
    """The bytes of a picture's file, which may lie in the dataset or beside it; None if there is no picture."""
    if picture is None:
        return None
    if picture["bytes"] is not None:
        return picture["bytes"]
    if picture["path"] is None:
        return None
    import fsspec

    # Streamed folders name their files by an address, maybe within an archive.
    with fsspec.open(picture["path"], "rb") as file:
        return file.read()  # pyright: ignore[reportAttributeAccessIssue] (of one path it is one file)
