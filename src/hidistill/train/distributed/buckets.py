"""Gradients of all processes, averaged while the backward pass still runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from hidistill.train.distributed.ranks import Ranks

BUCKET_BYTES = 25 << 20
"""A message of this size is near a network's full rate; smaller ones begin earlier."""


@dataclass(eq=False)
class Bucket:
    """Parameters whose gradients travel together.

    Args:
        parameters: of one type and device.
        arrived: ids of those whose gradient is there.
        flat: the gradients in one piece, and behind them two numbers per process; None before they travel.
        work: the transfer under way.
    """

    parameters: Sequence[Tensor]
    arrived: set[int] = field(default_factory=set)
    flat: Tensor | None = None
    work: dist.Work | None = None


class Buckets:
    """Averages the gradients of an update's parameters over the processes.

    A bucket travels once the gradients of all its parameters are there; buckets are in the reverse order of the
    parameters, about the order in which a backward pass reaches them, and always travel in that order.

    Args:
        parameters: of the update.
        ranks: the processes; alone there is nothing to do.
    """

    def __init__(self, parameters: Sequence[Tensor], ranks: Ranks) -> None:
        self.ranks, self.buckets, self.next, self.armed = ranks, divided(parameters), 0, False
        self.home = {id(parameter): bucket for bucket in self.buckets for parameter in bucket.parameters}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, gradients travel as soon as they are there: for the last backward pass of a step."""
        handles = [
            parameter.register_post_accumulate_grad_hook(self.take)
            for bucket in self.buckets
            for parameter in bucket.parameters
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take(self, parameter: Tensor) -> None:
        """Note that a gradient is there."""
        self.home[id(parameter)].arrived.add(id(parameter))
        while self.next < len(self.buckets):
            bucket = self.buckets[self.next]
            if len(bucket.arrived) < len(bucket.parameters):
                return
            self.launch(bucket)

    def launch(self, bucket: Bucket) -> None:
        """Send a bucket, with this process's sum of it and its number of missing gradients."""
        first = bucket.parameters[0]
        gradients = [zeros(each) if each.grad is None else each.grad for each in bucket.parameters]
        missing = sum(each.grad is None for each in bucket.parameters)
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        notes = torch.zeros(2 * self.ranks.count, device=first.device, dtype=flat.dtype)
        notes[self.ranks.rank], notes[self.ranks.count + self.ranks.rank] = flat.sum(), missing
        bucket.flat = torch.cat([flat, notes])
        self.ranks.guarded(lambda: setattr(bucket, "work", dist.all_reduce(bucket.flat, async_op=True)))
        self.next += 1

    def finish(self, passes: int) -> tuple[list[int], list[int]]:
        """Wait for all buckets; the gradients are then those of the whole batch.

        Args:
            passes: over which this process has added up its gradients.

        Returns:
            The processes whose own gradients were not finite, and those that lacked some.
        """
        while self.next < len(self.buckets):
            self.launch(self.buckets[self.next])
        count = self.ranks.count
        broken, lacking = set(), set()
        for bucket in self.buckets:
            assert bucket.flat is not None
            assert bucket.work is not None
            self.ranks.guarded(bucket.work.wait)
            flat, notes = bucket.flat[: -2 * count], bucket.flat[-2 * count :]
            flat.div_(count * passes)
            torch._foreach_copy_(  # one launch for all; no public name for it
                [gradient_of(parameter) for parameter in bucket.parameters],
                [
                    part.view_as(parameter)
                    for part, parameter in zip(
                        flat.split([parameter.numel() for parameter in bucket.parameters]),
                        bucket.parameters,
                        strict=True,
                    )
                ],
            )
            sums, missing = notes.tolist()[:count], notes.tolist()[count:]
            broken |= {rank for rank, each in enumerate(sums) if not abs(each) < float("inf")}
            lacking |= {rank for rank, each in enumerate(missing) if each}
            bucket.arrived.clear()
            bucket.flat = bucket.work = None
        self.next = 0
        return sorted(broken), sorted(lacking)


def divided(parameters: Sequence[Tensor]) -> list[Bucket]:
    """Buckets of at most `BUCKET_BYTES`, each of one type and device."""
    buckets: list[list[Tensor]] = []
    size, kind = 0, None
    for parameter in reversed(parameters):
        if not buckets or size + parameter.nbytes > BUCKET_BYTES or kind != (parameter.dtype, parameter.device):
            buckets.append([])
            size, kind = 0, (parameter.dtype, parameter.device)
        buckets[-1].append(parameter)
        size += parameter.nbytes
    return [Bucket(each) for each in buckets]


def zeros(parameter: Tensor) -> Tensor:
    """A gradient for a parameter that got none, so that messages fit."""
    return torch.zeros_like(parameter, requires_grad=False)


def gradient_of(parameter: Tensor) -> Tensor:
    """A parameter's gradient, made where it is missing."""
    if parameter.grad is None:
        parameter.grad = zeros(parameter)
    return parameter.grad
