"""`hidistill draw`: many pictures, over hours and processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro


def draw(
    source: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    count: int = 50_000,
    prompts: Path | None = None,
    each: int = 1,
    labels: Literal["balanced", "uniform"] = "balanced",
    steps: int | None = None,
    sampler: Literal["jump", "renoise", "euler", "heun"] | None = None,
    scale: float | None = None,
    seed: int = 0,
    chunk: int = 64,
    npz: Path | None = None,
    device: str = "cpu",
) -> int:
    """Draw many pictures into a folder, a file each; the same command goes on, several processes may run it at once.

    Args:
        source: a run's folder or a weights file.
        out: the folder; what lies there of the same order is not drawn again.
        count: pictures of a network that knows classes; a larger count later draws the missing ones.
        prompts: a file of prompts, GenEval's list, or a folder in MJHQ-30K's layout, for a network that knows prompts.
        each: pictures per prompt; GenEval has 4.
        labels: classes in turn, or drawn uniformly.
        steps: steps of the sampler; by default 1 for a student and 50 for a teacher.
        sampler: jump or renoise for a student, euler or heun for a teacher.
        scale: guidance scale of a teacher, 1 is no guidance.
        seed: picture i depends on the seed and i alone.
        chunk: pictures that are drawn at once, and that a killed process loses.
        npz: file for all pictures as the ADM evaluator takes them, once all are drawn.
        device: where the network runs.
    """
    from rich.console import Console

    from hidistill.cli import drawing, many
    from hidistill.cli.pace import drawing as pace
    from hidistill.codecs import modules_of
    from hidistill.evaluate import balanced_labels, uniform_labels
    from hidistill.files import facts
    from hidistill.recipes.asking import prompts_at

    drawing.refuse(Path("x.png"), count=count, steps=steps, scale=scale, seed=seed, device=device)
    if each < 1 or chunk < 1:
        raise ValueError(f"--each {each} and --chunk {chunk} must be at least 1")
    weights = drawing.weights_file(source)
    network = drawing.load(weights)
    plan = drawing.plan(network, steps=steps, sampler=sampler, scale=scale)
    asked = None if prompts is None else prompts_at(prompts)
    if (network.encode is None) != (asked is None):
        what = "classes; leave --prompts out" if network.encode is None else "prompts; say --prompts FILE"
        raise ValueError(f"{weights} draws from {what}")
    if asked is None:
        chosen = balanced_labels(count, network.classes) if labels == "balanced" else None
        drawn_labels = uniform_labels(count, network.classes, seed) if chosen is None else chosen
        pictures = many.of_classes(count, drawn_labels.tolist())
    else:
        pictures = many.of_prompts(asked, 1 if asked.kind == "mjhq" else each)
    wanted = {
        "weights": facts(weights)["sha256"], "pictures": len(pictures), "labels": labels if asked is None else None,
        "prompts": asked.digest if asked else None, "seed": seed, **plan._asdict(),
    }  # fmt: skip
    many.order(out, wanted)
    for module in (network.module, *modules_of(network.codec).values()):
        module.to(device)  # type: ignore[union-attr]
    with pace() as tell:
        there = many.fill(out, pictures, network, plan, seed=seed, chunk=chunk, device=device, tell=tell)
    console = Console()
    for note in asked.notes if asked else ():
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    words = f"{there:,} of {len(pictures):,} pictures are in {out}"
    words += "" if there == len(pictures) else "; other processes are at the rest, or the same command goes on"
    console.print(words, markup=False, highlight=False, soft_wrap=True)
    if npz is not None:
        many.batch(out, pictures, npz, labelled=bool(network.classes) and asked is None)
        console.print(f"batch: {npz}", markup=False, highlight=False, soft_wrap=True)
    return 0


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(draw, args=argv, prog="hidistill draw")
