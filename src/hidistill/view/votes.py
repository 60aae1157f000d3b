"""Votes of a blind comparison in a file: one JSON object a line, written when it is cast and never changed."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hidistill.files import synchronize
from hidistill.view.preference import Preference

Choice = Literal["first", "second", "tie"]
CHOICES = ("first", "second", "tie")


@dataclass(frozen=True)
class Vote:
    """One choice between two pictures from the same noise.

    Args:
        first: who drew the one: name, weights, steps, scale.
        second: who drew the other.
        asked: class or prompt.
        seed: of the noise.
        left: which of them stood on the left.
        choice: which was preferred.
        time: when, in UTC.
    """

    first: str
    second: str
    asked: str
    seed: int
    left: Literal["first", "second"]
    choice: Choice
    time: str

    @property
    def pair(self) -> tuple[str, str]:
        """What was compared; votes are counted together only where it is the same."""
        return self.first, self.second


class Votes(NamedTuple):
    """The votes in a file, and the numbers of the lines that are none."""

    votes: Sequence[Vote]
    unreadable: Sequence[int]

    def of(self, pair: tuple[str, str]) -> Preference:
        """The count for one pair."""
        choices = [vote.choice for vote in self.votes if vote.pair == pair]
        return Preference(*(choices.count(choice) for choice in CHOICES))


def now() -> str:
    """The time of a vote."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def refuse_place(path: Path) -> None:
    """Refuse a place where no votes can be kept, before anybody has voted.

    Raises:
        ValueError: naming what is wrong with it.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; votes are kept in a file: give its name, e.g. {path / 'votes.jsonl'}")
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: votes are kept one JSON object a line; give a name that ends in .jsonl")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it, or give another place")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written; give a place that can")


def append(path: Path, vote: Vote) -> None:
    """Add one vote; when this returns it is on the disk. Other processes may vote in the same file."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that was cut off stays what it is, and spoils none after it
                file.write(b"\n")
        file.write((json.dumps(asdict(vote), ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    synchronize(path.parent)


def read(path: Path) -> Votes:
    """The votes in a file, which may be missing; lines that are none are named and left alone."""
    if not path.exists():
        return Votes((), ())
    votes, unreadable = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            votes.append(vote_of(json.loads(line)))
        except ValueError:
            unreadable.append(number)
    return Votes(votes, unreadable)


def vote_of(content: Mapping[str, Any]) -> Vote:
    """A vote from a line's object.

    Raises:
        ValueError: if it is none.
    """
    kinds = {field.name: int if field.name == "seed" else str for field in fields(Vote)}
    if not isinstance(content, dict) or content.keys() != kinds.keys():
        raise ValueError(f"{content!r} is no vote; one has {', '.join(kinds)}")
    if not all(isinstance(content[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"{content!r} is no vote: one of its values is of another type")
    if content["choice"] not in CHOICES or content["left"] not in CHOICES[:2]:
        raise ValueError(f"{content!r} is no vote: choices are {', '.join(CHOICES)}")
    return Vote(**content)
