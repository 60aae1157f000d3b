"""Products, saved activations and peak memory of a call: counted, so the machine does not matter.

Everything also works on the meta device, without data, where XL/2 costs a second and no memory.
"""

import gc
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hidistill.train.counting import Tally

MIB = 2**20


def flops(run: Callable[[], object]) -> int:
    """Products of one call, forward and backward; attention is counted because it is unfused."""
    with Tally() as counted, sdpa_kernel(SDPBackend.MATH):
        run()
    return counted.flops


class Fused(TorchFunctionMode):
    """Attention by a fused kernel on the meta device too, where torch takes the unfused one and holds n^2 scores."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 -- torch's signature
        """Route attention alone."""
        del types
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once."""
    return sum({key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def key(tensor: Tensor) -> int:
    """Tells storages apart."""
    return tensor.untyped_storage()._cdata


def saved(run: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Bytes that one forward call keeps for its backward pass, beside the weights."""
    kept: list[Tensor] = []
    own = {key(weight) for weight in weights}

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with Fused(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = run()
    total = held(tensor for tensor in kept if key(tensor) not in own)
    del graph
    return total


def peak(run: Callable[[], object]) -> int:
    """Bytes that a call held at most beside what was there before it."""
    gc.collect()
    with Fused(), Tally() as counted:
        run()
    return counted.peak


def moving(parameters: Iterable[Tensor], run: Callable[[], Tensor]) -> Callable[[], None]:
    """A call that runs and goes back to these parameters alone, as the loop does, and leaves no gradient."""
    owned = list(parameters)

    def call() -> None:
        for parameter in owned:
            parameter.requires_grad_(True)
        try:
            run().backward()
        finally:
            for parameter in owned:
                parameter.requires_grad_(False)
                parameter.grad = None

    return call
