"""What the page answers to its buttons, as HTML; what a person got wrong comes back as words on the page."""

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hidistill.view import blind
from hidistill.view.cast import Match, Scene
from hidistill.view.figures import attended, compared, note, problem, slider
from hidistill.view.figures import blind as blind_figure
from hidistill.view.flow import frames
from hidistill.view.looks import looked_at
from hidistill.view.pairs import Pair, draw_pair
from hidistill.view.runs import shown, state_of
from hidistill.view.wishes import IN_TURN, Wish, number, wish

EXPECTED = (ValueError, TypeError, OSError)
"""What bad input raises; everything else is a defect, and its traceback goes to the terminal."""
MOST_IN_FLOW, MOST_LOOKED_AT = 4, 6


class Answers:
    """The page's answers for a scene.

    Args:
        scene: who is on the page.
        session: seed of the blind comparison; None draws one that nobody has seen.
    """

    def __init__(self, scene: Scene, session: int | None = None) -> None:
        self.scene = scene
        self.session = secrets.randbits(62) if session is None else session
        self.drawn: tuple[Match, Wish, Pair] | None = None

    def wished(self, name: str, given: dict[str, Any]) -> tuple[Match, Wish]:
        """The student and the wish in the page's fields."""
        match = self.scene.match(name)
        return match, wish(match, **given)

    def compare(self, name: str, **given: object) -> str:
        """Teacher and student side by side."""

        def answer() -> str:
            match, made = self.wished(name, given)
            pair = draw_pair(match, made)
            self.drawn = match, made, pair
            return compared(pair, made)

        return told(answer)

    def flow(self, name: str, **given: object) -> str:
        """The slider from noise to image."""

        def answer() -> str:
            match, made = self.wished(name, given)
            made = replace(made, count=min(made.count, MOST_IN_FLOW))
            return slider(frames(match, made), match.name, made)

        return told(answer)

    def attention(self, name: str, t: object, **given: object) -> str:
        """Where the discriminator looks on the pictures of both; those side by side are not drawn again."""

        def answer() -> str:
            match, made = self.wished(name, given)
            level = number(t, "noise level t", 0.0, 1.0)
            made = replace(made, count=min(made.count, MOST_LOOKED_AT))
            if match.head is None:
                raise ValueError(f"no attention can be shown: {match.headless}")
            last = self.drawn
            pair = last[2] if last is not None and last[:2] == (match, made) else draw_pair(match, made)
            looks = [
                (side.name, *looked_at(match, side.images, cond=pair.cond, t=level, seed=made.seed))
                for side in (pair.teacher, pair.student)
            ]
            return attended(looks, level)

        return told(answer)

    def trial(self, name: str, count: int, **given: object) -> tuple[blind.Trial | None, str]:
        """The next two pictures of the blind comparison; None with words where there can be none."""
        try:
            match, made = self.wished(name, {**given, "seed": 0, "count": 1})
            found = blind.trial(match, made, session=self.session, number=count)
        except EXPECTED as error:
            return None, problem(error)
        return found, blind_figure(found.left, found.right, found.asked)

    def vote(self, found: blind.Trial | None, place: blind.Place) -> tuple[bool, str]:
        """Write a choice down; whether that was done, and what to say."""
        if found is None:
            return False, problem(ValueError("there are no pictures to choose between yet; press Next pair"))
        try:
            blind.cast(self.scene.votes, found, place)
            votes = blind.counted(self.scene.votes, found.pair)
        except EXPECTED as error:
            return False, problem(error)
        return True, note(f"Recorded: vote {sum(votes)} on this pair, in {self.scene.votes}.")

    def preference(self, name: str, **given: object) -> str:
        """The result so far of the two that the settings mean."""

        def answer() -> str:
            match, made = self.wished(name, {**given, "seed": 0, "count": 1})
            return note(blind.result(self.scene.votes, blind.pair_of(match, made)))

        return told(answer)

    def run(self, name: str) -> str:
        """A run folder."""
        return told(lambda: shown(self.scene.run(name), self.scene.growing.get(name)))

    def state(self, name: str) -> object:
        """What changes whenever a run's page would."""
        return state_of(self.scene.run(name)) if name in self.scene.runs else None

    def warm(self) -> None:
        """Draw once with every student, so that no latency on the page holds what a first pass sets up."""
        for match in self.scene.matches.values():
            made = Wish(asked="warm" if match.space.encode else IN_TURN, teacher_steps=1, scale=match.scale)
            draw_pair(match, made)


def told(answer: Callable[[], str]) -> str:
    """An answer, or what was wrong with the question."""
    try:
        return answer()
    except EXPECTED as error:
        return problem(error)
