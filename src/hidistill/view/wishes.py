"""What a person asks of the page, checked."""

import math
from dataclasses import dataclass

import torch

from hidistill.labels import label_of
from hidistill.types import Cond
from hidistill.view.cast import Match, Space

IN_TURN = "each class in turn"
MOST_IMAGES, MOST_STEPS, MOST_TEACHER_STEPS, MOST_SCALE = 20, 8, 100, 20.0
LARGEST_SEED = 2**53
"""Up to here a browser holds every whole number exactly."""


@dataclass(frozen=True)
class Wish:
    """What is drawn, and how.

    Args:
        asked: class, or prompt; `IN_TURN` takes the classes in turn.
        seed: image i depends on it and on i alone.
        count: number of images.
        student_steps: of the flow map.
        teacher_steps: of Euler's method.
        scale: the teacher's guidance scale.
    """

    asked: str = IN_TURN
    seed: int = 0
    count: int = 6
    student_steps: int = 1
    teacher_steps: int = 50
    scale: float = 1.5


def wish(
    match: Match,
    *,
    asked: object,
    seed: object,
    count: object = 6,
    student_steps: object = 1,
    teacher_steps: object = 50,
    scale: object = 1.5,
) -> Wish:
    """A wish from what stands in the page's fields.

    Raises:
        ValueError: naming the field, what came and what is allowed.
    """
    made = Wish(
        asked=str(asked if asked is not None else "").strip(),
        seed=whole(seed, "seed", 0, LARGEST_SEED),
        count=whole(count, "number of images", 1, MOST_IMAGES),
        student_steps=whole(student_steps, "student's steps", 1, MOST_STEPS),
        teacher_steps=whole(teacher_steps, "teacher's steps", 1, MOST_TEACHER_STEPS),
        scale=number(scale, "guidance scale", 0.0, MOST_SCALE),
    )
    if match.space.encode is not None:
        if not made.asked:
            raise ValueError("the prompt is empty; write what the picture should show, e.g. a red apple")
    elif match.space.classes:
        class_of(made.asked, match.space)
    return made


def class_of(asked: str, space: Space) -> int | None:
    """The label that is asked for; None takes the classes in turn.

    Raises:
        ValueError: if there is no such class.
    """
    if asked == IN_TURN or not space.classes:
        return None
    try:
        return label_of(asked, names=space.names, classes=space.classes)
    except ValueError as error:
        raise ValueError(f"class {asked!r}: {error}") from error


def number(given: object, what: str, low: float, high: float) -> float:
    """A number within [low, high].

    Raises:
        ValueError: if it is none, or outside.
    """
    try:
        found = float(str(given).strip())
    except ValueError:
        found = math.nan
    if not low <= found <= high:
        raise ValueError(f"{what} {shown(given)}: must be a number from {low:g} to {high:g}")
    return found


def whole(given: object, what: str, low: int, high: int) -> int:
    """A whole number within [low, high].

    Raises:
        ValueError: if it is none, or outside.
    """
    text = str(given).strip()
    text = text.removesuffix(".0")
    if not (text.isascii() and text.isdecimal()) or not low <= int(text) <= high:
        raise ValueError(f"{what} {shown(given)}: must be a whole number from {low} to {high}")
    return int(text)


def shown(given: object) -> str:
    """What came, short."""
    text = "" if given is None else str(given)
    return repr(text if len(text) <= 40 else text[:37] + "...") if text else "is empty"


def conditions(space: Space, made: Wish) -> tuple[Cond, list[str]]:
    """The condition of each image, and what each was asked for, in words."""
    if space.encode is not None:
        return space.encode([made.asked] * made.count), [made.asked] * made.count
    label = class_of(made.asked, space)
    labels = torch.arange(made.count) % max(1, space.classes) if label is None else torch.full((made.count,), label)
    if not space.classes:
        return labels, [""] * made.count
    known = list(space.names)
    return labels, [known[i] if i < len(known) else f"class {i}" for i in labels.tolist()]
