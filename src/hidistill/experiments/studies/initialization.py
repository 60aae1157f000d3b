"""Does a sketch make distribution matching better, or only earlier, or stable?"""

from hidistill.experiments.bench import JUDGED, cell, columns
from hidistill.experiments.figure import Picture, rows
from hidistill.experiments.methods import RATE, REFINE_COSTS, SKETCH_COSTS
from hidistill.experiments.study import Grid, Results, Study, Variant

HARD = {"lr": 10 * RATE, "every": 1}
"""Ten times the student's rate, and a student that moves as often as its critics."""


def grid(refine: int, sketches: tuple[int, ...], seeds: int, *, others: int) -> Grid:
    """DMD alone behind every start; MeanFlow at every length, the other objectives at one of them."""
    stage = {"refine": "dmd", "refine_steps": refine, "lr": RATE}
    variants = [
        Variant("random weights", stage | {"start": "random"}),
        Variant("teacher's weights", dict(stage)),
    ]
    variants += [
        Variant(f"{word}, {others} steps", stage | {"sketch": name, "sketch_steps": others})
        for name, word in (("consistency", "CM"), ("progressive", "PGD"), ("regression", "regression"))
    ]
    variants += [
        Variant(
            f"MeanFlow, {steps} steps", stage | {"sketch": "meanflow", "sketch_steps": steps},
            ("teacher's weights", f"teacher's weights, cost of {steps} more"),
        )
        for steps in sketches
    ]  # fmt: skip
    for steps in sketches:
        equal = refine + round(SKETCH_COSTS["meanflow"] * steps / REFINE_COSTS["dmd", "none"])
        variants.append(Variant(f"teacher's weights, cost of {steps} more", stage | {"refine_steps": equal}))
    variants += [
        Variant("hard: teacher's weights", stage | HARD),
        Variant(
            f"hard: MeanFlow, {others} steps", stage | HARD | {"sketch": "meanflow", "sketch_steps": others},
            ("hard: teacher's weights",),
        ),
        Variant("hard: random weights", stage | HARD | {"start": "random"}, ("hard: teacher's weights",)),
    ]  # fmt: skip
    return Grid(variants, range(seeds))


def figure(results: Results) -> Picture:
    """Quality in one step and the share of collapsed runs, a row per start."""
    caption = (
        "Distribution matching (DMD, no discriminator) on digits of 8 x 8 pixels behind different starts: Fréchet "
        "distance in a small classifier's features, recall, and whether a run collapsed (recall below 0.1, or a loss "
        f"that is not finite). {JUDGED} images a point, {len(results.grid.seeds)} seeds of training; bars are means, "
        "the dashed line is the start from the teacher's weights."
    )
    return rows(results.panels("fd, 1", "recall, 1", "collapsed"), caption, reference="teacher's weights")


STUDY = Study(
    question=(
        "Does a trajectory-distilled start make distribution matching better and more stable (arXiv 2511.08930: FID "
        "5.49 without, 3.09 with), at equal refine steps and at equal cost?"
    ),
    setting=(
        'Digits of 8 x 8 pixels, a DiT of 0.6 million weights at guidance 1.5, DMD without a discriminator. Rows "cost '
        'of n more" refine longer from the teacher\'s weights, by what a sketch of n steps costs. Rows "hard" have ten '
        "times the student's rate and move it as often as its critics."
    ),
    grids={"small": grid(60, (50, 100, 200), 5, others=100), "full": grid(320, (125, 250, 500), 5, others=500)},
    cell=cell,
    columns=columns("fd, 1", "fd effnet, 1", "fd, 2", "recall, 1", "high frequency, 1", "agreement, 1", "collapsed"),
    reference="teacher's weights",
    figure=figure,
)
