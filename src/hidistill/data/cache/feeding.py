"""Records in batches, which a thread of this process, or another process, decodes ahead."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from multiprocessing import get_context
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Any, NamedTuple

import numpy as np
import torch

from hidistill.types import Record, Source


class Stretch(NamedTuple):
    """Which records are fed, and in what portions.

    Args:
        start: the first record.
        stop: the record behind the last; None is the end of the source.
        batch_size: records in a batch.
        rows: records in a shard.
    """

    start: int
    stop: int | None
    batch_size: int
    rows: int


def batched(source: Source, stretch: Stretch) -> Iterator[list[Record]]:
    """Batches that end where shards end."""
    start, stop, batch_size, rows = stretch
    records = islice(source.records(start), None if stop is None else stop - start)
    while True:
        for first in range(0, rows, batch_size):
            batch = list(islice(records, min(batch_size, rows - first)))
            if not batch:
                return
            yield batch


def ahead(batches: Iterator[list[Record]]) -> Generator[list[Record], None, None]:
    """Batches, the next of which a thread has begun; decoding and resizing leave the interpreter to others.

    Nobody waits for the thread when the caller has had enough: a source may take its time.
    """
    asked, made = Semaphore(), SimpleQueue[tuple[list[Record] | None, Exception | None]]()
    enough = Event()

    def read() -> None:
        while asked.acquire() and not enough.is_set():
            try:
                made.put((next(batches, None), None))
            except Exception as error:
                made.put((None, error))

    Thread(target=read, name="decode", daemon=True).start()
    try:
        while True:
            batch, error = made.get()
            if error is not None:
                raise error
            if batch is None:
                return
            asked.release()
            yield batch
    finally:
        enough.set()
        asked.release()


@contextmanager
def feed(read: Callable[[], Source], stretch: Stretch, *, workers: int) -> Iterator[Iterator[list[Record]]]:
    """Within, the batches of a stretch of records.

    Args:
        read: the source; with two workers it is read in another process, so pickle must be able to carry it.
        stretch: which records.
        workers: processes: with 1 a thread decodes the next batch while the caller uses this one, with 2 another
            process some batches ahead.
    """
    if workers == 1:
        with closing(ahead(batched(read(), stretch))) as batches:
            yield batches
        return
    # A fork would copy locks that torch's threads may hold.
    context = get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=decode, args=(its, read, stretch), daemon=True)
    process.start()
    its.close()
    try:
        yield received(mine)
    finally:
        # Closing makes a process that still has something to say end at once.
        mine.close()
        process.join(timeout=5)
        process.kill()


def received(connection: Any) -> Iterator[list[Record]]:  # noqa: ANN401 -- a pipe's end, whose class depends on the system
    """Batches from another process.

    Raises:
        ValueError, OSError: what the source raised there.
        RuntimeError: if the process ended without a word.
    """
    while True:
        try:
            kind, content = connection.recv()
        except EOFError:
            raise RuntimeError(
                "the process that decodes pictures ended unexpectedly; what it printed says why, or use --workers 1"
            ) from None
        if kind == "end":
            return
        if kind == "error":
            raise content
        yield [record if image is None else record._replace(image=torch.from_numpy(image)) for record, image in content]


def decode(connection: Any, read: Callable[[], Source], stretch: Stretch) -> None:  # noqa: ANN401 -- as above
    """Send the batches of a stretch: what the other process runs."""
    try:
        for batch in batched(read(), stretch):
            connection.send(("batch", [plain(record) for record in batch]))
        connection.send(("end", None))
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        # The process that asked is gone, or goes.
        return
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        connection.send(("error", kind(str(error))))


def plain(record: Record) -> tuple[Record, np.ndarray | None]:
    """A record and its pixels apart: tensors travel by file descriptor, of which a process has few."""
    return (record, None) if record.image is None else (record._replace(image=None), record.image.numpy())
