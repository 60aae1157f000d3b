"""Files that appear whole or not at all, and are afterwards those that were written; folders with one writer."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def exclusive(folder: Path, refusal: Callable[[str], Exception]) -> Iterator[None]:
    """Keep other processes out of a folder; the system lets go of it when the process ends, however it ends.

    Args:
        folder: what is kept; its file `.lock` says who is in it.
        refusal: the error to raise if another process is in it, given that one's number.
    """
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise refusal(file.read().strip() or "unknown") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Within, a path beside `path` to write to; at the end it takes its place, once all of it is on the disk.

    If anything is raised, what was written goes, and what was at `path` stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.chmod(0o644)  # safetensors makes its files readable by their owner alone
        synchronize(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    synchronize(path.parent)


def synchronize(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def facts(path: Path) -> dict[str, Any]:
    """Size and sum of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def damage(path: Path, expected: Mapping[str, Any]) -> str:
    """In words what is wrong with a file; empty if its facts are those expected."""
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != expected["bytes"]:
        return f"{path} has {path.stat().st_size:,} bytes, {expected['bytes']:,} were written"
    return "" if facts(path) == expected else f"{path} is not what was written (its sha256 differs)"
