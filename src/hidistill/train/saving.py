"""When checkpoints are written: at once, or by a thread while training goes on."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hidistill.train.checkpoint import Best, store
from hidistill.train.distributed.ranks import Ranks
from hidistill.train.experiment import Experiment
from hidistill.train.snapshot import Position, Snapshot, sharded, take


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints there are.

    Args:
        every: steps between two; there is one more at each stage's end.
        newest: how many stay.
        best: which further one stays; there is one after each short evaluation then.
        background: whether a thread writes them. Training waits for a copy of the state alone, and for the checkpoint
            before, if that is not yet written.
    """

    every: int = 100
    newest: int = 2
    best: Best | None = None
    background: bool = False

    def __post_init__(self) -> None:
        """Refuse no checkpoints."""
        if self.every < 1 or self.newest < 1:
            raise ValueError(f"checkpoint_every={self.every} and keep={self.newest}: both must be at least 1")


class Saver:
    """Writes the checkpoints of a run.

    Args:
        root: their folder.
        experiment: what is saved.
        recipe: its recipe's name.
        keeping: which there are.
        ranks: the processes of the run.
    """

    def __init__(self, root: Path, experiment: Experiment, recipe: str, keeping: Keeping, ranks: Ranks) -> None:
        self.root, self.experiment, self.recipe, self.keeping = root, experiment, recipe, keeping
        self.parted = sharded(experiment)
        self.ranks = ranks.aside() if keeping.background and self.parted else ranks
        self.thread = ThreadPoolExecutor(1) if keeping.background else None
        self.under_way: Future[Path] | None = None

    def save(self, position: Position, score: Mapping[str, float], *, told: Callable[[Path], None]) -> None:
        """Write a checkpoint, or begin to.

        Args:
            position: of the run, whose state is in memory.
            score: numbers of the short evaluation of this state, if there was one.
            told: called with the checkpoint that this call or an earlier one has finished.

        Raises:
            OSError: if it cannot be written, or the one before could not.
        """
        self.wait(told)
        background = self.thread is not None
        # Where every process has everything, the first one's is enough.
        needed = self.parted or self.ranks.first
        snapshot = (
            take(self.experiment, position, recipe=self.recipe, score=score, copy=background)
            if needed
            else Snapshot(position, {})
        )
        if self.thread is None:
            told(self.store(snapshot, self.ranks))
        elif self.parted:
            self.under_way = self.thread.submit(self.store, snapshot, self.ranks)
        elif self.ranks.first:
            self.under_way = self.thread.submit(self.store, snapshot, Ranks())
        else:
            told(self.root / f"{position.global_step:08d}")

    def store(self, snapshot: Snapshot, ranks: Ranks) -> Path:
        """Write a snapshot."""
        return store(self.root, snapshot, keep=self.keeping.newest, best=self.keeping.best, ranks=ranks)

    def look(self, told: Callable[[Path], None]) -> None:
        """Tell of a checkpoint that has been finished meanwhile."""
        if self.under_way is not None and self.under_way.done():
            self.wait(told)

    def wait(self, told: Callable[[Path], None]) -> None:
        """Wait for the checkpoint that is under way."""
        if self.under_way is not None:
            begun, self.under_way = self.under_way, None
            told(begun.result())

    def close(self) -> None:
        """Wait for the checkpoint that is under way, whatever becomes of it."""
        if self.thread is not None:
            self.thread.shutdown(wait=True)
