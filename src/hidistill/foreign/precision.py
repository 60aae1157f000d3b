"""Networks of float64 that stay in it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Double(TorchFunctionMode):
    """Casts of float64 tensors to float32 are left out within.

    diffusers takes its root mean squares, its rotations and SANA's attention in float32 whatever came, which serves
    bfloat16. In float64 it makes a function of steps, whose differences say nothing about a derivative.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping | None = None
    ) -> object:
        """Return what would be cast as it came."""
        del types
        kwargs = kwargs or {}
        kinds = (*args[1:], kwargs.get("dtype"))
        asked = func is Tensor.float or (func is Tensor.to and any(kind is torch.float32 for kind in kinds))
        if asked and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **kwargs)


def kept(kind: torch.dtype) -> AbstractContextManager:
    """Within, a network of this type stays in it where that costs nothing: in float64."""
    return Double() if kind == torch.float64 else nullcontext()
