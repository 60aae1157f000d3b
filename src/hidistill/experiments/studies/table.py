"""The paper's main table in small: every method at equal cost of training, judged in one and two steps."""

from hidistill.experiments.bench import JUDGED, cell, columns
from hidistill.experiments.figure import Picture, rows
from hidistill.experiments.methods import FADE, REFINE_COSTS, SKETCH_COSTS, Distribution, Head, Trajectory
from hidistill.experiments.study import Grid, Results, Study, Variant

TEACHER_STEPS = (1, 2, 4, 16, 50, 250)
ALONE: tuple[tuple[str, Distribution, Head], ...] = (
    ("DMD", "dmd", "none"),
    ("DMD2", "dmd2", "convolutional"),
    ("GAN alone", "gan", "per_token"),
)
GENTLE = 3e-5
"""Learning rate of sCM's second row at size full, where that of short runs diverges."""
NAMES: dict[Trajectory, str] = {
    "consistency": "CM",
    "sCM": "sCM",
    "progressive": "PGD",
    "LCM": "LCM",
    "meanflow": "MeanFlow",
    "meanflow from data": "MeanFlow, from data",
    "regression": "regression on pairs",
}


def grid(sketch: int, refine: int, seeds: int, *, gentle: float | None = None) -> Grid:
    """All methods; those of one stage train as long as both stages together cost, counted in products.

    Args:
        sketch: steps of HD's first stage.
        refine: steps of its second.
        seeds: how many.
        gentle: another learning rate of sCM, a row more; None for none.
    """
    kept = SKETCH_COSTS["meanflow"] / 2
    both = SKETCH_COSTS["meanflow"] * sketch + (REFINE_COSTS["dmd+gan", "adaptive"] + kept) * refine
    variants = [
        Variant(f"teacher, {count} step{'s' * (count > 1)}", {"teacher_steps": count}) for count in TEACHER_STEPS
    ]
    for name, word in NAMES.items():
        trained = {"sketch": name, "sketch_steps": round(both / SKETCH_COSTS[name])}
        variants.append(Variant(word, trained))
        if name == "sCM" and gentle is not None:
            variants.append(Variant(f"sCM, rate {gentle:g}", trained | {"sketch_lr": gentle}))
    for word, method, head in ALONE:
        length = round(both / REFINE_COSTS[method, head])
        variants.append(Variant(word, {"refine": method, "refine_steps": length, "head": head}))
    stages = {
        "sketch": "meanflow", "sketch_steps": sketch, "refine": "dmd+gan", "refine_steps": refine, "keep": FADE,
    }  # fmt: skip
    variants += [
        Variant("HD, GAP", stages | {"head": "pooled"}),
        Variant("HD", stages | {"head": "adaptive"}),
    ]
    return Grid(variants, range(seeds))


def figure(results: Results) -> Picture:
    """Distance, recall and detail in one step, a row per method."""
    caption = (
        "Methods on digits of 8 x 8 pixels in one step (the teacher in the steps that its row names): Fréchet distance "
        "in the features of a small classifier (lower is better), recall (higher is better) and energy at high "
        f"frequencies over that of real digits (1 is right). {JUDGED} images a point, {len(results.grid.seeds)} seeds "
        "of training with one teacher; bars are means, the dashed line is HD's."
    )
    return rows(results.panels("fd, 1", "recall, 1", "high frequency, 1"), caption, reference="HD")


STUDY = Study(
    question="How do the methods of the field compare as one-step and two-step students of one teacher?",
    setting=(
        "A step is one network pass of a student and two of the guided teacher. Digits of 8 x 8 pixels, a DiT of 0.6 "
        "million weights at guidance 1.5 (but MeanFlow from data has none); every student begins at the teacher's "
        "weights, and methods of one stage train as long as both stages of HD cost, counted in products (regression's "
        "pairs come on top), each at the learning rate with the smallest distance in the classifier's features in one "
        "step in `learning-rates` at size small (HD and GAP share one), or at the one that its row names. DMD is "
        "without its regression term; HD keeps a fiftieth of MeanFlow's loss in refine, of whose steps each second "
        "one moves the student. Two steps are jumps for MeanFlow and HD, which learn every interval, and re-noised "
        "for the others, which learn ends alone. The teacher's rows stand in the columns of one step, whatever their "
        "own count. HD and GAP share their sketch, whose CPU seconds are in the row that came to it first."
    ),
    grids={"small": grid(60, 40, 5), "full": grid(500, 320, 5, gentle=GENTLE)},
    cell=cell,
    columns=columns(
        "fd, 1",
        "fd, 2",
        "fd effnet, 1",
        "fd effnet, 2",
        "recall, 1",
        "diversity, 1",
        "high frequency, 1",
        "agreement, 1",
        "end, 1",
    ),
    reference="HD",
    figure=figure,
)
