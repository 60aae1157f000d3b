"""Writing a cache: shards that appear whole or not at all, in an order that does not depend on when it was stopped."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hidistill.data.cache import manifest
from hidistill.data.cache.feeding import Stretch, feed
from hidistill.data.cache.gathering import DTYPES, Plan, Segment, stored_type
from hidistill.data.cache.manifest import MANIFEST, NULL, PARTS, CacheError, lines_of
from hidistill.files import damage, exclusive
from hidistill.types import Source

SHARD_BYTES = 256 << 20
"""About as much as a shard holds, so that little is lost when writing stops."""
MOST_ROWS = 2048


@dataclass(frozen=True)
class Progress:
    """How far a cache is.

    Args:
        records: of the source that are stored or left out.
        count: of the source; None if nobody knows.
        encoded: of them in this process.
        seconds: that took.
    """

    records: int
    count: int | None
    encoded: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What became of a source.

    Args:
        rows: by part.
        captions: how many different ones there are.
        broken: keys of the records without a picture.
        cut: number of captions of which an encoder took the beginning, by encoder.
        encoded: records that this process encoded.
        seconds: that took.
        bytes: of all files.
    """

    rows: Mapping[str, int]
    captions: int
    broken: Sequence[str]
    cut: Mapping[str, int]
    encoded: int
    seconds: float
    bytes: int


def write(
    root: Path, read: Callable[[], Source], plan: Plan, *, tell: Callable[[Progress], object] | None = None
) -> Summary:
    """Write a cache, or what is missing of it: shards that are there, and whole, are left as they are.

    Args:
        root: its folder, which is made.
        read: the source; pickle must be able to carry it if there are two workers.
        plan: what to store.
        tell: is told how far it is after each batch.

    Raises:
        CacheError: if the folder holds a cache that was made from something else, or is in use.
        OSError: if the disk is full; what was written before stays usable.
        ValueError: if the source has broken pictures, no captions where they are needed, and the like.
    """
    root.mkdir(parents=True, exist_ok=True)
    with exclusive(root, partial(busy, root)):
        for left in root.glob(".*.partial"):
            left.unlink()
        source = read()
        content = begun(root, source, plan)
        counter = Counter(time.monotonic(), source.count, tell)
        for start, stop in missing(root, content, source.count):
            fill(root, read, plan, content, start=start, stop=stop, counter=counter)
        if not content["complete"]:
            finish(root, content, source)
        return summary(root, content, counter)


@dataclass
class Counter:
    """Counts what this process encodes."""

    started: float
    count: int | None
    tell: Callable[[Progress], object] | None
    encoded: int = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def add(self, records: int, *, position: int) -> None:
        """Count records up to a position, and tell."""
        self.encoded += records
        if self.tell is not None:
            self.tell(Progress(position, self.count, self.encoded, self.seconds))


def busy(root: Path, process: str) -> CacheError:
    """The error for a cache that another process writes."""
    return CacheError(
        f"{root} is being written by another process ({process}); wait for it, stop it, or use another --out"
    )


def begun(root: Path, source: Source, plan: Plan) -> dict[str, Any]:
    """The manifest of a cache that is there, or of a new one; the empty prompt is stored with it.

    Raises:
        CacheError: if the one that is there was made from something else, or there are other files.
    """
    made_from = origin(source, plan)
    if (root / MANIFEST).exists():
        content = manifest.read(root)
        there = content["made_from"]
        rows = there.get("rows") if plan.rows is None else plan.rows
        if differing := manifest.differences(there, made_from | {"rows": rows}):
            raise CacheError(
                f"{root} holds a cache that was made from something else: {'; '.join(differing)}. Use the same "
                "arguments, or another --out"
            )
    else:
        strangers = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        if strangers:
            raise CacheError(f"{root} holds {', '.join(strangers[:5])} but no {MANIFEST}; use an empty folder as --out")
        content = {
            "format": manifest.FORMAT,
            "complete": False,
            "made_from": made_from | {"rows": plan.rows or rows_by_size(plan)},
            "condition": "label" if plan.prompts is None else "text",
            "classes": list(source.classes),
            "notes": [*source.notes, *plan.notes, *(plan.prompts.notes if plan.prompts is not None else ())],
            "null": {},
            "segments": [],
        }
        manifest.save(root, content)
    if plan.prompts is not None and any(
        damage(root / name, expected) for name, expected in (content["null"] or {NULL: {"bytes": 0}}).items()
    ):
        stored = {key: value.to(stored_type(value, plan)) for key, value in plan.prompts.null().items()}
        content["null"] = {NULL: manifest.put(root / NULL, lambda path: save_file(stored, path), bytes_of(stored))}
        manifest.save(root, content)
    return content


def origin(source: Source, plan: Plan) -> dict[str, Any]:
    """What a cache is made from, as JSON holds it; without the rows of a shard, which may be left to choose."""
    made_from: dict[str, Any] = {
        "source": source.digest,
        "codec": plan.codec_digest if plan.codec is not None else None,
        "text": plan.prompts.digest if plan.prompts is not None else None,
        "teacher": dict(plan.teacher),
        "size": plan.size,
        "channels": plan.channels,
        "dtype": plan.dtype,
    }
    if plan.prompts is not None:
        made_from |= {f"text {key}": value for key, value in asdict(plan.prompts.settings).items()}
    return json.loads(json.dumps(made_from))


def rows_by_size(plan: Plan) -> int:
    """As many records as make a shard of `SHARD_BYTES`."""
    row = {} if plan.prompts is None else plan.prompts.null()
    if plan.codec is not None:
        with torch.no_grad():
            row["x"] = plan.codec.encode(torch.zeros(1, plan.channels, plan.size, plan.size))
    size = sum(value.numel() * torch.finfo(DTYPES[plan.dtype]).bits // 8 for value in row.values())
    return max(1, min(MOST_ROWS, SHARD_BYTES // size))


def missing(root: Path, content: Mapping[str, Any], count: int | None) -> list[tuple[int, int | None]]:
    """Stretches of records whose shards are not there or not whole, as (first, behind the last)."""
    rows, segments = content["made_from"]["rows"], content["segments"]
    spans: list[tuple[int, int | None]] = []
    for index, segment in enumerate(segments):
        if any(damage(root / name, expected) for name, expected in segment["files"].items()):
            first, behind = index * rows, index * rows + segment["records"]
            if spans and spans[-1][1] == first:
                first = spans.pop()[0]
            spans.append((first, behind))
    if not content["complete"]:
        first = len(segments) * rows
        if spans and spans[-1][1] == first:
            first = spans.pop()[0]
        spans.append((first, count))
    return spans


def fill(
    root: Path,
    read: Callable[[], Source],
    plan: Plan,
    content: dict[str, Any],
    *,
    start: int,
    stop: int | None,
    counter: Counter,
) -> None:
    """Write the shards of the records [start, stop)."""
    rows = content["made_from"]["rows"]
    with feed(read, Stretch(start, stop, plan.batch_size, rows), workers=plan.workers) as batches:
        position, segment = start, Segment()
        for batch in batches:
            segment.add(batch, plan)
            position += len(batch)
            counter.add(len(batch), position=position)
            if position % rows == 0:
                settle(root, content, segment, (position - 1) // rows)
                segment = Segment()
        if segment.records:
            settle(root, content, segment, (position - 1) // rows)


def settle(root: Path, content: dict[str, Any], segment: Segment, index: int) -> None:
    """Write the shards of a segment, and then say in the manifest that they are there."""
    files: dict[str, Any] = {}
    for part in PARTS:
        if not segment.lines[part]:
            continue
        stem = root / f"{part}-{index:05d}"
        tensors = {name: torch.stack(rows).contiguous() for name, rows in segment.tensors[part].items()}
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in segment.lines[part])
        shard, text = stem.with_suffix(".safetensors"), stem.with_suffix(".jsonl")
        files[shard.name] = manifest.put(
            shard, lambda path, tensors=tensors: save_file(tensors, path), bytes_of(tensors)
        )
        files[text.name] = manifest.put(
            text, lambda path, lines=lines: path.write_text(lines, encoding="utf-8"), len(lines)
        )
    described = {
        "records": segment.records,
        "rows": {part: len(segment.lines[part]) for part in PARTS},
        "broken": segment.broken,
        "files": files,
    }
    content["segments"][index : index + 1] = [described]
    manifest.save(root, content)


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """What tensors take."""
    return sum(tensor.nbytes for tensor in tensors.values())


def finish(root: Path, content: dict[str, Any], source: Source) -> None:
    """Say that all records are there.

    Raises:
        ValueError: if the source gave fewer than it said, or nothing that can be trained on.
    """
    records = sum(segment["records"] for segment in content["segments"])
    if source.count is not None and records != source.count:
        raise ValueError(f"the source says that it has {source.count:,} records and gave {records:,}; was it changed?")
    if not sum(segment["rows"]["train"] for segment in content["segments"]):
        raise ValueError(
            f"of {records:,} records none is left to train on; give more of them, with pictures that can be read"
        )
    content["complete"] = True
    manifest.save(root, content)


def summary(root: Path, content: Mapping[str, Any], counter: Counter) -> Summary:
    """What became of the source, from the files."""
    segments = content["segments"]
    files = {name: expected for segment in segments for name, expected in segment["files"].items()}
    captions: set[str] = set()
    cut: dict[str, int] = {}
    for name in files:
        for line in lines_of(root / name) if name.endswith(".jsonl") else ():
            captions |= {line["caption"]} if "caption" in line else set()
            for encoder in line.get("cut", ()):
                cut[encoder] = cut.get(encoder, 0) + 1
    return Summary(
        rows={part: sum(segment["rows"][part] for segment in segments) for part in PARTS},
        captions=len(captions),
        broken=[key for segment in segments for key in segment["broken"]],
        cut=cut,
        encoded=counter.encoded,
        seconds=counter.seconds,
        bytes=sum(expected["bytes"] for expected in files.values()),
    )
