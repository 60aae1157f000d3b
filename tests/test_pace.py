"""How far an evaluation is, on a terminal and in a file."""

import io

from rich.console import Console

from hidistill.cli import pace


def test_lines_where_nobody_watches(monkeypatch):
    monkeypatch.setattr(pace, "EVERY_SECONDS", 0.0)
    now = iter([0.0, 0.0, 0.0, 0.0, 30.0, 30.0, 30.0, 60.0, 60.0, 60.0])
    monkeypatch.setattr(pace.time, "monotonic", lambda: next(now))
    file = io.StringIO()
    with pace.drawing(Console(file=file, width=100)) as tell:
        tell("teacher", 0, 100)
        tell("teacher", 25, 100)
    first, second = file.getvalue().splitlines()
    assert first.startswith("teacher: 0 of 100 images")
    assert second.split() == ["teacher:", "25", "of", "100", "images", "1", "min", "30", "s", "left"]


def test_a_bar_on_a_terminal():
    file = io.StringIO()
    with pace.drawing(Console(file=file, force_terminal=True, width=100)) as tell:
        tell("student, 1 step", 64, 500)
    assert "student, 1 step" in file.getvalue()
    assert "64/500" in file.getvalue()
