"""Tensors of which this process may hold a part: torch's DTensor, which nothing else imports, for it takes a second."""

import sys

from torch import Tensor


def is_parted(x: Tensor) -> bool:
    """Whether this process holds a part of a tensor; nobody does before somebody imported what makes parts."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def whole(x: Tensor) -> Tensor:
    """All of a tensor; every process that holds a part of it must ask."""
    return x.full_tensor() if is_parted(x) else x  # type: ignore[attr-defined]


def mine(x: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return x.to_local() if is_parted(x) else x  # type: ignore[attr-defined]


def parted_like(x: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, held as another one of its shape is held."""
    if not is_parted(like) or is_parted(x):
        return x
    from torch.distributed.tensor import distribute_tensor

    placed = x.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
