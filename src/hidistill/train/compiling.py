"""torch.compile for the networks' passes."""

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from hidistill.train.experiment import Experiment

METHODS = ("velocity", "mean_velocity", "probe", "features")


def compile_passes(experiment: Experiment) -> list[str]:
    """Compile the passes of every field and flow map, frozen or moving; modules keep their class and their weights.

    Discriminators, which are a small part of a step, stay as they are.

    Passes that are given a dual number run as they were written, and so does a pass within a function that is compiled
    itself: over a compiled pass forward mode runs eager at best, and torch once dropped its tangents silently
    (pytorch#187284).

    Returns:
        What was compiled, as role.method; it is traced at its first call.
    """
    load_compiler()
    done = []
    for role, network in {**experiment.frozen, **experiment.modules}.items():
        for name in METHODS:
            method = getattr(network, name, None)
            if isinstance(network, nn.Module) and callable(method) and not isinstance(method, CompiledPass):
                setattr(network, name, CompiledPass(method))
                done.append(f"{role}.{name}")
    return done


class CompiledPass:
    """A network's pass that is compiled, but for dual numbers and within what is compiled itself.

    Args:
        plain: the pass as it is written, a method of the network.
    """

    def __init__(self, plain: Callable[..., object]) -> None:
        self.plain = plain
        self.fast = torch.compile(plain)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """The pass."""
        if torch.compiler.is_compiling():
            return self.plain(*args, **kwargs)
        dual = any(unpack_dual(tensor).tangent is not None for tensor in tensors_in((*args, *kwargs.values())))
        return (self.plain if dual else self.fast)(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> "CompiledPass":
        """The copied network's pass, not this one's."""
        return CompiledPass(deepcopy(self.plain, memo))


@cache
def load_compiler() -> None:
    """Import torch's compiler, silently: it uses torch's own deprecated `torch.jit.script_method` and warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        import_module("torch._inductor.compile_fx")


def tensors_in(values: tuple[object, ...]) -> Iterator[Tensor]:
    """The floating-point tensors among some values."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value
