"""Shows how a run goes: bars on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from hidistill.train.driver import Event

SECONDS_BETWEEN_LINES = 10.0
CLOSING = "closing"


def display(console: Console, closing: str = "") -> AbstractContextManager[Callable[[Event], None]]:
    """What shows events on this console.

    Args:
        console: where they are shown.
        closing: what comes after the last step and has no length that is known; empty if nothing does.
    """
    return bars(console, closing) if console.is_terminal else lines(console, closing)


@contextmanager
def bars(console: Console, closing: str = "") -> Iterator[Callable[[Event], None]]:
    """A bar per stage, with the time left, the latest losses and the newest probe."""
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]:>14}"),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        tasks: dict[str, TaskID] = {}
        numbers = Numbers()

        def show(event: Event) -> None:
            if event.stage not in tasks and event.steps:
                tasks[event.stage] = progress.add_task(event.stage, total=event.steps, left="", numbers="")
            numbers.take(event)
            if message := spoken(event):
                progress.console.print(message, markup=False, highlight=False, soft_wrap=True)
            if event.stage in tasks:
                left = duration(event.seconds_left) + " left" if event.step < event.steps and event.seconds_left else ""
                text = "  ".join(filter(None, (whole(event), numbers.text)))
                progress.update(tasks[event.stage], completed=event.step, left=left, numbers=text)
            if closing and event.kind == "stage" and event.global_step == event.total_steps:
                tasks[CLOSING] = progress.add_task(CLOSING, total=None, left="", numbers=closing)
            if event.kind == "finish" and CLOSING in tasks:
                progress.update(tasks[CLOSING], visible=False)

        yield show


@contextmanager
def lines(console: Console, closing: str = "") -> Iterator[Callable[[Event], None]]:
    """A line every ten seconds, and one at each turn of the run."""
    numbers, last = Numbers(), 0.0

    def show(event: Event) -> None:
        nonlocal last
        numbers.take(event)
        say = [spoken(event)]
        now = time.monotonic()
        if event.kind in ("step", "stage") and (now - last >= SECONDS_BETWEEN_LINES or event.kind == "stage"):
            last = now
            left = f"{duration(event.seconds_left)} left" if event.seconds_left else ""
            there = f"{event.stage} {event.step}/{event.steps}"
            say.append("  ".join(filter(None, (there, whole(event), left, numbers.text))))
        if closing and event.kind == "stage" and event.global_step == event.total_steps:
            say.append(f"{CLOSING}: {closing}")
        for message in filter(None, say):
            console.print(message, markup=False, highlight=False, soft_wrap=True)

    yield show


class Numbers:
    """The latest losses of a stage's updates, and the newest probe."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}
        self.probe: dict[str, float] = {}
        self.stage = ""

    def take(self, event: Event) -> None:
        """Take in an event."""
        if event.stage != self.stage:
            self.stage = event.stage
            self.losses.clear()
        if event.kind == "step":
            self.losses |= {name[:-5]: value for name, value in event.metrics.items() if name.endswith("/loss")}
        if event.kind == "probe":
            self.probe = dict(event.metrics)

    @property
    def text(self) -> str:
        """Losses first."""
        losses = [f"{name} {value:.3g}" for name, value in self.losses.items()]
        probe = [f"{name} {value:.3g}" for name, value in self.probe.items()]
        parts = ("loss " + " ".join(losses) if losses else "", "probe " + " ".join(probe) if probe else "")
        return "  ".join(filter(None, parts))


def whole(event: Event) -> str:
    """How far the whole run is; empty where its only steps are those of the stage."""
    return f"{event.global_step}/{event.total_steps} in all" if event.total_steps != event.steps else ""


def spoken(event: Event) -> str:
    """What an event has to say in words; empty for most."""
    if event.kind == "resume":
        return ". ".join(filter(None, (f"goes on from step {event.global_step} of {event.total_steps}", event.message)))
    if event.kind == "stage":
        return f"{event.stage} done" + (f": {event.message}" if event.message else "")
    return event.message if event.kind in ("start", "finish") else ""


def duration(seconds: float | None) -> str:
    """Seconds in words, with the precision of an estimate."""
    if seconds is None:
        return ""
    full = round(seconds)
    if full < 60:
        return f"{full} s"
    if full < 3600:
        return f"{full // 60} min {full % 60:02d} s"
    return f"{full // 3600} h {full % 3600 // 60:02d} min"
