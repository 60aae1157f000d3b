"""Prompts alone: a text file with one per line, or JSON Lines with a field `prompt`, `caption` or `text`."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

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

ENDINGS = (".txt", ".jsonl")


def read(path: Path) -> Source:
    """Every prompt of a file in its order, without the white space around it; keys are the numbers of the lines.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, or a line of it is; says which.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path}: prompts come in files that end in {' or '.join(ENDINGS)}; rename or convert it")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give a file of prompts")
    prompts, notes = from_lines(path) if path.suffix == ".txt" else from_objects(path)
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one per line")
    empty = [number for number, prompt in prompts.items() if not prompt]
    if empty:
        raise ValueError(
            f"{path}: {len(empty):,} of {len(prompts):,} prompts are empty, those of lines {first_five(empty)}; each "
            "line is a prompt, so fill or remove them"
        )
    repeated = {prompt: times for prompt, times in Counter(prompts.values()).items() if times > 1}
    if repeated:
        often, times = max(repeated.items(), key=lambda pair: pair[1])
        notes.append(f"{len(repeated):,} prompts occur more than once and are kept, e.g. {times} times {often!r:.120}")
    return Source(
        records=lambda start: walk(prompts, start),
        count=len(prompts),
        digest=digest(prompts.values()),
        notes=(f"{len(prompts):,} prompts, no pictures", *notes, first_caption(prompts)),
    )


def walk(prompts: Mapping[str, str], start: int) -> Iterator[Record]:
    """The records from an index on."""
    refuse_start(start, len(prompts))
    return (Record(key=number, image=None, caption=prompt) for number, prompt in list(prompts.items())[start:])


def from_lines(path: Path) -> tuple[dict[str, str], list[str]]:
    """Prompts by the number of their line, and notes; a final line break ends the last line."""
    lines = text_of(path).removesuffix("\n").split("\n")
    return {str(number): line.strip() for number, line in enumerate(lines, 1)} if any(lines) else {}, []


def from_objects(path: Path) -> tuple[dict[str, str], list[str]]:
    """Prompts by the number of their line, and notes."""
    rows = json_lines(path)
    fields = dict.fromkeys(name for row in rows for name in row)
    column = caption_field(fields, str(path))
    if not rows:
        return {}, []
    if column is None:
        raise ValueError(
            f"{path} has the fields {', '.join(fields) or '(none)'}; it needs one of prompt, caption and text, so "
            "rename one"
        )
    unused = [name for name in fields if name != column]
    prompts = {
        str(number): as_caption(row.get(column), f"{path}, line {number}: {column}")
        for number, row in enumerate(rows, 1)
    }
    return prompts, [f"fields that are not used: {', '.join(unused)}"] if unused else []
