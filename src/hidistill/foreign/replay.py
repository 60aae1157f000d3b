"""Networks that run parts of their forward pass again within the backward pass (gradient checkpointing)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from hidistill.recomputing import surrounded


def checkpointing(net: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of a network that can run their parts again, whether they do or not."""
    return tuple(module for module in net.modules() if "gradient_checkpointing" in vars(module))


@contextmanager
def replayed(places: Sequence[nn.Module], within: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """`within()`, now and once more around every block that runs again in the backward pass, for diffusers or for us.

    What lives for one call only, as hooks and switches do, is gone when diffusers' networks run a block again, and the
    gradient would be that of another function.

    Args:
        places: see `checkpointing`; the blocks that they pass to their `_gradient_checkpointing_func` come again.
        within: makes the context, anew each time.
    """
    under_way = [True]
    modules: list[Any] = [module for module in places if module.gradient_checkpointing]
    own = [module._gradient_checkpointing_func for module in modules]

    def surrounding(checkpoint: Callable) -> Callable:
        def checkpointed(block: Callable, *given: object) -> object:
            def again(*given: object) -> object:
                with nullcontext() if under_way else within():
                    return block(*given)

            return checkpoint(again, *given)

        return checkpointed

    for module, checkpoint in zip(modules, own, strict=True):
        module._gradient_checkpointing_func = surrounding(checkpoint)
    try:
        with surrounded(within):
            yield
    finally:
        under_way.clear()
        for module, checkpoint in zip(modules, own, strict=True):
            module._gradient_checkpointing_func = checkpoint
