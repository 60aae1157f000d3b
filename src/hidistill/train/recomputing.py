"""Blocks that run again in the backward pass, rather than keep what it needs: less memory for one more forward pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Again:
    """A block's forward pass, which runs again in the backward pass; where no gradient is asked for it is as it was."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *args: object, **kwargs: object) -> object:
        """The block's answer."""
        own = type(self.block).forward
        if not torch.is_grad_enabled():
            return own(self.block, *args, **kwargs)
        return checkpoint(partial(own, self.block, **kwargs), *args, use_reentrant=False)


def recompute(block: nn.Module) -> None:
    """Have a block run again in the backward pass from now on."""
    block.forward = Again(block)  # type: ignore[method-assign]


@contextmanager
def recomputed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Have the blocks of networks run again in the backward pass, within."""
    changed = [block for module in modules for block in blocks(module) if "forward" not in vars(block)]
    for block in changed:
        recompute(block)
    try:
        yield
    finally:
        for block in changed:
            del block.forward


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a network: the members of its lists, outermost ones, that are called as modules."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += [each for each in child if callable_module(each)]
        else:
            found += blocks(child)
    return found


def callable_module(module: nn.Module) -> bool:
    """Whether a module has parameters and a forward pass of its own."""
    return type(module).forward is not nn.Module.forward and any(True for _ in module.parameters())
