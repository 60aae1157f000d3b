"""What the paper leaves open: one stage in place of two, and alignment without an adversary."""

from hidistill.experiments.bench import JUDGED, cell, columns
from hidistill.experiments.figure import Picture, rows
from hidistill.experiments.methods import RATE, REFINE_COSTS, SKETCH_COSTS
from hidistill.experiments.study import Grid, Results, Study, Variant

CRITICS = 6.1
"""Forward passes that a step of fake score and discriminator is worth."""
ALIGNMENTS = {
    "energy": "energy distance",
    "energy_tokens": "energy distance by token",
    "sliced": "sliced Wasserstein",
    "moments": "means and covariances",
    "drift": "drift",
}


def grid(sketch: int, refine: int, seeds: int) -> Grid:
    """Two stages against one of equal cost, and every alignment in the discriminator's place."""
    stages = {"sketch": "meanflow", "sketch_steps": sketch, "refine_steps": refine, "lr": RATE}
    game = REFINE_COSTS["dmd+gan", "adaptive"]
    # One step of the blend moves the student each time: twice its half step, and a sketch step.
    blend = 2 * game - CRITICS + SKETCH_COSTS["meanflow"]
    blended = round((SKETCH_COSTS["meanflow"] * sketch + game * refine) / blend)
    variants = [
        Variant("two stages, AWD", stages | {"refine": "dmd+gan", "head": "adaptive"}),
        Variant(
            "one stage, AWD", {"refine": "blend", "refine_steps": blended, "head": "adaptive", "every": 1, "lr": RATE}
        ),
        Variant("two stages, AWD, one draw", stages | {"refine": "dmd+gan", "head": "adaptive", "reuse": True}),
        Variant("two stages, no alignment", stages | {"refine": "dmd"}),
    ]
    variants += [
        Variant(f"two stages, {word}", stages | {"refine": "dmd+align", "align": name})
        for name, word in ALIGNMENTS.items()
    ]
    return Grid(variants, range(seeds))


def figure(results: Results) -> Picture:
    """Quality in one step, a row per variant."""
    caption = (
        "One stage whose weights move from sketch to refine against two stages of equal cost, and five distances of "
        "feature sets in place of AWD, on digits of 8 x 8 pixels in one step: Fréchet distance in a small classifier's "
        f"features, recall, energy at high frequencies over that of real digits. {JUDGED} images a point, "
        f"{len(results.grid.seeds)} seeds; bars are means, the dashed line is the two-stage method with AWD."
    )
    return rows(results.panels("fd, 1", "recall, 1", "high frequency, 1"), caption, reference="two stages, AWD")


STUDY = Study(
    question=(
        "Can one end-to-end stage replace two, and can features be aligned without an adversary (the open questions "
        "of arXiv 2511.08930)?"
    ),
    setting=(
        'Digits of 8 x 8 pixels, a DiT of 0.6 million weights at guidance 1.5. "One stage" moves from MeanFlow to '
        "DMD and AWD over its first half, keeping a fiftieth of the former, with a student that moves at every step, "
        'and is as long as both stages cost. "One draw" lets the critics take the student\'s samples of the same step.'
    ),
    grids={"small": grid(80, 60, 5), "full": grid(500, 320, 5)},
    cell=cell,
    columns=columns("fd, 1", "fd, 2", "fd effnet, 1", "recall, 1", "high frequency, 1", "agreement, 1", "collapsed"),
    reference="two stages, AWD",
    figure=figure,
)
