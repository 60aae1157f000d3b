"""Where numbers come from, and the two files that they go to."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from hidistill.files import whole
from hidistill.scores import markdown

ROOT = Path(__file__).parents[2]


def options(description: str | None, name: str, *, clocks: Sequence[str] = ("wall", "cpu")) -> argparse.ArgumentParser:
    """Options that every script has, and the choice of a clock where there is one."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, prog=f"benchmarks/{name}.py"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench", help="folder of the JSON and Markdown")
    words = "time that passes, or this process's own: for a busy machine and one thread"
    if len(clocks) > 1:
        parser.add_argument("--clock", choices=clocks, default=clocks[0], help=words)
    return parser


def origin(packages: Sequence[str] = ()) -> dict[str, str]:
    """Machine, versions, command and commit."""
    return {
        "machine": machine(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "hidistill", *packages)},
        "commit": commit(),
        "command": " ".join(["python", *(relative(word) for word in sys.argv)]),
    }


def machine() -> str:
    """GPU or CPU by name, and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def relative(word: str) -> str:
    """A path within the repository without what lies above it."""
    path = Path(word).resolve()
    named = Path(word).is_absolute() or path.exists()
    return str(path.relative_to(ROOT)) if named and path.is_relative_to(ROOT) else word


def installed(name: str) -> str:
    """A package's version; 'not installed' for one that is not there."""
    if name == "torch":
        return torch.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit of the working tree, with a mark where it was changed; 'unknown' outside git."""
    try:
        head = git("rev-parse", "--short", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*words: str) -> str:
    """What git answers."""
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as Markdown; columns are those of the first row, numbers to three digits."""
    return markdown([list(rows[0]), *([shown(row.get(name, "")) for name in rows[0]] for row in rows)])


def shown(value: object) -> str:
    """A cell."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def publish(
    name: str,
    sections: Mapping[str, Sequence[Mapping[str, object]]],
    out: Path,
    *,
    packages: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Write NAME.json and NAME.md, and give back the Markdown."""
    source = origin(packages)
    parts = [f"**{title}**\n\n{table(rows)}" for title, rows in sections.items() if rows]
    text = "\n".join([*parts, *(f"- {note}" for note in notes), "", "; ".join(f"{k} {v}" for k, v in source.items())])
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / f"{name}.json") as place:
        place.write_text(json.dumps({"origin": source, "notes": list(notes), "sections": sections}, indent=1) + "\n")
    with whole(out / f"{name}.md") as place:
        place.write_text(text + "\n")
    return text + "\n"
