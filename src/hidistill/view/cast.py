"""Who is on the page: students, each beside its teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hidistill.codecs import Pixels
from hidistill.discriminators.adaptive import Adaptive
from hidistill.types import Codec, Cond, Student, Teacher


@dataclass(frozen=True, eq=False)
class Space:
    """Where a teacher and its students live, and how they are asked.

    Args:
        shape: of one sample: channels, height, width.
        classes: number of classes; 0 if there are none.
        names: of the classes; empty if nobody knows them.
        codec: carries samples to pixels.
        encode: turns prompts into conditions; None where conditions are labels.
    """

    shape: tuple[int, ...]
    classes: int
    names: Sequence[str] = ()
    codec: Codec = field(default_factory=Pixels)
    encode: Callable[[Sequence[str]], Cond] | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """A student beside its teacher.

    Args:
        name: what the page calls the student.
        student: the flow map.
        student_weights: a word that tells its weights from others.
        teacher: the velocity field.
        teacher_weights: likewise.
        space: where both live.
        scale: guidance scale that was distilled.
        head: the discriminator whose attention is shown; None if there is none.
        headless: why not, in words.
    """

    name: str
    student: Student
    student_weights: str
    teacher: Teacher
    teacher_weights: str
    space: Space
    scale: float = 1.0
    head: Adaptive | None = None
    headless: str = "these weights came without a discriminator"


@dataclass(frozen=True, eq=False)
class Growing:
    """A student that is in training.

    Args:
        newest: the step of the newest checkpoint and the student's average in it; None before the first.
        space: where it lives.
    """

    newest: Callable[[], tuple[int, Student] | None]
    space: Space


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that a page shows.

    Args:
        matches: students by name, the first is shown first.
        runs: run folders by name; no other folder is read.
        votes: file of the blind comparison.
        growing: students in training by the name of their run.
    """

    matches: Mapping[str, Match]
    runs: Mapping[str, Path]
    votes: Path
    growing: Mapping[str, Growing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a page of nothing."""
        if not self.matches and not self.runs:
            raise ValueError("there is neither a student nor a run to show; give a run's folder or a weights file")

    def match(self, name: str | None) -> Match:
        """The student of a name.

        Raises:
            ValueError: if the page has none of this name.
        """
        if name is None or name not in self.matches:
            raise ValueError(f"there is no student {name!r} here; there are {', '.join(self.matches) or 'none'}")
        return self.matches[name]

    def run(self, name: str | None) -> Path:
        """The run folder of a name.

        Raises:
            ValueError: if the page has none of this name; no path is ever taken from the page.
        """
        if name is None or name not in self.runs:
            raise ValueError(f"there is no run {name!r} here; there are {', '.join(self.runs) or 'none'}")
        return self.runs[name]
