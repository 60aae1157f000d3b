"""Notices when a process hangs, and says which one and where."""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from hidistill.train.distributed.ranks import Ranks, cloned

GIVEN_UP = 75
"""Exit status of a run that another process has let down: EX_TEMPFAIL of sysexits.h, which asks to try again."""
MEETING = (str(Path(dist.__file__).parent), str(Path(__file__).parent))
"""Code in which a process waits for others."""


class Watch:
    """A thread of each process that tells the others where it is, and ends the process when a step takes too long.

    A collective operation that hangs can be ended in no other way, and torchrun ends the others when one has ended.

    Args:
        ranks: the processes.
        timeout_seconds: longest duration of a step.
    """

    def __init__(self, ranks: Ranks, timeout_seconds: float) -> None:
        self.ranks, self.timeout_seconds = ranks, timeout_seconds
        self.interval = min(5.0, timeout_seconds / 4)
        self.where, self.since, self.beats = "its start", None, 0
        self.main, self.ended = threading.get_ident(), threading.Event()
        if ranks.count > 1:
            threading.Thread(target=self.run, daemon=True).start()

    def step(self, where: str) -> None:
        """A step begins."""
        self.where, self.since = where, time.monotonic()

    def pause(self) -> None:
        """What comes now may take as long as it likes."""
        self.since = None

    def close(self) -> None:
        """Watch no longer."""
        self.ended.set()

    def run(self) -> None:
        """Tell where this process is; give up when a step takes too long."""
        assert self.ranks.store is not None
        store = cloned(self.ranks.store)
        self.publish(store)
        while not self.ended.wait(self.interval):
            self.publish(store)
            since = self.since
            if since is not None and time.monotonic() - since > self.timeout_seconds:
                words = f"{self.where} has taken more than {self.timeout_seconds:g} s: {self.verdict(store)}"
                sys.stderr.write(f"process {self.ranks.rank} of {self.ranks.count} gives up, for {words}\n")
                sys.stderr.flush()
                os._exit(GIVEN_UP)

    def publish(self, store: dist.Store) -> None:
        """Write down where this process is."""
        self.beats += 1
        waiting, place = located(sys._current_frames().get(self.main))
        here = {"beat": self.beats, "where": self.where, "waiting": waiting, "place": place}
        here |= {"host": socket.gethostname(), "pid": os.getpid()}
        store.set(f"watch/{self.ranks.rank}", json.dumps(here))

    def verdict(self, store: dist.Store | None = None) -> str:
        """Which process holds up the others, in words."""
        assert self.ranks.store is not None
        store = store or cloned(self.ranks.store)
        try:
            before = self.entries(store)
            time.sleep(2 * self.interval)
            self.publish(store)
            now = self.entries(store)
        except RuntimeError:
            return "process 0, where all leave word, does not answer"
        others = [rank for rank in now if rank != self.ranks.rank]
        silent = [rank for rank in others if now[rank]["beat"] == before.get(rank, {}).get("beat")]
        if silent:
            return "; ".join(f"{self.named(rank, now[rank], 'last heard of in')} does not answer" for rank in silent)
        busy = [rank for rank in now if not now[rank]["waiting"]]
        found = busy or [rank for rank in others if now[rank]["where"] != self.where] or others
        return "; ".join(f"{self.named(rank, now[rank])} is at {now[rank]['place']}" for rank in found)

    def entries(self, store: dist.Store) -> dict[int, dict[str, Any]]:
        """What the processes say of themselves, of those that have said anything."""
        keys = {rank: f"watch/{rank}" for rank in range(self.ranks.count)}
        return {rank: json.loads(store.get(key)) for rank, key in keys.items() if store.check([key])}

    def named(self, rank: int, entry: dict[str, Any], verb: str = "in") -> str:
        """A process in words."""
        return f"process {rank} (pid {entry['pid']} on {entry['host']}, {verb} {entry['where']})"


def located(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread waits for other processes, and the innermost place of its own code."""
    waiting = frame is not None and frame.f_code.co_filename.startswith(MEETING)
    while frame is not None and frame.f_code.co_filename.startswith(MEETING):
        frame = frame.f_back
    if frame is None:
        return waiting, "an unknown place"
    return waiting, f"line {frame.f_lineno} of {frame.f_code.co_filename}, in {frame.f_code.co_name}"
