"""Pictures to compare methods on: digits of 8 x 8 pixels, and a small DiT that draws them.

All cells of an experiment share one teacher, and draw from the same noise; seeds are of the student's training.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hidistill.codecs import Pixels
from hidistill.data.digits import digits
from hidistill.discriminators.adaptive import Adaptive, normalized_entropy
from hidistill.evaluate import Contestant, balanced_labels, draw, seeds_of
from hidistill.evaluate import judged as scores
from hidistill.experiments.methods import SCALE, Method, head_of, rate_of, stages
from hidistill.experiments.study import Column
from hidistill.experiments.toys import once
from hidistill.files import whole
from hidistill.guidance import Guided
from hidistill.metrics.classifier import read_classifier, save_classifier
from hidistill.objectives.regression import Paired
from hidistill.recipes.digits import SPACE, classifier
from hidistill.recipes.digits import teacher as teacher_recipe
from hidistill.recipes.images import batches
from hidistill.recipes.judging import Jury, attention_maps, jury, read_teacher
from hidistill.recipes.samplers import renoised_row, student_row, teacher_row
from hidistill.sampling import euler
from hidistill.seeds import fold_in, normal, shuffled
from hidistill.teachers.dit import DiT, FlowMapDiT
from hidistill.train.driver import execute
from hidistill.train.loop import NonFinite, steps
from hidistill.train.stage import Stage
from hidistill.types import Batch, Gallery, Samples

BATCH, PAIRS, PAIR_STEPS = 64, 2048, 25
"""Samples of a step; pairs that regression learns from, and the teacher's Euler steps to their ends."""
JUDGED, ENDS_STEPS = 500, 50
COLLAPSED = 0.1
"""Recall in one step below which a run counts as collapsed."""
WORDS = {
    f"fd/{SPACE}": "fd",
    "fd/efficientnet-lite0-64px": "fd effnet",
    f"recall/{SPACE}": "recall",
    f"precision/{SPACE}": "precision",
    "agreement": "agreement",
    "diversity": "diversity",
    "high_frequency": "high frequency",
    "end_distance": "end",
}
"""The metrics that experiments show, by their names here."""
COLUMNS = {
    column.key: column
    for column in (
        Column("fd, 1", "FD classifier, 1 step"),
        Column("fd, 2", "FD classifier, 2 steps"),
        Column("fd effnet, 1", "FD EfficientNet-Lite0, 1 step"),
        Column("fd effnet, 2", "FD EfficientNet-Lite0, 2 steps"),
        Column("recall, 1", "recall, 1 step", "higher"),
        Column("diversity, 1", "diversity", ""),
        Column("high frequency, 1", "high-frequency ratio", ""),
        Column("agreement, 1", "class agreement", "higher"),
        Column("end, 1", "distance to teacher's end", ""),
        Column("collapsed", "collapsed, share"),
    )
}
"""What a cell's numbers are called in tables and figures, and which way is better."""


Part = Literal["valid", "test"]
"""What students are judged on: pictures and noise to choose settings on, or those that methods are compared on."""


def columns(*keys: str) -> list[Column]:
    """Some of `COLUMNS`, in an order."""
    return [COLUMNS[key] for key in keys]


def cell(
    *, seed: int, folder: Path, teacher_steps: int = 0, part: Part = "test", **method: Any  # noqa: ANN401
) -> Mapping[str, float]:  # fmt: skip
    """A student of a method, or the guided teacher itself in so many Euler steps."""
    teacher = teacher_at(folder).eval().requires_grad_(False)
    if teacher_steps:
        return json.loads(teachers_at(teacher_steps, teacher, folder, part).read_text(encoding="utf-8"))
    return measured(Method(**method), teacher, seed=seed, folder=folder, part=part)


def teacher_at(folder: Path) -> DiT:
    """The teacher that all cells of an experiment share; trained by the first that comes."""

    def make(path: Path) -> None:
        execute(teacher_recipe(), path.parent / "run", recipe="digits.teacher", arguments={})
        with whole(path) as place:
            place.write_bytes((path.parent / "run" / "models" / "teacher.safetensors").read_bytes())

    return read_teacher(once(folder.parents[2] / "teacher" / "teacher.safetensors", make))


def teachers_at(count: int, teacher: DiT, folder: Path, part: Part) -> Path:
    """The teacher's own numbers in so many Euler steps, which no seed of a student changes; judged once."""

    def make(path: Path) -> None:
        rows = [teacher_row(teacher, scale=SCALE, steps=count, precision="float32")]
        found = judged(teacher, rows, folder, part)
        numbers = {name.rpartition(",")[0] + ", 1": value for name, value in found.items()}
        with whole(path) as place:
            place.write_text(json.dumps(numbers), encoding="utf-8")

    return once(folder.parents[2] / "teacher-rows" / f"{part}-{count}" / "numbers.json", make)


def measured(
    method: Method, teacher: DiT, *, seed: int, folder: Path, part: Part = "test"
) -> dict[str, float]:  # fmt: skip
    """Train a student, and judge it in one and two steps; a run whose loss is not finite has diverged, and no more."""
    torch.manual_seed(fold_in(seed, "student"))
    student = teacher.student() if method.start == "teacher" else FlowMapDiT(DiT.from_config(dict(teacher.config)))
    head = head_of(method, teacher)
    try:
        for stage, paired in stages(method, teacher, student, head):
            batch_at = pairs_at(teacher, folder=folder, seed=seed) if paired else pictures(seed)
            if stage.name == "sketch":
                path = sketch_at(method, stage, batch_at, student, seed=seed, folder=folder)
                student.load_state_dict(load_file(path))
            else:
                trained(stage, batch_at, seed=seed)
    except NonFinite:
        return {"diverged": 1.0, "collapsed": 1.0}
    # Who knows ends alone goes on from new noise: nothing else has trained the jump from the middle.
    several = student_row if method.learns_every_interval else renoised_row
    rows = [
        student_row("student", student, steps=1, precision="float32"),
        several("student", student, steps=2, precision="float32"),
    ]
    numbers = judged(teacher, rows, folder, part) | {"diverged": 0.0}
    numbers["collapsed"] = float(numbers["recall, 1"] < COLLAPSED)
    if isinstance(head, Adaptive):
        maps = attention_maps(judges_at(folder, part)[0], "valid", teacher, head, n=50)
        numbers["entropy"] = torch.stack([normalized_entropy(layer).mean() for layer in maps]).mean().item()
    return numbers


def trained(stage: Stage, batch_at: Callable[[int], Batch], *, seed: int) -> None:
    """Run a stage; its averages become its modules' weights."""
    for _ in steps(stage, batch_at, seed=seed):
        pass
    for average in stage.averages.values():
        average.install()


def sketch_at(
    method: Method, stage: Stage, batch_at: Callable[[int], Batch], student: nn.Module, *, seed: int, folder: Path
) -> Path:
    """The student behind a sketch, which does not depend on what refines it: trained by the first cell that comes."""

    def make(path: Path) -> None:
        trained(stage, batch_at, seed=seed)
        with whole(path) as place:
            save_file(student.state_dict(), place)

    name = f"{method.start}-{method.sketch}-{method.sketch_steps}-{rate_of(method):g}-{seed}".replace(" ", "-")
    return once(folder.parents[2] / "sketches" / name / "student.safetensors", make)


def judged(teacher: DiT, rows: list[Contestant], folder: Path, part: Part) -> dict[str, float]:
    """Numbers of each row under its steps, e.g. `fd, 1`; all cells draw from the same noise, for the same classes."""
    (judges, real), found = judges_at(folder, part), {}
    labels, seeds = balanced_labels(JUDGED, 10), seeds_of(JUDGED, ("test", "valid").index(part))
    shared: dict[str, Any] = {"seeds": seeds, "cond": labels, "shape": judges.shape, "codec": Pixels()}

    def make(path: Path) -> None:
        reference = teacher_row(teacher, scale=SCALE, steps=ENDS_STEPS, precision="float32")
        with whole(path) as place:
            save_file({"images": draw(reference.sample, **shared).images}, place)

    ends = load_file(once(folder.parents[2] / "ends" / part / "images.safetensors", make))["images"]
    for row in rows:
        gallery = Gallery(draw(row.sample, **shared).images, labels, judges.test.classes)
        metrics = scores(Samples(gallery, real, ends), judges.metrics(), row.name)
        found |= {f"{word}, {row.steps}": metrics[key] for key, word in WORDS.items() if key in metrics}
    return found


def judges_at(folder: Path, part: Part) -> tuple[Jury, Gallery]:
    """The judges that all cells share, and held-out pictures with their features: trained and passed by the first."""

    def make(path: Path) -> None:
        save_classifier(path, classifier(), {"data": "digits of scikit-learn, three fifths of them"})

    def passed(path: Path) -> None:
        with whole(path) as place:
            save_file({space.name: real.features(space) for space in judges.spaces}, place)

    read = read_classifier(once(folder.parents[2] / "classifier" / "classifier.safetensors", make))
    judges = jury(digits("train"), digits("valid"), digits("test"), read, SPACE)
    real = Gallery.of(judges.test if part == "test" else judges.valid)
    features = load_file(once(folder.parents[2] / "real" / part / "features.safetensors", passed))
    for space in judges.spaces:
        real.memory["features", space] = features[space.name]
    return judges, real


def pictures(seed: int) -> Callable[[int], Batch]:
    """Batches of real digits."""
    return batches(digits("train"), batch_size=BATCH, seed=seed)


def pairs_at(teacher: DiT, *, folder: Path, seed: int) -> Callable[[int], Batch]:
    """Batches of the teacher's pairs of noise and end, which all cells share."""
    labels = balanced_labels(PAIRS, 10)

    def make(path: Path) -> None:
        noise = normal([fold_in(0, "pairs", i) for i in range(PAIRS)], (1, 8, 8))
        with torch.no_grad():
            ends = [
                euler(Guided(teacher, SCALE), part, cond=asked, steps=PAIR_STEPS)
                for part, asked in zip(noise.split(BATCH), labels.split(BATCH), strict=True)
            ]
        with whole(path) as place:
            save_file({"noise": noise, "ends": torch.cat(ends)}, place)

    pairs = load_file(once(folder.parents[2] / "pairs" / "pairs.safetensors", make))

    def batch_at(step: int) -> Batch:
        rows = shuffled(PAIRS, batch_size=BATCH, step=step, seed=seed)
        return Paired(pairs["ends"][rows], labels[rows], step, noise=pairs["noise"][rows])

    return batch_at
