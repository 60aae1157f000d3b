"""Who else joins a table: students and teachers of other runs, and the teacher at its best guidance."""

from collections.abc import Sequence
from pathlib import Path

import torch

from hidistill import weights
from hidistill.evaluate import Contestant, balanced_subset, evaluate
from hidistill.metrics.frechet import FrechetDistance
from hidistill.recipes.judging import REFERENCE_STEPS, Jury, device_of, read_student, read_teacher
from hidistill.recipes.samplers import student_row, teacher_row
from hidistill.types import Gallery, Teacher


def further(
    places: Sequence[Path], judges: Jury, *, scale: float, steps: Sequence[int], precision: str, device: str
) -> list[Contestant]:
    """Rows of other runs' students at the given steps, and of other teachers at the given scale.

    Raises:
        ValueError: if a place holds neither, or its samples have another shape.
    """
    rows = []
    for place in places:
        models = [place / "models" / f"{name}.safetensors" for name in ("student", "sketch")]
        files = [place] if place.is_file() else [path for path in models if path.exists()]
        if not files:
            raise ValueError(f"--also {place}: neither a weights file nor a run with a student; give one of them")
        for path in files:
            name = path.stem if path == place else f"{path.stem} of {place.resolve().name}"
            stored = weights.read(path)
            refuse_shape(stored, judges, path)
            if stored.family == "dit":
                rows.append(other_teacher(path, name, scale=scale, precision=precision, device=device))
            else:
                student = read_student(path, device=device)
                rows += [student_row(name, student, steps=count, precision=precision) for count in steps]
    return rows


def other_teacher(path: Path, name: str, *, scale: float, precision: str, device: str) -> Contestant:
    """The row of another teacher, under its own name."""
    row = teacher_row(read_teacher(path).to(device), scale=scale, steps=REFERENCE_STEPS, precision=precision)
    return Contestant(f"{name}, {row.name}", row.sample, row.nfe, row.steps, row.kind, row.scale)


def refuse_shape(stored: weights.Weights, judges: Jury, path: Path) -> None:
    """Refuse a network whose samples are no samples of this table."""
    config = stored.config
    size = config.get("image_size")
    shape = config.get("shape") or (config.get("channels"), size, size)
    if tuple(shape) != tuple(judges.shape):
        raise ValueError(
            f"--also {path}: its samples have shape {tuple(shape)}, those of this table {tuple(judges.shape)}; rows "
            "are compared from the same noise: give a network of the same shape"
        )


@torch.no_grad()
def best_scale(
    judges: Jury, teacher: Teacher, scales: Sequence[float], *, n: int, seed: int, precision: str
) -> tuple[float, str]:
    """The guidance scale with the least Fréchet distance in the first space, on the validation pictures; and the words.

    The noise is another than the test's: the evaluation's seed is one higher.
    """
    real = Gallery.of(balanced_subset(judges.valid, n))
    metric = FrechetDistance(next(iter(judges.spaces)))
    tried = sorted(set(scales))
    rows = [teacher_row(teacher, scale=scale, steps=REFERENCE_STEPS, precision=precision) for scale in tried]
    found = evaluate(
        rows, n=len(real.images), seed=seed + 1, real=real, codec=judges.codec, shape=judges.shape, metrics=[metric],
        cond=judges.cond("valid", len(real.images)), device=device_of(teacher),
    )  # fmt: skip
    key = f"fd/{metric.space.name}"
    values = {scale: row.metrics[key] for scale, row in zip(tried, found.rows, strict=True)}
    best = min(values, key=values.__getitem__)
    listed = ", ".join(f"{scale:g}: {value:.3g}" for scale, value in values.items())
    words = (
        f"the teacher's best scale is {best:g}, chosen by {key} on {len(real.images):,} validation pictures ({listed}) "
        "and reported on the test pictures"
    )
    return best, words
