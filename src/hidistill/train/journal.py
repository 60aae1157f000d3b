"""The journal of a run: one JSON object a line, each step once."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hidistill.files import whole


class Journal:
    """Appends to `metrics.jsonl`.

    Each line has "kind" ("step", "probe" or "event"), "stage", "step" (steps of the stage that are done),
    "global_step" (likewise, over all stages) and "seconds" (what this step or probe took), then its scalars.

    Args:
        path: the file.
        upto: lines of later global steps are dropped: the run is taken up there, and writes them again.
    """

    def __init__(self, path: Path, *, upto: int) -> None:
        kept = [line for line in read(path) if line["global_step"] <= upto]
        with whole(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.probed = max((line["global_step"] for line in kept if line["kind"] == "probe"), default=0)
        self._file = path.open("a")

    def write(
        self, kind: str, *, stage: str, step: int, global_step: int, seconds: float, scalars: Mapping[str, Any]
    ) -> None:
        """Append one line."""
        line = {"kind": kind, "stage": stage, "step": step, "global_step": global_step, "seconds": round(seconds, 6)}
        self._file.write(json.dumps(line | dict(scalars)) + "\n")
        self._file.flush()

    def synchronize(self) -> None:
        """Wait until every line is on the disk, so that no checkpoint is ahead of its journal."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; a last line that was cut off in the writing is left out, a missing file is empty.

    Raises:
        ValueError: if another line is not JSON.
    """
    if not path.exists():
        return []
    lines, found = path.read_text().splitlines(keepends=True), []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number} is not JSON ({error}); remove that line") from error
    return found
