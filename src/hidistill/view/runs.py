"""A run folder on the page: how far it is, its table, curves and samples. Nothing is written to the folder."""

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from hidistill.report.folder import Run, read
from hidistill.report.page import title
from hidistill.report.pictures import KINDS, comparison, one_of_each
from hidistill.report.plots import Plot, losses, probes
from hidistill.report.words import headline, table
from hidistill.train.folder import FINISHED
from hidistill.view.figures import img

WATCHED = ("metrics.jsonl", "evaluation.json", "samples/grids.npz", FINISHED)
QUIET_SECONDS = 120
"""A journal that nobody has written to for so long is of a run that has stopped."""
COLUMNS, TILE = 5, 56


def state_of(folder: Path) -> tuple[tuple[int, int], ...]:
    """What changes whenever the folder does: times and sizes of the files that are shown."""
    found = [folder / name for name in WATCHED]
    return tuple((path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0) for path in found)


def shown(folder: Path) -> str:
    """A run folder as HTML.

    Raises:
        ValueError: if the folder is missing, is no run, or one of its files is broken.
    """
    run = read(folder)
    parts = [f"<h2>{escape(title(run))}</h2>", f'<p role="status">{escape(progress(run))}</p>']
    parts += [f'<p class="hd-note">{escape(text)}</p>' for text in run.notes]
    if run.evaluation:
        parts += [f'<p class="headline">{headline(run.evaluation)}</p>', table(run.evaluation)]
    parts.append(samples(run))
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


def panels(heading: str, drawn: Sequence[Plot]) -> str:
    """Curves beside each other."""
    if not drawn:
        return f'<p class="hd-note">{escape(heading)}: no line in metrics.jsonl yet.</p>'
    figures = "".join(
        f"<figure><h4>{escape(plot.title)}</h4>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in drawn
    )
    return f'<h3>{escape(heading)}</h3><div class="plots">{figures}</div>'
