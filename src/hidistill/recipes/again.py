"""Evaluates a finished run again: with other counts, steps and scales, or from where teacher and pictures lie now."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from torch import nn

from hidistill.codecs import modules_of
from hidistill.recipes import digits, fashion, images, pipelines
from hidistill.recipes.contestants import best_scale, further
from hidistill.recipes.judging import PARTIAL, Jury, Manner, conclude, refuse_count
from hidistill.recipes.opinions import with_opinions
from hidistill.recipes.tables import keep
from hidistill.seeds import refuse_seed
from hidistill.train.driver import refuse_device
from hidistill.train.folder import FINISHED, locked
from hidistill.types import Teacher

Progress = Callable[[str, int, int], object]


class Bench(NamedTuple):
    """What another evaluation needs to know of a recipe.

    Args:
        build: gives judges, teacher and settings for a run's folder and arguments.
        places: the recipe's arguments that name a place, by the option that overrides them.
    """

    build: Callable[[Path, Mapping[str, Any]], tuple[Jury, Teacher, dict[str, Any]]]
    places: Mapping[str, str]


BENCHES = {
    "fashion.distill": Bench(fashion.bench, {"teacher": "teacher_weights"}),
    "images.distill": Bench(images.bench, {"teacher": "teacher", "images": "images"}),
    "pipelines.distill": Bench(pipelines.bench, {"teacher": "teacher", "cache": "cache"}),
    "digits.smoke": Bench(digits.bench, {"teacher": "teacher"}),
}


def judge(
    run: Path,
    *,
    samples: int | None = None,
    seed: int = 0,
    scales: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0),
    teacher_steps: tuple[int, ...] = (4, 16),
    student_steps: tuple[int, ...] = (1, 2, 4),
    teacher: Path | None = None,
    images: Path | None = None,
    cache: Path | None = None,
    full: bool = False,
    inception: Path | None = None,
    dinov2: Path | None = None,
    also: tuple[Path, ...] = (),
    best_guidance: bool = False,
    labels: Literal["balanced", "uniform"] = "balanced",
    groups: int = 0,
    device: str = "cpu",
    on_progress: Annotated[Progress | None, tyro.conf.Suppress] = None,
) -> None:
    """Evaluate a finished run again and write its report anew; the evaluation before it is kept in RUN/evaluations.

    The table is also written as RUN/evaluation.md and RUN/evaluation.tex. Interrupted, the same command goes on after
    the last row.

    Args:
        run: the run's folder.
        samples: images per contestant, at most as many as there are test pictures; by default as in the run itself.
        seed: of the evaluation's noise.
        scales: guidance scales at which the teacher draws in 50 steps, beside the run's own.
        teacher_steps: step counts of the teacher at the run's own scale.
        student_steps: step counts of the students.
        teacher: where the teacher lies now; by default where it lay when the run was started.
        images: where the folder of pictures lies now; by default where it lay when the run was started.
        cache: where the cache lies now; by default where it lay when the run was started.
        full: further judges: kernel distance, limit of the Fréchet distance, copies of training images, power spectrum.
        inception: weights of the original FID network, for FID, sFID, Inception Score, precision and recall.
        dinov2: folder of a DINOv2 of transformers, for the Fréchet distance in its features.
        also: further runs or weights files of ours, students and teachers, whose rows join the table.
        best_guidance: choose the teacher's scale among `scales` by the first distance on the validation pictures, and
            show that scale and the run's own alone on the test pictures.
        labels: classes in turn, so that all are drawn equally often, or drawn uniformly.
        groups: intervals by leaving out so many groups of images, 20 for example, as `hidistill compare` needs them.
        device: where the networks run, e.g. cuda.
        on_progress: is told contestant, images drawn and images in all.
    """
    refuse_device(device)
    refuse_seed(seed)
    refuse_settings((*teacher_steps, *student_steps), scales, student_steps)
    recipe, arguments = recipe_of(run)
    if not (run / FINISHED).exists():
        raise ValueError(
            f"{run} is not finished; the command that started it goes on with it, and evaluates at its end"
        )
    moved = {option: place for option, place in (("teacher", teacher), ("images", images), ("cache", cache)) if place}
    arguments = located(recipe, arguments, moved)
    judges, net, settings = BENCHES[recipe].build(run, arguments)
    count = samples if samples is not None else min(arguments["evaluate_samples"], len(judges.test.images))
    refuse_count(judges.test, count)
    judges = with_opinions(judges, full=full, inception=inception, dinov2=dinov2, device=device)
    for module in (net, *modules_of(judges.codec).values()):
        assert isinstance(module, nn.Module)
        module.to(device)
    precision, own = settings["precision"], settings["scale"]
    notes = []
    rows = further(also, judges, scale=own, steps=student_steps, precision=precision, device=device)
    if best_guidance:
        chosen, words = best_scale(judges, net, (own, *scales), n=count, seed=seed, precision=precision)
        notes, scales = [words], (chosen,)
    manner = Manner(groups, latency=True, uniform=labels == "uniform", also=rows, notes=notes, on_progress=on_progress)
    with locked(run):
        keep(run)
        if moved:  # the rows of an interrupted evaluation may be another teacher's
            (run / PARTIAL).unlink(missing_ok=True)
        conclude(
            run, judges, net,
            **settings | {
                "samples": count, "seed": seed, "scales": scales,
                "teacher_steps": teacher_steps, "student_steps": student_steps, "manner": manner,
            },
        )  # fmt: skip


def refuse_settings(counts: Sequence[int], scales: Sequence[float], student_steps: Sequence[int]) -> None:
    """Refuse a table without a student, and steps and scales out of range."""
    if not student_steps:
        raise ValueError("no student_steps: the table would have no student; give at least one count, e.g. 1")
    if any(count < 1 for count in counts) or not all(0 <= scale < float("inf") for scale in scales):
        raise ValueError(
            f"steps {counts}, scales {scales}: steps must be at least 1, and scales finite and not negative"
        )


def recipe_of(run: Path) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a run's recipe, which must be one that can be evaluated."""
    path = run / "recipe.json"
    if not path.exists():
        raise ValueError(f"{run} is no run folder: it has no recipe.json; give the folder that `hidistill train` wrote")
    there = json.loads(path.read_text())
    if there["recipe"] not in BENCHES and (teacher := run / "models" / "teacher.safetensors").exists():
        raise ValueError(
            f"{run} trained a teacher and no student; evaluate a run that distills {teacher}, whose table has both, or "
            f"judge the teacher's own pictures: hidistill draw {run} --out DIR --scale 1.5, hidistill score DIR "
            "--reference REAL"
        )
    if there["recipe"] not in BENCHES:
        raise ValueError(f"{run} is a run of {there['recipe']}; runs of {', '.join(BENCHES)} can be evaluated")
    return there["recipe"], there["arguments"]


def located(recipe: str, arguments: Mapping[str, Any], moved: Mapping[str, Path]) -> dict[str, Any]:
    """A run's arguments with the places that `moved` gives by option, all of which exist.

    Raises:
        ValueError: if the recipe has no such argument, or nothing lies at a place.
    """
    places, found = BENCHES[recipe].places, dict(arguments)
    for option, place in moved.items():
        if option not in places:
            known = " and ".join(f"--{name}" for name in places)
            raise ValueError(f"--{option} {place}: a run of {recipe} has no {option} to replace; it takes {known}")
        if not place.exists():
            raise ValueError(f"--{option} {place}: there is no such file or folder; give the place where it lies")
        found[places[option]] = str(place.resolve())
    for option, argument in places.items():
        place = found.get(argument)
        if place is not None and not Path(place).exists():
            raise ValueError(
                f"the run was made with {argument} {place}, where nothing lies now; say with --{option} where it is"
            )
    return found
