"""Does attention pooling (AWD) make a better discriminator than averaging (GAP), and which of its parts do?"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hidistill.experiments import bench, planted
from hidistill.experiments.figure import Picture, rows
from hidistill.experiments.methods import RATE, Method
from hidistill.experiments.study import Column, Grid, Results, Study, Variant

HEADS = {"pooled": "GAP", "convolutional": "convolution", "per_token": "per token", "adaptive": "AWD"}
PARTS: dict[str, dict[str, Any]] = {
    "1 query": {"queries": 1},
    "8 queries": {"queries": 8},
    "queries of size 1": {"query_std": 1.0},
    "no spectral norm": {"bound": False},
    "no LayerNorm": {"norm": False},
    "time in the query": {"sinusoids": 64},
    "time and class in the query": {"sinusoids": 64, "classes": 10},
    "one head for all blocks": {"shared": True},
    "last block alone": {"layers": [-1]},
}
DEFECT = 6
"""Pixels of a side: a twenty-second of the picture."""


def cell(*, seed: int, folder: Path, planted_steps: int = 0, **method: Any) -> Mapping[str, float]:  # noqa: ANN401
    """A student refined with a head, or a head alone against planted defects."""
    if not planted_steps:
        return bench.cell(seed=seed, folder=folder, **method)
    return planted.measured(Method(**method), side=DEFECT, length=planted_steps, seed=seed)


def grid(sketch: int, refine: int, planted_steps: int, seeds: int, *, playing: Collection[str]) -> Grid:
    """Heads of equal weights in the game, AWD's parts in the game, and both against planted defects.

    Args:
        sketch: steps, the same for all.
        refine: steps.
        planted_steps: of the heads against planted defects.
        seeds: how many.
        playing: which of AWD's parts are in the game too.
    """
    base = {"sketch": "meanflow", "sketch_steps": sketch, "refine_steps": refine, "lr": RATE}
    game = base | {"refine": "dmd+gan"}
    variants = [Variant("no head", base | {"refine": "dmd"})]
    variants += [Variant(word, game | {"head": head}) for head, word in HEADS.items()]
    parts = {name: resolved(options) for name, options in PARTS.items()}
    variants += [
        Variant(f"AWD, {name}", game | {"head": "adaptive", "parts": part}, ("AWD", "GAP"))
        for name, part in parts.items()
        if name in playing
    ]
    alone = {"refine": "gan", "planted_steps": planted_steps}
    variants += [Variant(f"planted: {word}", alone | {"head": head}, ("planted: GAP",)) for head, word in HEADS.items()]
    variants += [
        Variant(f"planted: AWD, {name}", alone | {"head": "adaptive", "parts": part}, ("planted: AWD",))
        for name, part in parts.items()
    ]
    return Grid(variants, range(seeds))


def resolved(options: dict[str, Any]) -> dict[str, Any]:
    """Options whose layer -1 is the last of the three that both teachers tap."""
    return options | ({"layers": [2]} if "layers" in options else {})


def figure(results: Results) -> Picture:
    """Quality of students, and what heads see of planted defects."""
    caption = (
        "Discriminators of equal weights: one-step students on digits of 8 x 8 pixels (upper rows), and heads alone "
        f"that tell pictures of Fashion-MNIST from such with a turned square of {DEFECT} x {DEFECT} pixels (lower "
        "rows; a gradient ratio of 1 looks everywhere alike). "
        f"{len(results.grid.seeds)} seeds; bars are means, the dashed line is GAP's."
    )
    return rows(results.panels("fd, 1", "fd effnet, 1", "recall, 1", "accuracy", "focus"), caption, reference="GAP")


STUDY = Study(
    question=(
        "Is attention pooling (AWD) better than average pooling (GAP) (arXiv 2511.08930: FID 3.09 to 2.26), where, and "
        "through which of its parts?"
    ),
    setting=(
        "Upper rows: digits of 8 x 8 pixels, both stages, heads of equal weights (but for AWD's parts) on the "
        "teacher's 16 tokens; all give gradients of one size, so that their direction alone is compared. "
        'Rows "planted": heads alone on features of the bundled Fashion-MNIST teacher (49 tokens), real pictures '
        f"against real ones with a turned square of {DEFECT} x {DEFECT} pixels."
    ),
    grids={
        "small": grid(80, 60, 60, 5, playing=("time in the query", "queries of size 1")),
        "full": grid(500, 400, 600, 5, playing=PARTS),
    },
    cell=cell,
    columns=(
        *bench.columns("fd, 1", "fd effnet, 1", "recall, 1", "high frequency, 1"),
        Column("entropy", "attention entropy", ""),
        Column("accuracy", "accuracy on planted defects", "higher"),
        Column("focus", "gradient at the defect over its area", "higher"),
    ),
    reference="GAP",
    figure=figure,
)
