"""Ctrl-C and SIGTERM between two steps instead of within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """Somebody, a scheduler perhaps, asked the run to end by SIGTERM."""


class Patience:
    """Whether somebody pressed Ctrl-C or sent SIGTERM."""

    asked = 0
    """Number of the signal; 0 if there was none."""

    def notice(self, number: int, frame: FrameType | None) -> None:
        """Remember the first request; a second one does not wait."""
        if self.asked and number == signal.SIGTERM:
            raise Terminated
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = number


def interruption(number: int) -> KeyboardInterrupt:
    """What a request raises."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def patience() -> Iterator[Patience]:
    """Turn the first Ctrl-C or SIGTERM into a request, so that a step is never left half done.

    Only where Python's own reaction would come: another handler, or none in a background process, is left alone.
    """
    noted, ours = Patience(), {}
    if threading.current_thread() is threading.main_thread():
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        ours = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    for number in ours:
        signal.signal(number, noted.notice)
    try:
        yield noted
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
