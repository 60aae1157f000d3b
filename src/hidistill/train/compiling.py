"""torch.compile for the passes that allow it: the frozen networks', and the fake score's."""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from hidistill.train.experiment import Experiment

METHODS = ("velocity", "probe", "features")
FOLLOWING = "fake"
"""The role that moves and of which no objective takes a derivative in forward mode."""


def compile_passes(experiment: Experiment) -> list[str]:
    """Compile the passes of every frozen network and of the fake score; modules keep their class and their weights.

    The student is left alone: its derivative runs in forward mode, under which a compiled module runs as it was
    written, unless the function that takes the derivative is compiled. So do the passes here when they are given a
    dual number: torch once dropped the tangents of compiled ones silently (pytorch#187284).

    Returns:
        What was compiled, as role.method; it is traced at its first call.
    """
    load_compiler()
    networks = dict(experiment.frozen)
    if FOLLOWING in experiment.modules:
        networks[FOLLOWING] = experiment.modules[FOLLOWING]
    done = []
    for role, network in networks.items():
        for name in METHODS:
            method = getattr(network, name, None)
            if isinstance(network, nn.Module) and callable(method) and not hasattr(method, "plain"):
                setattr(network, name, compiled(method))
                done.append(f"{role}.{name}")
    return done


def compiled(method: Callable[..., object]) -> Callable[..., object]:
    """A pass that is compiled, but for dual numbers."""
    fast = torch.compile(method)

    def run(*args: object, **kwargs: object) -> object:
        """The pass."""
        dual = any(unpack_dual(tensor).tangent is not None for tensor in tensors_in((*args, *kwargs.values())))
        return (method if dual else fast)(*args, **kwargs)

    run.plain = method  # type: ignore[attr-defined]
    return run


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
