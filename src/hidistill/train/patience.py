"""Ctrl-C between two steps instead of within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Patience:
    """Whether somebody pressed Ctrl-C."""

    asked = False

    def notice(self, number: int, frame: FrameType | None) -> None:
        """Remember the first request; a second one does not wait."""
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True


@contextmanager
def patience() -> Iterator[Patience]:
    """Turn the first Ctrl-C into a request, so that a step is never left half done.

    Only where Python's own reaction would come: another handler, or none in a background process, is left alone.
    """
    noted = Patience()
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, noted.notice)
    try:
        yield noted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
