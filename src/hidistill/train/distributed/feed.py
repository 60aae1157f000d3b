"""Batches as a process needs them: its rows alone, and some steps ahead."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from hidistill.path import on, part_of
from hidistill.share import Drawn, Share
from hidistill.train.distributed.ranks import Ranks, split
from hidistill.types import Batch


def own_rows(source: Callable[[int], Batch], step: int, ranks: Ranks, *, passes: int) -> Batch:
    """The rows of a step's batch that are this process's; others are not read where the source can do without.

    Raises:
        ValueError: if the batch cannot be shared out.
    """
    share = Share(ranks.rank, ranks.count)
    if isinstance(source, Drawn):
        rows = source.pick(step)
        split(len(rows), ranks.count * passes, processes=ranks.count)
        return source.take(share.of(rows), step)
    batch = source(step)
    split(len(batch.x), ranks.count * passes, processes=ranks.count)
    return part_of(batch, share)


class Feed:
    """The batches of this process on its device, read ahead by threads.

    Which rows a step has does not depend on who reads them: data is a function of the step.

    Args:
        source: the batch of a step, counted over all stages.
        ranks: the processes.
        passes: in which each takes its rows.
        device: where batches go.
        workers: threads, each of which reads one step ahead; 0 reads when a batch is needed.
    """

    def __init__(self, source: Callable[[int], Batch], ranks: Ranks, *, passes: int, device: str, workers: int) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers}: threads that read ahead; use 0 for none")
        self.source, self.ranks, self.passes, self.device, self.workers = source, ranks, passes, device, workers
        self.pool = ThreadPoolExecutor(workers) if workers else None
        self.ahead: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        if self.pool is None:
            return on(self.read(step), self.device)
        wanted = range(step, step + self.workers + 1)
        self.ahead = {each: future for each, future in self.ahead.items() if each in wanted}
        for each in wanted:
            if each not in self.ahead:
                self.ahead[each] = self.pool.submit(self.read, each)
        return on(self.ahead.pop(step).result(), self.device)

    def read(self, step: int) -> Batch:
        """The rows of this process."""
        return own_rows(self.source, step, self.ranks, passes=self.passes)

    def close(self) -> None:
        """Read no more."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
