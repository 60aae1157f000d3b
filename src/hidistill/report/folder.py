"""A run folder, read into memory; parts that are missing are None."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Args:
        path: the folder.
        notes: what a reader should know about files that were found in part.
    """

    path: Path
    recipe: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    journal: list[dict[str, Any]] = field(default_factory=list)
    grids: Arrays | None = None
    attention: Arrays | None = None
    notes: list[str] = field(default_factory=list)


def read(path: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: if the folder is missing or one of its files is broken.
    """
    if not path.is_dir():
        raise ValueError(
            f"run folder {path} is not a folder; a report needs one that a recipe has written; check the path"
        )
    if not any((path / name).exists() for name in ("recipe.json", "metrics.jsonl", "evaluation.json")):
        raise ValueError(
            f"{path} is no run folder: it has neither recipe.json nor metrics.jsonl nor evaluation.json; give the "
            "folder that `hidistill train` wrote"
        )
    journal, notes = lines(path / "metrics.jsonl")
    return Run(
        path=path,
        recipe=document(path / "recipe.json"),
        environment=document(path / "environment.json"),
        evaluation=document(path / "evaluation.json"),
        journal=journal,
        grids=arrays(path / "samples" / "grids.npz"),
        attention=arrays(path / "samples" / "attention.npz"),
        notes=notes,
    )


def document(path: Path) -> dict[str, Any] | None:
    """One JSON object, or None if there is no such file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); it should hold one object; delete it or run again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it should hold one object; delete it or run again")
    return content


def lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A journal's lines in order of their step, and notes about what was left out.

    A killed run can leave half a line at the end, and a resumed one repeats the steps since its checkpoint: of
    repeated steps the last counts.
    """
    if not path.exists():
        return [], []
    texts = [text for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()]
    kept: dict[tuple[object, ...], dict[str, Any]] = {}
    notes: list[str] = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise ValueError(
                    f"{path}, line {number} is not JSON ({error}); each line holds one object; repair or delete it"
                ) from error
            notes.append("The journal's last line is cut off, as a killed run leaves it; it was left out.")
            continue
        place = (number,) if line.get("kind") == "event" else (line.get("stage"), line.get("global_step"))
        kept[line.get("kind"), *place] = line
    return sorted(kept.values(), key=lambda line: line.get("global_step") or 0), notes


def arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """All arrays of an npz file, or None if there is no such file."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        raise ValueError(
            f"{path} is no readable npz file ({error}); it should hold arrays; delete it or run again"
        ) from error
