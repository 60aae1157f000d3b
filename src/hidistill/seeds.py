"""Randomness as a function of names and numbers, so that a resumed run is the same run.

`hash()` is salted per process; these are not.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def refuse_seed(seed: int) -> None:
    """Refuse a seed that nobody can have meant; -1, say, which elsewhere is "any".

    Raises:
        ValueError: if it is negative.
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; seeds are whole numbers from 0 on, of which none means any: say 0")


def fold_in(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^63) derived from `seed` and `names`, the same in every process."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def normal(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (len(seeds), *shape) in float32 on the CPU; row i depends on seeds[i] alone."""
    rows = [torch.randn(tuple(shape), generator=generator) for generator in generators(seeds)]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Generators that begin with the rows of `normal`; for those who draw by themselves."""
    return [torch.Generator().manual_seed(fold_in(seed, "noise")) for seed in seeds]


def shuffled(count: int, *, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices of the batch for a step: passes over `count` items, each in an order of its own, without a remainder.

    Raises:
        ValueError: if there is nothing to draw from.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"cannot draw batches of {batch_size} from {count} items; both must be at least 1")
    first = step * batch_size
    picks, wanted = [], torch.arange(first, first + batch_size)
    for epoch in range(first // count, (first + batch_size - 1) // count + 1):
        generator = torch.Generator().manual_seed(fold_in(seed, "epoch", epoch))
        order = torch.randperm(count, generator=generator)
        picks.append(order[wanted[wanted // count == epoch] % count])
    return torch.cat(picks)
