"""The processes of a run, started by torchrun, as one of them sees them."""

import json
import platform
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hidistill import __version__
from hidistill.share import Reduction, Share

T = TypeVar("T")
OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
POLL_SECONDS = 5.0
"""Between two looks for what the first process has to say, which may be evaluating for hours."""


class LostRank(OSError):
    """Another process of the run is gone, or does not answer."""


class Agreed(ValueError):
    """What all processes raise alike, so that one of them need say it."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Args:
        rank: of this process, from 0.
        count: of all processes.
        device: where the networks of this process run.
        store: keys and values that all processes see; None if there is one process.
        timeout_seconds: after which a process that does not answer is given up.
        group: in which they talk; None is that of all.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    store: dist.Store | None = None
    timeout_seconds: float = 600.0
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, number: int, passes: int) -> Share:
        """The share of a batch that this process has at work in one of several passes.

        Args:
            number: of the pass.
            passes: in which each process takes its rows.
        """
        return Share(number * self.count + self.rank, passes * self.count, self.count, self.reduce)

    def reduce(self, x: Tensor, how: Reduction = "sum") -> Tensor:
        """The sum or maximum over the processes."""
        if self.count == 1:
            return x
        result = x.detach().clone()
        self.guarded(lambda: dist.all_reduce(result, OPERATIONS[how], group=self.group))
        return result

    def most(self, value: int) -> int:
        """The largest of the processes' numbers."""
        return value if self.count == 1 else int(self.reduce(torch.tensor(value), "max").item())

    def gather(self, value: T) -> list[T]:
        """What each process has, anything that JSON can hold, in the order of the processes."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        self.guarded(lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def from_first(self, topic: str, act: Callable[[], T]) -> T:
        """What the first process makes, in all of them; the others wait for as long as it takes.

        Args:
            topic: names what is done; every process comes to the same topics in the same order.
            act: called by the first process alone; gives what JSON can hold.

        Raises:
            Agreed: in the others, if it raised an error in the first process.
        """
        if self.store is None:
            return act()
        key = f"first/{topic}/{self.turn(topic)}"
        if self.first:
            try:
                result = act()
            except Exception as error:
                self.store.set(key, json.dumps({"error": f"{type(error).__name__}: {error}"}))
                raise
            self.store.set(key, json.dumps({"result": result}))
            return result
        answer = json.loads(self.wait_for(key))
        if "error" in answer:
            raise Agreed(f"the first process stopped: {answer['error']}")
        return answer["result"]

    def turn(self, topic: str) -> int:
        """How often this process came to a topic before."""
        assert self.store is not None
        return self.store.add(f"turn/{topic}/{self.rank}", 1)

    def wait_for(self, key: str) -> str:
        """A value of the store, once it is there.

        Raises:
            LostRank: if the store is gone, and the first process with it.
        """
        assert self.store is not None
        while True:
            try:
                self.store.wait([key], timedelta(seconds=POLL_SECONDS))
                return self.store.get(key).decode()
            except (dist.DistStoreError, RuntimeError) as error:
                if isinstance(error, dist.DistNetworkError) or "imeout" not in str(error):
                    raise LostRank(
                        f"rank {self.rank} lost the first process while it waited for it: {error}"
                    ) from error

    def guarded(self, act: Callable[[], object]) -> None:
        """Talk to the other processes.

        Raises:
            LostRank: if one does not answer.
        """
        try:
            act()
        except RuntimeError as error:
            raise self.lost(error) from error

    def lost(self, error: BaseException) -> LostRank:
        """What to say when another process does not answer."""
        return LostRank(
            f"process {self.rank} of {self.count} lost another one ({first_line(error)}); what that one printed says "
            "why. Run the same command again: it goes on from the last checkpoint"
        )

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Make sure that all processes have the same facts.

        Raises:
            ValueError: naming each fact that differs, and in which process.
        """
        all_facts = self.gather(dict(facts))
        differing = [
            f"{name} is {theirs.get(name)!r} in process {rank} and {all_facts[0].get(name)!r} in process 0"
            for rank, theirs in enumerate(all_facts)
            for name in dict.fromkeys((*all_facts[0], *theirs))
            if theirs.get(name) != all_facts[0].get(name)
        ]
        if differing:
            raise Agreed(
                f"the processes of this run are not alike: {'; '.join(differing)}. Start all of them from one "
                "installation, with the same command"
            )

    def same_weights(self, module: nn.Module) -> None:
        """Give all processes the first one's weights: built alike, they may differ in last bits between machines."""
        if self.count > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                self.guarded(lambda tensor=tensor: dist.broadcast(tensor.data, 0))

    def aside(self) -> "Ranks":
        """The same processes for a second thread, which must not come between what the first one says."""
        if self.store is None:
            return self
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_seconds))
        return replace(self, device="cpu", group=group, store=dist.PrefixStore("aside", cloned(self.store)))

    def close(self) -> None:
        """Leave the others; the process can talk to nobody after.

        The first process, in which the store may lie, leaves last: the others may still have to read there why.
        """
        if self.store is None:
            return
        try:
            left = self.store.add("left", 1)
            until = time.monotonic() + POLL_SECONDS
            while self.first and left < self.count and time.monotonic() < until:
                time.sleep(0.01)
                left = self.store.add("left", 0)
        except RuntimeError:  # the store is gone, and with it whoever could miss this process
            return
        dist.destroy_process_group()


ALONE = Ranks()


def likeness(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in all processes of a run.

    Args:
        experiment: what the run is: recipe, arguments, settings.
    """
    versions = {"hidistill": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return versions | dict(experiment)


def split(rows: int, shares: int, *, processes: int) -> None:
    """Refuse a batch that does not go into equal shares.

    Raises:
        ValueError: naming batch sizes that do.
    """
    if rows % shares or not rows:
        near = sorted({max(1, rows // shares) * shares, -(-rows // shares) * shares})
        passes = f" of {shares // processes} passes each" if shares > processes else ""
        raise Agreed(
            f"a batch of {rows} cannot be split over {processes} processes{passes}; use a multiple of {shares}, e.g. "
            f"{' or '.join(str(each) for each in near)}"
        )


def refuse_unshared(folder: Path, ranks: Ranks) -> None:
    """Refuse a folder that is another one in other processes, as a machine's own disk is.

    Raises:
        ValueError: in all processes, naming those that do not see what the first one wrote.
    """
    if ranks.count == 1:
        return

    def leave() -> str:
        token = f".shared-{secrets.token_hex(8)}"
        (folder / token).touch()
        return token

    mark = folder / ranks.from_first("shared", leave)
    blind = [rank for rank, seen in enumerate(ranks.gather(mark.exists())) if not seen]
    if ranks.first:
        mark.unlink()
    if blind:
        raise Agreed(
            f"{folder} of process 0 is not the folder that {named(blind)} have under that name; all processes of a run "
            "need one shared folder: give --out on a disk that every machine mounts, as an absolute path"
        )


TALKING = ("gloo", "nccl", "pair closure", "connection closed by peer", "connection reset", "timed out waiting")
"""Words of errors that torch raises, as plain ones, where processes talk in code that is not ours."""


def is_loss(error: RuntimeError) -> bool:
    """Whether an error means that another process is gone."""
    return isinstance(error, dist.DistError) or any(words in str(error).lower() for words in TALKING)


def cloned(store: dist.Store) -> dist.Store:
    """A store for a second thread: one serves a thread at a time, and its wait may be long."""
    return store.clone()  # type: ignore[attr-defined] -- not in torch's stubs


def first_line(error: BaseException) -> str:
    """The first line of a message that may have many."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def named(ranks: Sequence[int]) -> str:
    """Processes in words."""
    return f"process {ranks[0]}" if len(ranks) == 1 else f"processes {', '.join(str(rank) for rank in ranks)}"
