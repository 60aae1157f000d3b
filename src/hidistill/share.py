"""The rows of a step's batch that are at work here, where processes or passes share one batch.

Share i of n holds the rows i, i + n, i + 2n, ... of the batch. Taken in turn and not as a block, the first rows of a
share are among the first rows of the batch, and the rows of two batches put together stay with their partners: what an
objective says of its own rows holds of all.

While a share is held, random numbers of torch's default generator are those of the whole batch, of which each share
takes its rows. A step is then the same step whatever the number of shares, and no objective knows how many there are.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hidistill.types import Batch

Reduction = Literal["sum", "max"]


def alone(x: Tensor, how: Reduction) -> Tensor:
    """The reduction over one process: nothing to do."""
    del how
    return x


@dataclass(frozen=True)
class Share:
    """Which rows of the batch are at work.

    Args:
        index: of this share.
        count: of all shares: processes times passes.
        processes: among which `reduce` adds up; the shares of one process are at work one after the other.
        reduce: the sum or maximum of a tensor over the processes, each of which must ask for it.
    """

    index: int = 0
    count: int = 1
    processes: int = 1
    reduce: Callable[[Tensor, Reduction], Tensor] = alone

    def of(self, rows: Tensor) -> Tensor:
        """This share of all rows."""
        return rows if self.count == 1 else rows[self.index :: self.count].contiguous()

    def numbers(self, rows: int) -> range:
        """The numbers that this share's rows have among all."""
        return range(self.index, rows * self.count, self.count)


WHOLE = Share()
held: list[Share] = [WHOLE]
"""The last one counts. Of the process and not of a thread, since backward passes run in threads of their own."""


@contextmanager
def holding(share: Share) -> Iterator[None]:
    """Within, a share is held; the whole batch where the share is all of it."""
    held.append(share)
    try:
        with Draws() if share.count > 1 else nullcontext():
            yield
    finally:
        held.pop()


def current() -> Share:
    """The share that is held."""
    return held[-1]


def front(rows: int, part: float, *, least: int = 0) -> int:
    """How many rows of the batch are a part of it, where each share has `rows`: `round(part x all)`, or `least`."""
    return max(least, round(rows * current().count * part))


def leading(rows: int, part: float, *, least: int = 0) -> int:
    """How many of the `rows` rows here are among the first `front` of the batch; `front` if alone."""
    share = current()
    first = front(rows, part, least=least)
    return max(0, (first - share.index + share.count - 1) // share.count)


def in_turn(values: Sequence[float], rows: int) -> list[float]:
    """A value for each of the rows here, where the rows of the batch take them in turn."""
    return [values[number % len(values)] for number in current().numbers(rows)]


def everywhere(x: Tensor, how: Reduction = "sum") -> Tensor:
    """A sum or maximum over the rows here, made one over the rows of all processes; every process must come here.

    Without gradient. Passes of one process follow one another, so their rows are not among them.
    """
    return current().reduce(x, how)


def anywhere(flag: bool) -> bool:
    """Whether it is so in one of the processes; every process must come here.

    Where networks are held in parts, all processes must call them equally often: what decides about a call is asked of
    all, and who has no row for it takes one that does not count.
    """
    share = current()
    return flag if share.processes == 1 else bool(share.reduce(torch.tensor(float(flag)), "max"))


@dataclass(frozen=True)
class Drawn:
    """Batches of which each process reads its own rows alone: a function of the step that is given as two.

    Args:
        pick: what the rows of a step are, a tensor with one entry for each.
        take: the batch of some of these entries, for a step. An entry's row must not depend on the others.
    """

    pick: Callable[[int], Tensor]
    take: Callable[[Tensor, int], Batch]

    def __call__(self, step: int) -> Batch:
        """The whole batch of a step."""
        return self.take(self.pick(step), step)


def enlarged(like: Tensor, share: Share) -> Tensor:
    """Room for the rows of all shares."""
    return like.detach().new_empty((len(like) * share.count, *like.shape[1:]))


def like(share: Share, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    """`rand_like` and the like."""
    x, *rest = args
    return share.of(func(enlarged(x, share), *rest, **kwargs)) if x.ndim else func(*args, **kwargs)


def fresh(share: Share, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    """`rand`, `randn` and `randint`, whose sizes come in several ways."""
    fixed = () if func is not torch.randint else args if "size" in kwargs else args[:-1]
    size = kwargs.pop("size", None)
    if size is None:
        rest = args[len(fixed) :]
        size = rest[0] if len(rest) == 1 and isinstance(rest[0], Sequence) else rest
    if not len(size):
        return func(*fixed, size=(), **kwargs)
    return share.of(func(*fixed, size=(size[0] * share.count, *size[1:]), **kwargs))


def in_place(share: Share, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    """`normal_` and `uniform_`."""
    x, *rest = args
    return x.copy_(share.of(func(enlarged(x, share), *rest, **kwargs))) if x.ndim else func(*args, **kwargs)


def bernoulli(share: Share, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    """`bernoulli` of probabilities, of which only this share's are known."""
    (p,) = args
    if not p.ndim:
        return func(p, **kwargs)
    return (share.of(torch.rand_like(enlarged(p, share))) < p).to(p.dtype)


def dropout(share: Share, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    """`dropout`, whose mask is then of the whole batch."""
    bound = inspect.signature(F.dropout).bind(*args, **kwargs)
    bound.apply_defaults()
    x, p = bound.arguments["input"], bound.arguments["p"]
    if not bound.arguments["training"] or not 0.0 < p < 1.0 or not x.ndim:
        return func(*args, **kwargs)
    factor = (share.of(torch.rand_like(enlarged(x, share))) >= p).to(x.dtype) / (1 - p)
    return x.mul_(factor) if bound.arguments["inplace"] else x * factor


Rule = Callable[[Share, Callable, tuple, dict], Tensor]
RULES: Mapping[Callable, Rule] = {
    torch.rand_like: like,
    torch.randn_like: like,
    torch.randint_like: like,
    torch.rand: fresh,
    torch.randn: fresh,
    torch.randint: fresh,
    Tensor.normal_: in_place,
    Tensor.uniform_: in_place,
    torch.bernoulli: bernoulli,
    F.dropout: dropout,
}


class Draws(TorchFunctionMode):
    """Random numbers of the whole batch, of which a share takes its rows.

    The first dimension counts as rows in `rand`, `randn`, `randint`, their `_like`, `normal_`, `uniform_`,
    `bernoulli` and `dropout`. Draws from a generator of their own, and those within `holding(WHOLE)`, are left alone;
    so are `randperm`, `multinomial` and the like, which give the same numbers to every share.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping | None = None
    ) -> object:
        """Enlarge a draw, leave the rest to torch."""
        del types
        kwargs = dict(kwargs or {})
        share, rule = current(), RULES.get(func)
        if rule is None or share.count == 1 or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        return rule(share, func, args, kwargs)
