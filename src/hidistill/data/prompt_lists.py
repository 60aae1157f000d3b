"""Prompts with what they are judged by: the layout of MJHQ-30K, and lists as GenEval has them.

MJHQ-30K is a folder with `meta_data.json`, an object from each picture's name to its `category` and `prompt`, and
pictures in a sub-folder per category. GenEval's list is JSON Lines with `tag`, `include` and `prompt`; its own
evaluator reads pictures from `00000/samples/0000.png` beside `00000/metadata.jsonl`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidistill.pictures import endings
from hidistill.records import digest, first_five, json_lines

META = "meta_data.json"
CATEGORIES, EACH = 10, 3000
"""Of MJHQ-30K."""


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Args:
        key: the name of its picture, without an ending.
        prompt: the words.
        category: what it is counted under; empty if it is counted with all only.
        real: a real picture of it; None if there is none.
        record: all that the list says of it.
    """

    key: str
    prompt: str
    category: str = ""
    real: Path | None = None
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PromptList:
    """Prompts in their order.

    Args:
        items: the prompts.
        kind: "mjhq", "geneval" or "plain".
        digest: tells one list from another.
        notes: what a person should know.
    """

    items: Sequence[Asked]
    kind: str
    digest: str
    notes: Sequence[str] = ()


def read(path: Path) -> PromptList | None:
    """The prompts of a folder in MJHQ-30K's layout or of GenEval's list; None for other files.

    Raises:
        FileNotFoundError: if nothing lies there.
        ValueError: if it is damaged; says which line or entry.
    """
    if path.is_dir():
        return mjhq(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no prompts {path}; give a file of prompts, or a folder with {META}")
    if path.suffix == ".jsonl":
        rows = json_lines(path)
        if rows and all("tag" in row for row in rows):
            return geneval(path, rows)
    return None


def mjhq(folder: Path) -> PromptList:
    """A folder in the layout of MJHQ-30K; a part of it is no MJHQ-30K, which the notes say."""
    meta = folder / META
    if not meta.is_file():
        raise ValueError(f"{folder} has no {META}; a folder of prompts is in the layout of MJHQ-30K, else give a file")
    try:
        content = json.loads(meta.read_text(encoding="utf-8"))
        entries = {key: (str(row["category"]), str(row["prompt"]).strip()) for key, row in content.items()}
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{meta} is not in MJHQ-30K's layout ({type(error).__name__}: {error}); it is one JSON object from names "
            "to objects with category and prompt"
        ) from error
    empty = [key for key, (_, prompt) in entries.items() if not prompt]
    if empty or not entries:
        raise ValueError(f"{meta} has {len(empty)} empty prompts of {len(entries)}: {first_five(empty)}; fill them")
    readable = endings()
    pictures = {p.stem: p for p in sorted(folder.rglob("*")) if p.suffix.lower() in readable and p.is_file()}
    items = [Asked(key, prompt, category, pictures.get(key)) for key, (category, prompt) in entries.items()]
    counts = {category: sum(item.category == category for item in items) for category in {i.category for i in items}}
    whole = len(counts) == CATEGORIES and set(counts.values()) == {EACH}
    words = f"{len(items):,} prompts of {len(counts)} categories: this is not MJHQ-30K, only its layout"
    notes = [] if whole else [words]
    lost = [item.key for item in items if item.real is None]
    if lost and len(lost) < len(items):
        raise ValueError(f"{folder} lacks the pictures of {len(lost):,} prompts: {first_five(lost)}; copy it again")
    return PromptList(items, "mjhq", digest([[i.key, i.category, i.prompt] for i in items]), notes)


def geneval(path: Path, rows: Sequence[Mapping[str, Any]]) -> PromptList:
    """GenEval's list: the tag is the category."""
    wrong = [i for i, row in enumerate(rows, 1) if not isinstance(row.get("prompt"), str) or not row["prompt"].strip()]
    if wrong:
        raise ValueError(f"{path}: lines {first_five(wrong)} have no prompt; each has tag, include and prompt")
    items = [Asked(f"{i:05}", row["prompt"].strip(), str(row["tag"]), None, row) for i, row in enumerate(rows)]
    return PromptList(items, "geneval", digest([dict(row) for row in rows]))
