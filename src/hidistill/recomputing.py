"""Blocks that run again in the backward pass, rather than keep what it needs: less memory for one more forward pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

Within = Callable[[], AbstractContextManager]
AROUND: ContextVar[tuple[Within, ...]] = ContextVar("around", default=())
"""What a network's pass is surrounded by, for its blocks to be so when they run again."""


class Again:
    """A block's forward pass, which runs again in the backward pass; where no gradient is asked for it is as it was."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *args: object, **kwargs: object) -> object:
        """The block's answer."""
        own = type(self.block).forward
        if not torch.is_grad_enabled():
            return own(self.block, *args, **kwargs)
        around, again = AROUND.get(), {}
        if around:  # torch.compile knows no contexts of others
            again["context_fn"] = lambda: (nullcontext(), Surroundings(around))
        return checkpoint(partial(own, self.block, **kwargs), *args, use_reentrant=False, **again)


class Surroundings:
    """Contexts that are made anew each time they are entered."""

    def __init__(self, around: tuple[Within, ...]) -> None:
        self.around = around

    def __enter__(self) -> None:
        """Enter all of them."""
        self.entered = ExitStack()
        for within in self.around:
            self.entered.enter_context(within())

    def __exit__(self, *error: object) -> None:
        """Leave them."""
        self.entered.close()


@contextmanager
def surrounded(within: Within) -> Iterator[None]:
    """`within()`, now, and once more around every block of this pass that runs again in the backward pass.

    What lives for one pass only, as hooks do, is gone by then, and the gradient would be that of another function.
    """
    token = AROUND.set((*AROUND.get(), within))
    try:
        with within():
            yield
    finally:
        AROUND.reset(token)


def recompute(block: nn.Module) -> None:
    """Have a block run again in the backward pass from now on, unless a pass changes it."""
    if not changed_by_passes(block):
        block.forward = Again(block)  # type: ignore[method-assign]


def changed_by_passes(block: nn.Module) -> bool:
    """Whether each pass moves something, as spectral norm's vectors: a second pass would be another function's."""
    return any(isinstance(part, _BatchNorm) or parametrize.is_parametrized(part) for part in block.modules())


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
            vars(block).pop("forward", None)


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
