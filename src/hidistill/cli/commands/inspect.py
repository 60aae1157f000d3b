"""`hidistill inspect`: what a teacher is, and whether it answers as its folder says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hidistill.foreign.finding import Finding

COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


def inspect(
    *,
    teacher: Path,
    images: Path | None = None,
    cache: Path | None = None,
    json: Path | None = None,
    samples: int = 64,
    size: int | None = None,
    kind: Literal["dit", "sit"] | None = None,
    autoencoder: Literal["pixels"] | Path | None = None,
    allow_pickle: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> int:
    """Describe a teacher, and test whether it answers as its folder says; exit status 1 if a check fails.

    Args:
        teacher: folder of a diffusers pipeline, a checkpoint of DiT or SiT, or a weights file or run folder of ours.
        images: pictures of the kind that it was trained on, with captions or a sub-folder per class.
        cache: latents of such pictures, from hidistill cache; without either, the teacher's own samples are tested.
        json: file that the outcome is written into, too.
        samples: pictures of the test, 16 or more.
        size: side of the pictures in pixels; by default what the teacher was made for.
        kind: which repository's a checkpoint is.
        autoencoder: of a checkpoint: its folder, or pixels if there is none; pictures cannot be shown to it without.
        allow_pickle: whether weights in a pickle may be read, tensors alone.
        device: where the teacher runs, e.g. cuda.
        seed: of the test's noise.
    """
    from hidistill.cli.outcome import wide_console
    from hidistill.recipes.inspecting import inspect_teacher

    found = inspect_teacher(
        teacher=teacher,
        images=images,
        cache=cache,
        samples=samples,
        size=size,
        kind=kind,
        autoencoder=autoencoder,
        allow_pickle=allow_pickle,
        device=device,
        seed=seed,
    )
    if json is not None:
        write(json, found.document())
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    for what, words in found.rows.items():
        table.add_row(what, Text(words))
    console = wide_console()
    console.print(table, highlight=False)
    console.print(f"\nself-test: {found.test}", markup=False, highlight=False, soft_wrap=True)
    console.print(outcome(found.findings), highlight=False)
    return 1 if found.failed else 0


def outcome(findings: "Sequence[Finding]") -> Table:
    """One line per check, and below it what to do."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    for one in findings:
        words = Text(one.found)
        if one.cure:
            words.append(f"\n{one.cure}", style="italic")
        table.add_row(one.check, Text(one.verdict, style=COLORS[one.verdict]), words)
    return table


def write(path: Path, content: dict) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(inspect, args=argv, prog="hidistill inspect")
