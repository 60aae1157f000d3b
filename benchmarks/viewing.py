"""How long the page of `hidistill view` takes to answer, on the bundled teacher and a student of its size.

    python benchmarks/viewing.py

Without the browser, medians of five. The student is untrained, which changes no time.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from measuring.results import options, publish

from hidistill.data.fashion import CLASSES
from hidistill.discriminators.adaptive import Adaptive
from hidistill.recipes.fashion import TEACHER
from hidistill.recipes.judging import read_teacher
from hidistill.view.answers import Answers
from hidistill.view.cast import Match, Scene, Space
from hidistill.view.wishes import IN_TURN

ROUNDS = 5


def seconds(answer: Callable[..., object], *words: object, **fields: object) -> float:
    """Of one call."""
    begin = time.perf_counter()
    answer(*words, **fields)
    return time.perf_counter() - begin


if __name__ == "__main__":
    chosen = options(__doc__, "viewing", clocks=()).parse_args()
    teacher = read_teacher(TEACHER)
    student = teacher.student().eval().requires_grad_(False)
    head = Adaptive(teacher.feature_channels).eval()
    match = Match("student", student, "-", teacher, "-", Space((1, 28, 28), 10, CLASSES), 1.5, head)
    lines = []
    with TemporaryDirectory() as folder:
        answers = Answers(Scene({match.name: match}, {}, Path(folder) / "votes.jsonl"))
        answers.warm()
        for steps in (8, 50):
            one = {"asked": IN_TURN, "student_steps": 1, "teacher_steps": steps, "scale": 1.5}
            six = one | {"seed": 0, "count": 6}
            calls = {
                "side by side, 6 pairs": (answers.compare, ("student",), six),
                "noise to image, 4 pairs": (answers.flow, ("student",), six),
                "attention over them": (answers.attention, ("student", 0.3), six),
                "one blind pair": (answers.trial, ("student", 0), one),
            }
            for name, (answer, words, fields) in calls.items():
                took = median(seconds(answer, *words, **fields) for _ in range(ROUNDS))
                lines.append({"page": name, "teacher's steps": steps, "ms": took * 1e3})
    sys.stdout.write(publish("viewing", {"The page's answers": lines}, chosen.out))
