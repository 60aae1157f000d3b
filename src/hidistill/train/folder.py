"""The run folder: its lock, what it says about the run's recipe and about the machine."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch

from hidistill import __version__
from hidistill.files import exclusive, whole
from hidistill.train.distributed.work import Work
from hidistill.train.precision import products

FINISHED = "finished"
ABSENT = "(absent)"
OVER = "A stage that has ended cannot be made longer or shorter, for its learning rate and its averages ended with it"
ALONE = Work()
DECIDES_BITS = ("torch", "machine", "threads", "device", "processes", "passes")
"""Lines of the environment on which the last bits of a result depend."""


def locked(folder: Path) -> AbstractContextManager[None]:
    """Keep other runs out of a folder; see `exclusive`.

    Raises:
        ValueError: on entering, if another run is in the folder.
    """

    def busy(process: str) -> ValueError:
        return ValueError(
            f"{folder} is in use by another run (process {process}); one folder holds one run: wait for it, stop it, "
            "or use another --out"
        )

    return exclusive(folder, busy)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def agree(folder: Path, *, recipe: str, arguments: Mapping[str, object], extendable: tuple[str, ...]) -> None:
    """Write `recipe.json`, or make sure that the folder's run is of this recipe and these arguments.

    Raises:
        ValueError: if it is another run's folder, or a finished run's; names each argument that differs.
    """
    path, plain = folder / "recipe.json", plainly(arguments)
    if not path.exists():
        strangers = [name for name in ("checkpoints", "metrics.jsonl") if (folder / name).exists()]
        if strangers:
            raise ValueError(f"{folder} has {' and '.join(strangers)} but no recipe.json; use an empty folder as --out")
        write_json(path, {"recipe": recipe, "arguments": plain, "version": __version__})
        return
    there = json.loads(path.read_text())
    if there["recipe"] != recipe:
        raise ValueError(f"{folder} holds a run of {there['recipe']}, this is {recipe}; use another --out")
    differing = differences(
        there["arguments"], plain, [name for name in arguments if isinstance(arguments[name], Path)]
    )
    if differing.keys() - set(extendable):
        options = [name for name in extendable if name in plain]
        allowed = f"only {' and '.join(options)} may change, while the stage runs" if options else "none may change"
        listed = "; ".join(words for name, words in differing.items() if name not in extendable)
        raise ValueError(
            f"{folder} holds a run of {recipe} with other arguments: {listed}. Use the same arguments ({allowed}), or "
            "another --out"
        )
    if differing and (folder / FINISHED).exists():
        raise ValueError(
            f"{folder} holds this run, finished: {'; '.join(differing.values())}. {OVER}: give the same arguments, or "
            "another --out to start anew"
        )


def renew(folder: Path, arguments: Mapping[str, object]) -> None:
    """Write down the arguments with which a run goes on."""
    path, plain = folder / "recipe.json", plainly(arguments)
    there = json.loads(path.read_text())
    if there["arguments"] != plain:
        write_json(path, there | {"arguments": plain})


def plainly(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Arguments as JSON holds them; paths are absolute, so that the run can be evaluated from any folder."""

    def text(value: object) -> str:
        return str(value.resolve() if isinstance(value, Path) else value)

    return json.loads(json.dumps(dict(arguments), default=text))


def differences(there: Mapping[str, Any], here: Mapping[str, Any], paths: Sequence[str]) -> dict[str, str]:
    """What differs between two runs' arguments, in words, by name; `paths` are those that name a file or folder."""
    words = {}
    for name in sorted(there.keys() | here.keys()):
        theirs, ours = there.get(name, ABSENT), here.get(name, ABSENT)
        # Folders of earlier versions hold paths as they were typed.
        same = str(Path(theirs).resolve()) == ours if name in paths and isinstance(theirs, str) else theirs == ours
        if not same:
            words[name] = f"{name} is {theirs!r} there and {ours!r} here"
    return words


def environment(device: str, work: Work) -> dict[str, Any]:
    """What the numbers of a run may depend on beside its recipe."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "hidistill": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": work.ranks.count,
        "passes": work.passes,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "float32_products": products(),
        "git": git_state(Path(__file__).parent),
    }


def record_environment(folder: Path, device: str, work: Work = ALONE) -> str:
    """Write `environment.json`, or add this start to it; what differs from the first start and may change bits."""
    path, now = folder / "environment.json", environment(device, work)
    if not path.exists():
        write_json(path, now | {"resumed": []})
        return ""
    first = json.loads(path.read_text())
    write_json(path, first | {"resumed": [*first["resumed"], now]})
    # Folders of earlier versions do not say everything.
    changed = [
        f"{name} was {first[name]} and is {now[name]}"
        for name in DECIDES_BITS
        if name in first and first[name] != now[name]
    ]
    return f"{'; '.join(changed)}: the last bits of the result may differ" if changed else ""


def git_state(code: Path) -> dict[str, Any] | None:
    """Commit of the code, and whether it was changed since; None if the code is not in a git checkout."""

    def git(*command: str) -> str:
        return subprocess.run(
            ("git", "-C", str(code), *command), capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", ".."))}
    except (OSError, subprocess.CalledProcessError):
        return None
