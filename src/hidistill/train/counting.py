"""What a step takes: products, bytes and memory, counted without computing anything.

An update runs once on tensors that have shapes and no numbers. What it would have computed, moved and kept alive is
counted operation by operation, so that the answer holds for any machine; `rates` says how long one takes for it.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hidistill.attention import elsewhere
from hidistill.path import on
from hidistill.recomputing import recomputed
from hidistill.train.experiment import Experiment
from hidistill.train.loop import Precision, autocast
from hidistill.train.stage import Stage, Update
from hidistill.types import Batch, Objective

Kind = Literal["product", "convolution", "attention", "heavy", "light", "strided"]
HEAVY = (
    "softmax", "gelu", "silu", "norm", "exp", "log", "sin", "cos", "tanh", "sigmoid", "softplus", "pow", "randn",
    "normal", "uniform", "rand",
)  # fmt: skip
"""Parts of the names of operations that a processor spends time in beside moving bytes."""
STRIDED = ("clone", "copy", "_to_copy", "sum", "mean", "cat", "stack", "index", "gather", "embedding", "constant_pad")
"""Beginnings of the names of operations that read or write out of order, or add many numbers up to few."""
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


class Op(NamedTuple):
    """One operation: its kind, its products (2 per multiplication and addition), bytes read and written."""

    kind: Kind
    flops: int
    bytes: int
    half: bool


@dataclass(frozen=True)
class Work:
    """What one update takes, once.

    Args:
        ops: operations, with how often each comes; on the mean, where not every time is alike.
        peak_bytes: most that is alive at once of what the update makes: activations, gradients, temporaries.
        saved_bytes: what is alive of it when the loss is there, kept for the way back.
        activation_bytes: most that is alive at once of it beside the gradients.
        moving: numbers that the optimizer moves.
        every: the update runs on each `every`-th step.
        tokens: tokens of a sample, as the longest attention has them; 0 without attention.
        samples: rows of the batch.
        averaged: numbers that follow in moving averages.
    """

    ops: Mapping[Op, float] = field(repr=False)
    peak_bytes: int
    saved_bytes: int
    activation_bytes: int
    moving: int
    every: int
    tokens: int
    samples: int
    averaged: int = 0

    @property
    def flops(self) -> int:
        """Products of the update."""
        return round(sum(op.flops * count for op, count in self.ops.items()))

    @property
    def bytes(self) -> int:
        """Bytes that the update's operations read and write."""
        return round(sum(op.bytes * count for op, count in self.ops.items()))

    def repeated(self, times: int) -> "Work":
        """The work of so many passes whose gradients are added up: nothing more is alive at once."""
        ops = {op: times * count for op, count in self.ops.items()}
        return replace(self, ops=ops, samples=times * self.samples)


class Uncountable(ValueError):
    """An update whose operations depend on numbers cannot be counted without them."""


def count(
    experiment: Experiment, *, samples: int | None = None, recompute: bool = False, device: str = "cpu"
) -> dict[str, dict[str, Work]]:
    """The work of every update of every stage, by their names. Nothing is computed, drawn or changed.

    Args:
        experiment: built, on any device.
        samples: rows of a batch, in place of the experiment's own.
        recompute: whether the blocks of all networks run again in the backward pass.
        device: what will do the work; on a CPU some operations are taken otherwise.

    Raises:
        Uncountable: if an update's operations depend on numbers.
    """
    found: dict[str, dict[str, Work]] = {}
    taking_part = [*experiment.modules.values(), *experiment.frozen.values()]
    again = recomputed(taking_part) if recompute else nullcontext()
    with again, nullcontext() if device == "cpu" else elsewhere():
        for index, stage in enumerate(experiment.stages):
            if not stage.steps:
                continue
            batch = on(experiment.batch_at(experiment.offset(index)), "cpu")
            works = count_stage(stage, batch, taking_part, precision=experiment.precision, samples=samples)
            averages = {id(p): p.numel() for each in stage.averages.values() for p in each.source.parameters()}
            found[stage.name] = {
                name: replace(work, averaged=sum(averages.get(id(p), 0) for p in stage.updates[name].parameters()))
                for name, work in works.items()
            }
    return found


def count_stage(
    stage: Stage,
    batch: Batch,
    taking_part: Sequence[nn.Module],
    *,
    precision: Precision = "float32",
    samples: int | None = None,
) -> dict[str, Work]:
    """The work of a stage's updates by their names, each on the mean over the steps that it runs in.

    What an update takes may depend on those that ran before it in the same step, for one may leave the other what it
    has drawn. So every set of updates that a step can have is counted as it runs. For the arguments see `count_update`.
    """
    together = Counter(
        tuple(name for name, update in stage.updates.items() if (step + 1) % update.every == 0)
        for step in range(lcm(*(update.every for update in stage.updates.values())))
    )
    counts: dict[str, list[tuple[Work, int]]] = {name: [] for name in stage.updates}
    for names, often in together.items():
        each = [stage.updates[name] for name in names]
        for name, work in zip(names, count_step(each, batch, taking_part, precision, samples), strict=True):
            counts[name].append((work, often))
    return {name: mean(works) for name, works in counts.items()}


def mean(works: Sequence[tuple[Work, int]]) -> Work:
    """The mean of counts of one update, each of which comes so often; of memory the largest."""
    ops: dict[Op, float] = {}
    total = sum(often for _, often in works)
    for work, often in works:
        for op, times in work.ops.items():
            ops[op] = ops.get(op, 0.0) + times * often / total
    names = ("peak_bytes", "saved_bytes", "activation_bytes")
    most = {name: max(getattr(work, name) for work, _ in works) for name in names}
    return replace(works[0][0], ops=ops, **most)


def count_update(
    update: Update,
    batch: Batch,
    taking_part: Sequence[nn.Module],
    *,
    precision: Precision = "float32",
    samples: int | None = None,
) -> Work:
    """The work of one update: its objective forward, and the gradient of what it moves.

    Args:
        update: what is counted.
        batch: what it would get; its numbers do not matter.
        taking_part: the networks of which the objective makes use. Those that are not named are copied.
        precision: see `train.loop.autocast`.
        samples: rows of the batch, in place of its own.

    Raises:
        Uncountable: if its operations depend on numbers.
    """
    (work,) = count_step([update], batch, taking_part, precision, samples)
    return work


def count_step(
    updates: Sequence[Update],
    batch: Batch,
    taking_part: Sequence[nn.Module],
    precision: Precision,
    samples: int | None,
) -> list[Work]:
    """The work of updates that run one after the other in a step; see `count_update`."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # a second of imports, which only those who count pay for

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = False  # a view out of the cache has lost that it carries a tangent, and forward mode fails
    with mode:
        memo = {id(tensor): on_paper(tensor) for module in taking_part for tensor in tensors_of(module)}
    copies = deepcopy([(update.objective, update.parameters()) for update in updates], memo)
    tally = Tally()
    with torch.random.fork_rng(devices=[]), mode:
        batch = resized(batch, samples or len(batch.x))
        return [
            counted_once(update, objective, parameters, batch, precision, tally)
            for update, (objective, parameters) in zip(updates, copies, strict=True)
        ]


def counted_once(  # noqa: PLR0917 -- what one update needs
    update: Update,
    objective: Objective,
    parameters: Sequence[Tensor],
    batch: Batch,
    precision: Precision,
    tally: "Tally",
) -> Work:
    """The work of an update whose objective and parameters are on paper; what one before it left is still alive."""
    tally.begin()
    for parameter in parameters:
        parameter.requires_grad_(True)
    hooks = [parameter.register_hook(tally.leave) for parameter in parameters]
    try:
        with tally:
            with autocast(precision, "cpu"):
                loss = objective(batch)
            saved = tally.alive
            gradients = torch.autograd.grad(loss.value.mean(), parameters)
    except Exception as error:  # a network may do anything, and none of it is a defect of the run
        raise Uncountable(
            f"{type(update.objective).__name__} cannot be counted: it looks at numbers, or uses an operation that "
            f"needs them ({type(error).__name__}: {str(error).splitlines()[:1]}), as guidance within an interval "
            "does; only what is said about speed is missing for it"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in parameters:
            parameter.requires_grad_(False)
    del gradients
    rows, size = len(batch.x), sum(p.numel() for p in update.parameters())
    ops = {op: float(times) for op, times in tally.ops.items()}
    return Work(ops, tally.peak, saved, tally.beside, size, update.every, tally.tokens, rows)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def on_paper(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and type that does not move, without numbers; call it within a `FakeTensorMode`."""
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def resized(batch: Batch, rows: int) -> Batch:
    """A batch of so many rows, without numbers; call it within a `FakeTensorMode`."""

    def paper(value: Any) -> Any:  # noqa: ANN401 -- a tensor, a mapping of some, or anything else
        if isinstance(value, Mapping):
            return {name: paper(each) for name, each in value.items()}
        if isinstance(value, Tensor) and value.ndim:
            return torch.empty((rows, *value.shape[1:]), dtype=value.dtype)
        return value

    return type(batch)(**{name: paper(value) for name, value in vars(batch).items()})


class Tally(TorchDispatchMode):
    """Counts every operation within, and the bytes that are alive of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[Op] = Counter()
        self.alive, self.peak, self.beside, self.tokens = 0, 0, 0, 0
        self._storages: dict[int, int] = {}
        self._gradients: dict[int, int] = {}
        self._done = 0

    def begin(self) -> None:
        """Count anew; what is alive stays so."""
        self.ops, self.tokens = Counter(), 0
        self.peak = self.beside = self.alive

    def leave(self, gradient: Tensor) -> None:
        """Count a gradient of a parameter among those that are done, and not among what is on its way."""
        key = gradient.untyped_storage()._cdata
        if key in self._storages:
            self._done += self._storages[key] - self._gradients.get(key, 0)
            self._gradients[key] = self._storages[key]

    @property
    def flops(self) -> int:
        """Products so far."""
        return sum(op.flops * count for op, count in self.ops.items())

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 -- an operation
        types: Sequence[type],
        args: tuple = (),
        kwargs: Mapping | None = None,
    ) -> Any:  # noqa: ANN401 -- any operation's answer
        """Count one operation."""
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made, read = tensors_in(out), tensors_in((args, kwargs))
        if made and not func.is_view and func is not torch.ops.aten._unsafe_view.default:  # a view by another name
            self.ops[self.weighed(func, args, kwargs, out, [*read, *made])] += 1
        there = {tensor.untyped_storage()._cdata for tensor in read}  # of weights and of what is changed in place
        for storage in (tensor.untyped_storage() for tensor in made):
            if storage._cdata not in there:
                self.keep(storage)
        return out

    def weighed(self, func: Any, args: tuple, kwargs: Mapping, out: Any, tensors: list[Tensor]) -> Op:  # noqa: ANN401
        """What one operation takes."""
        packet, name = func._overloadpacket, func.name().partition("::")[2]
        moved = sum(map(size_of, tensors))
        half = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors)
        if name.startswith(ATTENTION):
            query, key = args[1:3] if "backward" in name else args[:2]
            self.tokens = max(self.tokens, query.shape[-2])
            products = 5 if "backward" in name else 2  # a fused kernel computes the scores once more on its way back
            return Op("attention", 2 * products * query.numel() * key.shape[-2], moved, half)
        if packet in flop_registry:
            kind: Kind = "convolution" if "convolution" in name else "product"
            return Op(kind, flop_registry[packet](*args, **kwargs, out_val=out), moved, half)
        if any(part in name for part in HEAVY):
            return Op("heavy", 0, moved, half)
        return Op("strided" if name.startswith(STRIDED) else "light", 0, moved, half)

    def keep(self, storage: torch.UntypedStorage) -> None:
        """Count a storage's bytes until it goes."""
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = storage.nbytes()
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            self.beside = max(self.beside, self.alive - self._done)
            weakref.finalize(storage, self.release, key)

    def release(self, key: int) -> None:
        """Forget a storage."""
        self.alive -= self._storages.pop(key)
        self._done -= self._gradients.pop(key, 0)


def tensors_in(values: object) -> list[Tensor]:
    """The tensors in an operation's arguments, or in its answer."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def size_of(tensor: Tensor) -> int:
    """Bytes that a tensor lies in: less than its elements' where it was expanded."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
