"""The blind comparison: which pictures are next, who stands where, and what a choice means."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hidistill.seeds import fold_in
from hidistill.types import Images
from hidistill.view.cast import Match
from hidistill.view.pairs import draw_pair
from hidistill.view.preference import Preference, sentence
from hidistill.view.votes import Choice, Vote, append, now, read
from hidistill.view.wishes import IN_TURN, Wish

Place = Literal["left", "right", "neither"]


@dataclass(frozen=True, eq=False)
class Trial:
    """Two pictures, of which nobody is told who drew them.

    Args:
        left: image (1, c, h, w).
        right: image (1, c, h, w).
        first_is_left: whether the student's is the left one.
        pair: who they are.
        asked: class or prompt.
        seed: of their noise.
    """

    left: Images
    right: Images
    first_is_left: bool
    pair: tuple[str, str]
    asked: str
    seed: int


def pair_of(match: Match, made: Wish) -> tuple[str, str]:
    """Student and teacher as votes name them: votes of other weights or settings are counted apart."""
    student = (
        f"{match.name}, {made.student_steps} step{'s' if made.student_steps > 1 else ''} [{match.student_weights}]"
    )
    teacher = f"teacher, scale {made.scale:g}, {made.teacher_steps} steps [{match.teacher_weights}]"
    return student, teacher


def trial(match: Match, made: Wish, *, session: int, number: int) -> Trial:
    """The pictures of a trial: seed, class and sides are drawn from the session's seed and the trial's number.

    Args:
        match: whose pictures.
        made: the settings; its seed and count are not used, and of classes in turn one is drawn.
        session: a seed that nobody has seen.
        number: of the trial.
    """
    seed = fold_in(session, "trial", number) % 2**32
    classes = match.space.classes
    asked = made.asked
    if classes and match.space.encode is None and asked == IN_TURN:
        asked = str(fold_in(session, "class", number) % classes)
        asked = match.space.names[int(asked)] if match.space.names else asked
    pair = draw_pair(match, replace(made, asked=asked, seed=seed, count=1))
    first_is_left = bool(fold_in(session, "side", number) & 1)
    both = (pair.student.images, pair.teacher.images)
    left, right = both if first_is_left else both[::-1]
    return Trial(left, right, first_is_left, pair_of(match, made), pair.asked[0], seed)


def choice_of(shown: Trial, place: Place) -> Choice:
    """Whom a place means."""
    if place == "neither":
        return "tie"
    return "first" if (place == "left") == shown.first_is_left else "second"


def cast(path: Path, shown: Trial, place: Place) -> None:
    """Write a choice down.

    Raises:
        OSError: if it cannot be written.
    """
    vote = Vote(
        first=shown.pair[0],
        second=shown.pair[1],
        asked=shown.asked,
        seed=shown.seed,
        left="first" if shown.first_is_left else "second",
        choice=choice_of(shown, place),
        time=now(),
    )
    append(path, vote)


def result(path: Path, pair: tuple[str, str]) -> str:
    """The preference in the file between the two of a pair, in words."""
    votes = read(path)
    others = len(votes.votes) - sum(votes.of(pair))
    text = sentence(votes.of(pair), *pair) + remaining(others, votes.unreadable)
    return text + " The interval holds for a number of votes that was fixed before looking."


def counted(path: Path, pair: tuple[str, str]) -> Preference:
    """The count of a pair."""
    return read(path).of(pair)


def remaining(others: int, unreadable: Sequence[int]) -> str:
    """What the file holds beside the pair's votes."""
    text = f" The file has {others} votes on other pairs." if others else ""
    if unreadable:
        text += f" Its lines {', '.join(map(str, unreadable[:5]))} are no votes and were not counted."
    return text
