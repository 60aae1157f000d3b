"""Teacher and student from the same noise and conditions."""

from typing import NamedTuple

from hidistill.evaluate import Contestant, draw
from hidistill.recipes.samplers import student_row, teacher_row
from hidistill.seeds import fold_in
from hidistill.types import Cond, Images
from hidistill.view.cast import Match
from hidistill.view.wishes import Wish, conditions


class Side(NamedTuple):
    """What one of the two drew.

    Args:
        name: who, in how many steps.
        images: pixels in [0, 1].
        nfe: network passes per image.
        seconds: what all images took together.
    """

    name: str
    images: Images
    nfe: int
    seconds: float

    @property
    def cost(self) -> str:
        """Passes and latency in words."""
        count = len(self.images)
        passes = f"{self.nfe} network pass{'es' if self.nfe > 1 else ''}"
        if count == 1:
            return f"{passes}, {milliseconds(self.seconds)}"
        return f"{passes}, {milliseconds(self.seconds)} for {count} images"


class Pair(NamedTuple):
    """Both sides, their conditions, and what each image was asked for."""

    teacher: Side
    student: Side
    cond: Cond
    asked: list[str]


def seeds_of(made: Wish) -> list[int]:
    """The seeds of a wish's images: those of `hidistill sample --seed`."""
    return [fold_in(made.seed, "sample", i) for i in range(made.count)]


def contestants(match: Match, made: Wish) -> tuple[Contestant, Contestant]:
    """Teacher and student as a wish wants them."""
    teacher = teacher_row(match.teacher, scale=made.scale, steps=made.teacher_steps, precision="float32")
    return teacher, student_row(match.name, match.student, steps=made.student_steps, precision="float32")


def draw_pair(match: Match, made: Wish) -> Pair:
    """Let both draw from the same noise.

    Raises:
        ValueError: if an image is not finite.
    """
    cond, asked = conditions(match.space, made)
    sides = []
    for one in contestants(match, made):
        drawn = draw(one.sample, seeds=seeds_of(made), cond=cond, shape=match.space.shape, codec=match.space.codec)
        sides.append(Side(one.name, drawn.images, one.nfe, drawn.seconds_per_image * made.count))
    return Pair(sides[0], sides[1], cond, asked)


def milliseconds(seconds: float) -> str:
    """A latency that a person can compare."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.0995 else f"{seconds * 1e3:,.0f} ms"
