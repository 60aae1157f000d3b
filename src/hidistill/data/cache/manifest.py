"""What a cache says of itself, and whether its files are those that were written."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hidistill import __version__
from hidistill.files import facts, whole

FORMAT = 1
MANIFEST = "manifest.json"
NULL = "null.safetensors"
PARTS = ("train", "valid", "test")
WORDS = {
    "source": "the pictures or prompts",
    "codec": "the autoencoder",
    "text": "the text encoders",
    "teacher": "the teacher's pipeline and family",
    "size": "the size",
    "dtype": "the type of the stored numbers",
    "rows": "the rows of a shard",
}
"""What a cache is made from; further keys speak for themselves."""


class CacheError(ValueError):
    """A cache that is missing, unfinished, damaged, or made from something else."""


def read(root: Path) -> dict[str, Any]:
    """The manifest.

    Raises:
        CacheError: if there is none, or it is damaged or of a newer format.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise CacheError(f"{root} is no cache: it has no {MANIFEST}; make one with `hidistill cache --out {root}`")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path} is damaged ({error!r}); make the cache again in an empty folder") from error
    if version != FORMAT:
        raise CacheError(
            f"{root} is of format {version}; hidistill {__version__} reads format {FORMAT}: install the version that "
            "wrote it, or make the cache again"
        )
    return found


def save(root: Path, content: Mapping[str, Any]) -> None:
    """Replace the manifest."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    put(root / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"), len(text))


def put(path: Path, write: Callable[[Path], object], size: int) -> dict[str, Any]:
    """Write a file that appears whole or not at all; its size and sum.

    Args:
        path: the file.
        write: writes to a path that it is given.
        size: about how many bytes it writes, for the message.

    Raises:
        OSError: if the disk is full or refuses.
    """
    try:
        with whole(path) as partial:
            write(partial)
            found = facts(partial)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            f"cannot write {path} ({size:,} bytes, {free:,} are free there): {error}. What was written before is "
            "intact: free some space, then run the same command again"
        ) from error
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between what two caches are made from, in words."""
    return [
        f"{WORDS.get(name, name)}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in dict.fromkeys((*there, *here))
        if there.get(name) != here.get(name)
    ]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """What is known of a shard's rows beside tensors."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
