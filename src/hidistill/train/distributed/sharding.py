"""Networks of which each process holds a part: FSDP2, applied to modules as they are."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from hidistill.recomputing import blocks, recompute
from hidistill.train.distributed.ranks import Ranks
from hidistill.train.distributed.work import Local, Sharding
from hidistill.train.experiment import Experiment

ENTRANCES = ("velocity", "features", "probe", "mean_velocity", "attention")
"""Methods beside `forward` by which objectives, metrics and reports enter a network."""


def apply(sharding: Sharding, experiment: Experiment, ranks: Ranks) -> None:
    """Take the parts of every network of an experiment that this process holds; its optimizers hold them then.

    The networks must be on the process's device, and alike in all processes.

    Raises:
        ValueError: if a network cannot be held in parts.
    """
    if sharding.bfloat16 and experiment.precision != "bfloat16":
        raise ValueError(
            f"weights are to travel in bfloat16, and the experiment's precision is {experiment.precision}; autocast "
            "must bring inputs to the weights' type: use precision='bfloat16', or leave the weights in float32"
        )
    mesh = init_device_mesh(ranks.device.partition(":")[0], (ranks.count,))
    averages = [average.module for stage in experiment.stages for average in stage.averages.values()]
    # The answers of heads are views, and nothing writes into them; torch warns each time.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*", category=UserWarning)
    moved: dict[int, Tensor] = {}
    for module in (*experiment.modules.values(), *averages):
        moved |= shard(module, mesh, sharding)
    for module in experiment.frozen.values():
        shard(module, mesh, sharding, frozen=True)
    for stage in experiment.stages:
        for update in stage.updates.values():
            for group in update.optimizer.param_groups:
                group["params"] = [moved.get(id(parameter), parameter) for parameter in group["params"]]


def shard(module: nn.Module, mesh: DeviceMesh, sharding: Sharding, *, frozen: bool = False) -> dict[int, Tensor]:
    """Hold a network in parts, block by block; its new parameters by the ids of the old ones."""
    before = dict(module.named_parameters())
    if not before or any(isinstance(parameter, DTensor) for parameter in before.values()):
        return {}
    if scalars := [name for name, parameter in before.items() if not parameter.ndim]:
        raise ValueError(
            f"{type(module).__name__} has parameters without a dimension ({', '.join(scalars)}), which cannot be held "
            "in parts; give them the shape (1,), or run without --sharded"
        )
    offload: OffloadPolicy = OffloadPolicy()
    if frozen and sharding.offload_frozen:
        offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    # Also of the outermost module, which else stays whole, and whose parameters would not hear that they are to move.
    settings: dict[str, Any] = {"mesh": mesh, "offload_policy": offload, "mp_policy": precision(sharding)}
    settings["reshard_after_forward"] = True
    for block in blocks(module):
        if sharding.recompute:
            recompute(block)
        fully_shard(block, **settings)
        enter(block)
    fully_shard(module, **settings)
    enter(module)
    after = dict(module.named_parameters())
    return {id(parameter): after[name] for name, parameter in before.items()}


def precision(sharding: Sharding) -> MixedPrecisionPolicy:
    """In which types weights travel and gradients are added up."""
    if not sharding.bfloat16:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)


@dataclass(frozen=True)
class Reduced(Local):
    """Gradients that FSDP has averaged over the processes in the backward pass already."""

    def watching(self) -> AbstractContextManager[None]:
        """Nothing to watch."""
        return nullcontext()


def enter(module: nn.Module) -> None:
    """Have a network's parts come together wherever it is entered."""
    for name in ENTRANCES:
        if name in dir(type(module)):
            register_fsdp_forward_method(module, name)


def averaging(parameters: Sequence[Tensor]) -> Reduced:
    """What averages the gradients of sharded parameters."""
    return Reduced(parameters)
