"""How far an evaluation is, row by row, with the time that is left of the row."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hidistill.cli.progress import duration

EVERY_SECONDS = 10.0
"""Between lines where nobody watches."""
Tell = Callable[[str, int, int], object]


@contextmanager
def drawing(console: Console | None = None) -> Iterator[Tell]:
    """Within, a function that is told contestant, images drawn and images in all: a bar on a terminal, else lines."""
    console = console or Console()
    started: dict[str, float] = {}
    said = [time.monotonic()]

    def left(name: str, done: int, total: int) -> str:
        begin = started.setdefault(name, time.monotonic())
        spent = time.monotonic() - begin
        return f"{duration(spent / done * (total - done))} left" if done and spent > 1 and done < total else ""

    if not console.is_terminal:

        def line(name: str, done: int, total: int) -> None:
            words = left(name, done, total)
            if time.monotonic() - said[0] >= EVERY_SECONDS:
                said[0] = time.monotonic()
                console.print(f"{name}: {done:,} of {total:,} images  {words}", markup=False, highlight=False)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=console, transient=True) as shown:
        task = shown.add_task("", total=None, left="")

        def bar(name: str, done: int, total: int) -> None:
            shown.update(task, description=name, completed=done, total=total, left=left(name, done, total))

        yield bar
