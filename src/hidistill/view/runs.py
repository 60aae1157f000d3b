"""A run folder on the page: how far it is, its table, curves and samples. Nothing is written to the folder."""

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from hidistill.evaluate import draw
from hidistill.recipes.samplers import student_row
from hidistill.report.folder import Run, read
from hidistill.report.page import title
from hidistill.report.pictures import KINDS, comparison, grid, one_of_each, quantized
from hidistill.report.plots import Plot, losses, probes
from hidistill.report.words import headline, table
from hidistill.seeds import fold_in
from hidistill.train.folder import FINISHED
from hidistill.view.cast import Growing
from hidistill.view.figures import img
from hidistill.view.wishes import Wish, conditions

WATCHED = ("metrics.jsonl", "checkpoints", "evaluation.json", "samples/grids.npz", FINISHED)
QUIET_SECONDS = 120
"""A journal that nobody has written to for so long is of a run that has stopped."""
COLUMNS, TILE = 5, 56


def state_of(folder: Path) -> tuple[tuple[int, int], ...]:
    """What changes whenever the folder does: times and sizes of the files that are shown."""
    found = [folder / name for name in WATCHED]
    return tuple((path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0) for path in found)


def shown(folder: Path, growing: Growing | None = None) -> str:
    """A run folder as HTML.

    Args:
        folder: the run's.
        growing: its student in training, of which samples are drawn as long as the run has none of its own.

    Raises:
        ValueError: if the folder is missing, is no run, or one of its files is broken.
    """
    run = read(folder)
    parts = [f"<h2>{escape(title(run))}</h2>", f'<p role="status">{escape(progress(run))}</p>']
    parts += [f'<p class="hd-note">{escape(text)}</p>' for text in run.notes]
    if run.evaluation:
        parts += [f'<p class="headline">{headline(run.evaluation)}</p>', table(run.evaluation)]
    parts.append(samples(run) if run.grids or growing is None else drafts(growing))
    parts.append(panels("Short evaluations", probes(run.journal)))
    parts.append(panels("Training", losses(run.journal)))
    return f'<div class="hd-run">{"".join(parts)}</div>'


def progress(run: Run) -> str:
    """How far a run is, in words."""
    steps = [line for line in run.journal if line.get("kind") == "step"]
    if not steps:
        return "No step has been recorded yet."
    last = steps[-1]
    place = f"step {last.get('global_step')}, {last.get('step')} of its stage {last.get('stage')!s}"
    if (run.path / FINISHED).exists():
        return f"Finished at {place}."
    quiet = time.time() - (run.path / "metrics.jsonl").stat().st_mtime
    if quiet > QUIET_SECONDS:
        return f"Not finished: {place}; nothing was written for {quiet / 60:,.0f} minutes."
    return f"Running: {place}."


def samples(run: Run) -> str:
    """The report's comparison of samples, narrow enough for a phone."""
    found = {kind: run.grids[kind] for kind in KINDS if kind in run.grids} if run.grids else {}
    if not found or run.grids is None:
        return '<p class="hd-note">Samples are drawn when the run ends.</p>'
    labels = [int(label) for label in run.grids["labels"]]
    classes = [str(name) for name in run.grids.get("classes", ())]
    chosen = one_of_each(labels, limit=2 * COLUMNS, copies=1 if max(labels) else 2 * COLUMNS)
    picked = [labels[i] for i in chosen]
    named = classes if len(classes) > max(labels) else []
    kinds = {kind: images[chosen] for kind, images in found.items()}
    image = comparison(kinds, picked, named, columns=COLUMNS, tile=TILE)
    alt = f"Rows of {', '.join(found)} pictures; a column has one class and, where generated, one noise"
    return f'<h3>Samples</h3><figure class="hd-picture">{img(image, alt)}</figure>'


def drafts(growing: Growing) -> str:
    """One-step samples of the newest checkpoint, each time from the same noise."""
    try:
        found = growing.newest()
    except OSError:  # a run removes its old checkpoints, perhaps while one is read
        found = None
    if found is None:
        return '<p class="hd-note">Samples are drawn from the first checkpoint on.</p>'
    step, student = found
    space = growing.space
    cond, asked = conditions(space, Wish(count=2 * COLUMNS))
    seeds = [fold_in(0, "sample", i) for i in range(len(asked))]
    one = student_row("student", student, steps=1, precision="float32")
    drawn = draw(one.sample, seeds=seeds, cond=cond, shape=space.shape, codec=space.codec)
    image = grid(quantized(drawn.images), columns=COLUMNS, scale=max(1, TILE // drawn.images.shape[-1]))
    said = f"Samples in one step at step {step}"
    return f'<h3>{said}</h3><figure class="hd-picture">{img(image, said + ": " + ", ".join(asked))}</figure>'


def panels(heading: str, drawn: Sequence[Plot]) -> str:
    """Curves beside each other."""
    if not drawn:
        return f'<p class="hd-note">{escape(heading)}: no line in metrics.jsonl yet.</p>'
    figures = "".join(
        f"<figure><h4>{escape(plot.title)}</h4>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in drawn
    )
    return f'<h3>{escape(heading)}</h3><div class="plots">{figures}</div>'
