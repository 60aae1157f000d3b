"""What all sources of records settle alike: which text is a caption, where to begin, what tells one from another."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CAPTIONS = ("text", "caption", "prompt")
"""Names under which captions are found."""


def caption_field(fields: Iterable[str], where: str) -> str | None:
    """The field that holds the captions; None if there is none.

    Raises:
        ValueError: if there are several.
    """
    found = [name for name in CAPTIONS if name in set(fields)]
    if len(found) > 1:
        raise ValueError(
            f"{where} has the fields {' and '.join(found)}, each of which may be the caption; leave one of them"
        )
    return found[0] if found else None


def as_caption(value: object, where: str) -> str:
    """A caption without the white space around it; empty where there is none.

    Raises:
        ValueError: if it is not one string.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {value!r:.80}; a caption is one string, so store one")
    return value.strip()


def text_of(path: Path) -> str:
    """A text file as UTF-8.

    Raises:
        ValueError: if it is none.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def json_lines(path: Path) -> list[dict[str, Any]]:
    """One JSON object per line; line i + 1 is at index i.

    Raises:
        ValueError: if a line is none; says which.
    """
    text = text_of(path)
    if not text.strip():
        return []
    rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if not line.strip():
            raise ValueError(f"{path}, line {number}, is empty; each line is one JSON object, so remove it")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is no JSON ({error}); write one object per line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, is {row!r:.80}; each line is one JSON object, so write {{...}}")
        rows.append(row)
    return rows


def refuse_start(start: int, count: int | None) -> None:
    """Raise if a source cannot begin there."""
    if start < 0 or (count is not None and start > count):
        allowed = "0 or more" if count is None else f"0 to {count}"
        raise ValueError(
            f"records from {start} on: this source begins at {allowed}; a larger number belongs to another source, "
            "so compare their digests"
        )


def digest(parts: Iterable[object]) -> str:
    """A SHA-256 over what can be written as JSON, order included."""
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, ensure_ascii=True).encode() + b"\n")
    return total.hexdigest()


def first_five(items: Sequence[object]) -> str:
    """The first five, and how many more there are."""
    more = f" and {len(items) - 5:,} more" if len(items) > 5 else ""
    return ", ".join(str(item) for item in items[:5]) + more


def first_caption(captions: Mapping[str, str]) -> str:
    """A note that shows the first caption, so that a person sees at once whether it is one."""
    key, caption = next(iter(captions.items()))
    shown = caption if len(caption) <= 120 else caption[:120] + "..."
    return f"first caption ({key}): {shown!r}"
