"""How a step's batch is shared out over processes and passes, and what its scalars are over all rows."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from hidistill.share import Share
from hidistill.train.distributed.buckets import Buckets
from hidistill.train.distributed.ranks import ALONE, Ranks


@runtime_checkable
class Averaging(Protocol):
    """Makes of the gradients that a process has added up those of the whole batch's mean loss."""

    def watching(self) -> AbstractContextManager[None]:
        """Within, the last backward pass of a step runs."""
        ...

    def finish(self, passes: int) -> tuple[Sequence[int], Sequence[int]]:
        """Finish the gradients; the processes whose own were not finite, and those that lacked some."""
        ...


@dataclass(frozen=True)
class Local:
    """The gradients of one process, added up over passes.

    Args:
        parameters: of the update.
    """

    parameters: Sequence[Tensor]

    def watching(self) -> AbstractContextManager[None]:
        """Nothing to watch."""
        return nullcontext()

    def finish(self, passes: int) -> tuple[Sequence[int], Sequence[int]]:
        """Divide by the number of passes."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if passes > 1 and gradients:
            torch._foreach_div_(gradients, float(passes))  # one launch for all; no public name for it
        return (), ()


@dataclass(frozen=True)
class Sharding:
    """How processes hold networks in parts (FSDP2).

    Args:
        recompute: whether blocks run again in the backward pass instead of keeping what it needs.
        offload_frozen: whether frozen networks rest in the memory of the CPU, from which a block comes when it runs.
        bfloat16: whether weights travel and compute in bfloat16; those that move are kept, and their gradients added
            up, in float32. Inputs are not cast, for a time in bfloat16 is known to 1/256.
    """

    recompute: bool = False
    offload_frozen: bool = False
    bfloat16: bool = False


@dataclass(frozen=True)
class Work:
    """How the batch of a step is shared out.

    Args:
        ranks: the processes; each has its rows of every batch.
        passes: in which a process takes its rows, one after the other: less memory for the same step.
        workers: threads that read batches ahead.
        averaging: of an update's gradients over processes; None where each process has whole copies of the networks.
    """

    ranks: Ranks = ALONE
    passes: int = 1
    workers: int = 0
    averaging: Callable[[Sequence[Tensor]], Averaging] | None = None

    def __post_init__(self) -> None:
        """Refuse no passes."""
        if self.passes < 1:
            raise ValueError(f"passes={self.passes}: a batch is taken in 1 pass or more; 1 takes it at once")

    def averages(self, parameters: Sequence[Tensor]) -> Averaging:
        """What averages the gradients of these parameters."""
        if self.averaging is not None:
            return self.averaging(parameters)
        return Local(parameters) if self.ranks.count == 1 else Buckets(parameters, self.ranks)


@dataclass
class Tally:
    """Scalars of an update as means over all rows, and which losses are not finite.

    Args:
        work: how the batch is shared out.
        sums: over the passes so far, by name.
        rows: numbers of the rows, within the whole batch, whose loss is not finite.
        terms: the objective's other scalars that are not finite where a loss is not.
        value: a mean loss that is not finite.
    """

    work: Work
    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    value: str = ""
    transfer: tuple[Tensor, Any] | None = None

    def add(self, share: Share, losses: Tensor, metrics: Mapping[str, Tensor]) -> Tensor:
        """Take in a pass; its mean loss."""
        value = losses.mean()
        for name, scalar in {"loss": value, **metrics}.items():
            scalar = scalar.detach().float()
            self.sums[name] = self.sums[name] + scalar if name in self.sums else scalar
        if not value.isfinite().item():
            numbers, self.value = share.numbers(len(losses)), str(value.item())
            self.rows += [numbers[row] for row in torch.nonzero(~losses.isfinite()).flatten().tolist()]
            self.terms += [name for name, scalar in metrics.items() if not scalar.isfinite().all()]
        return value

    def send(self) -> None:
        """Begin to add up over processes."""
        ranks = self.work.ranks
        if ranks.count > 1:
            packed = torch.stack([*self.sums.values(), self.sums["loss"].new_tensor(float(len(self.rows)))])
            ranks.guarded(lambda: setattr(self, "transfer", (packed, dist.all_reduce(packed, async_op=True))))

    def receive(self) -> tuple[dict[str, float], bool]:
        """The means over all rows, and whether every loss is finite."""
        ranks, passes = self.work.ranks, self.work.passes
        if self.transfer is None:
            return {name: each.item() / passes for name, each in self.sums.items()}, not self.rows
        packed, work = self.transfer
        ranks.guarded(work.wait)
        *sums, broken = packed.tolist()
        means = {name: each / (ranks.count * passes) for name, each in zip(self.sums, sums, strict=True)}
        return means, not broken
