"""Does Hierarchical Distillation work for video? Clips in which something moves, in one step."""

from collections.abc import Mapping
from typing import Any

from hidistill.experiments.figure import Picture, rows
from hidistill.experiments.methods import REFINE_COSTS, SKETCH_COSTS
from hidistill.experiments.study import Column, Grid, Results, Study, Variant
from hidistill.experiments.video import cell

SMALL = {
    "classes": 4, "frames": 4, "side": 10, "fastest": 1, "patch": 5, "tubelet": 2, "dim": 128, "depth": 4, "heads": 4,
    "teacher_steps": 4800, "teacher_lr": 2e-3, "batch": 64, "judged": 200,
}  # fmt: skip
FULL = {
    "classes": 10, "frames": 6, "side": 12, "fastest": 2, "patch": 4, "tubelet": 2, "dim": 128, "depth": 4, "heads": 4,
    "teacher_steps": 12_000, "teacher_lr": 2e-3, "batch": 32, "judged": 400,
}  # fmt: skip
TEACHER_STEPS = (1, 2, 50)


def grid(plan: Mapping[str, Any], *, sketch: int, refine: int, seeds: int) -> Grid:
    """Both stages, and each alone for as long as both cost; the teacher and real clips beside them."""
    shared = {"plan": dict(plan)}
    sketched, refined = SKETCH_COSTS["meanflow"], REFINE_COSTS["dmd+gan", "adaptive"]
    both = sketched * sketch + refined * refine
    trajectory = {"sketch": "meanflow"}
    distribution = {"refine": "dmd+gan", "head": "adaptive"}
    variants = [Variant("real clips of other digits", shared | {"real": True})]
    variants += [
        Variant(f"teacher, {count} step{'s' * (count > 1)}", shared | {"teacher_steps": count})
        for count in TEACHER_STEPS
    ]
    variants += [
        Variant("sketch alone", shared | trajectory | {"sketch_steps": round(both / sketched)}),
        Variant("refine alone", shared | distribution | {"refine_steps": round(both / refined)}),
        Variant("HD", shared | trajectory | distribution | {"sketch_steps": sketch, "refine_steps": refine}),
    ]
    return Grid(variants, range(seeds))


def figure(results: Results) -> Picture:
    """Frames, motion and looks in one step, a row per variant."""
    plan = results.grid.variants[0].arguments["plan"]
    caption = (
        f"Clips of {plan['frames']} frames of {plan['side']} x {plan['side']} pixels in which a digit of "
        f"{plan['classes']} classes moves and bounces, in one step (the teacher in the steps that its row names): "
        "Fréchet distance of frames in the features of a small classifier; distance of the digit's centroid from the "
        "closest motion that real clips may have; change of the digit between frames, its motion undone, 1 being "
        "another digit of its class; Fréchet distance of the centroids' trajectories. Lower is better. "
        f"{plan['judged']} clips a point, {len(results.grid.seeds)} seeds of training and noise with one teacher; bars "
        "are means, the dashed line is HD's."
    )
    return rows(
        results.panels("fd, 1", "motion error, 1", "appearance change, 1", "fd motion, 1"), caption, reference="HD"
    )


STUDY = Study(
    question="Does Hierarchical Distillation carry over to video (an open question of arXiv 2511.08930)?",
    setting=(
        "Digits of 8 x 8 pixels that cross a canvas at constant speed and bounce off its sides, every clip a new "
        "motion; a space-time DiT at guidance 1.5, conditioned on the digit's class. Students begin at the teacher's "
        "weights; each stage alone trains as long as both together cost. Rows of the teacher and of real clips (of "
        "digits that nobody was trained on and that are not those compared with) stand in the columns of one step."
    ),
    grids={
        "small": grid(SMALL, sketch=100, refine=64, seeds=5),
        "full": grid(FULL, sketch=600, refine=380, seeds=5),
    },
    cell=cell,
    columns=(
        Column("fd, 1", "FD frames, 1 step"),
        Column("fd, 2", "FD frames, 2 steps"),
        Column("agreement, 1", "class agreement of frames", "higher"),
        Column("motion error, 1", "motion error, pixels"),
        Column("motion error, 2", "motion error, pixels, 2 steps"),
        Column("appearance change, 1", "change of appearance"),
        Column("appearance change, 2", "change of appearance, 2 steps"),
        Column("fd motion, 1", "FD trajectories, pixels²"),
        Column("high frequency, 1", "high-frequency ratio", ""),
        Column("diversity, 1", "diversity", ""),
        Column("end, 1", "distance to teacher's end"),
    ),
    reference="HD",
    figure=figure,
)
