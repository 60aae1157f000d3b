"""The learning rate of every method of the table, chosen where nothing is compared."""

from hidistill.experiments.bench import JUDGED, cell, columns
from hidistill.experiments.figure import Curve, Panel, Picture, curves
from hidistill.experiments.studies import table
from hidistill.experiments.study import Grid, Results, Size, Study, Variant

SKETCH, REFINE = (1.25e-4, 2.5e-4, 5e-4, 1e-3), (1e-4, 3e-4, 1e-3)
"""Rates of the student in a trajectory objective, and in a distribution objective."""
SEEDS = (100,)
"""No seed that methods are compared with."""


def grid(size: Size) -> Grid:
    """Every student of the table at every rate; one of both stages at every rate of the second."""
    set_already = {"teacher_steps", "sketch_lr", "lr"}
    students = [each for each in table.STUDY.grids[size].variants if not set_already & each.arguments.keys()]
    variants = []
    for student in students:
        name, rates = ("lr", REFINE) if "refine" in student.arguments else ("sketch_lr", SKETCH)
        if size == "full" and student.name == "sCM":
            rates = (table.GENTLE, *rates)
        variants += [
            Variant(f"{student.name}, {rate:g}", {**student.arguments, name: rate, "part": "valid"}, ())
            for rate in rates
        ]
    return Grid(variants, SEEDS)


def figure(results: Results) -> Picture:
    """Quality over the rate: of trajectory objectives in one and two steps, of what refines in one."""
    caption = (
        "Students of every method over the learning rate of the student, on digits of 8 x 8 pixels: Fréchet distance "
        "in the features of a small classifier (lower is better), of trajectory objectives in one step (left) and two "
        f"(middle), of distribution objectives in one (right; HD over the rate of its second stage). {JUDGED} images a "
        f"point against validation pictures, seeds {', '.join(map(str, results.grid.seeds))}."
    )
    panels = [
        Panel(over_rates(results, part, key), "learning rate", f"Fréchet distance, {steps}", {})
        for part, key, steps in (
            ("sketch_lr", "fd, 1", "1 step"), ("sketch_lr", "fd, 2", "2 steps"), ("lr", "fd, 1", "1 step"),
        )
    ]  # fmt: skip
    return curves(panels, caption)


def over_rates(results: Results, argument: str, key: str) -> list[Curve]:
    """One number of each method whose rate is `argument`, where a run has it."""
    found: dict[str, dict[float, list[float]]] = {}
    for variant in results.grid.variants:
        if argument in variant.arguments and (values := results.of(variant.name, key)):
            method, _, _ = variant.name.rpartition(", ")
            found.setdefault(method, {})[variant.arguments[argument]] = values
    return [Curve(method, list(points), list(points.values())) for method, points in found.items()]


STUDY = Study(
    question="Which learning rate is each method's own, so that the table compares methods and not their settings?",
    setting=(
        "The students of `table`, at its lengths, judged on validation pictures and on noise that no other experiment "
        "draws. Rates of the student's Adam; both stages take the first's rate from the sketch alone."
    ),
    grids={"small": grid("small"), "full": grid("full")},
    cell=cell,
    columns=columns("fd, 1", "fd, 2", "fd effnet, 1", "recall, 1", "high frequency, 1", "agreement, 1", "end, 1"),
    reference="MeanFlow, 0.0005",
    figure=figure,
)
