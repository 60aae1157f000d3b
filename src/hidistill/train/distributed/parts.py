"""Checkpoints of networks that are held in parts: torch's distributed checkpoint, in safetensors files.

Each process writes what it holds; a header says where that lies in the whole, so that any number of processes can read
it, each its own part. torch's other format for this would have a pickle read, which may run code.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from hidistill.parted import parted_like
from hidistill.weights import load_into

PARTS = "parts"


def tensors_of(modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """Everything that a checkpoint holds, as this process holds it, by role and key."""
    found = {f"{role}/{key}": value for role, module in modules.items() for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            found |= {f"optimizer-{name}/{index}/{key}": value for key, value in state.items()}
    return found


def groups_of(optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    """The parameter groups of optimizers, which JSON can hold."""
    return {name: optimizer.state_dict()["param_groups"] for name, optimizer in optimizers.items()}


def write(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Write the parts of all processes; each of them must come here.

    Raises:
        OSError: in all of them, if one cannot write.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(
                dict(tensors),
                storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True),
                process_group=group,
                no_dist=not dist.is_initialized(),
            )
    except CheckpointException as error:  # which is no Exception
        reasons = {rank: found[0] for rank, found in error.failures.items()}
        words = "; ".join(f"process {rank}: {reason}" for rank, reason in reasons.items())
        raise OSError(words) from None


def read(folder: Path, wanted: Mapping[str, Tensor]) -> None:
    """Fill tensors with what this process is to hold of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of one process alone, which is what is meant
        dcp.load(dict(wanted), storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)


def shapes(folder: Path) -> dict[str, torch.Size]:
    """What a folder of parts holds."""
    return {name: found.size for name, found in metadata(folder).items()}


def metadata(folder: Path) -> dict[str, Any]:
    """What the headers of the parts say."""
    return dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata


def load_module(folder: Path, role: str, module: nn.Module) -> None:
    """Give a module its state.

    Raises:
        WeightsError: if keys or shapes differ; the module is untouched then.
    """
    there = {name.removeprefix(f"{role}/"): found for name, found in metadata(folder).items() if roled(name, role)}
    own = module.state_dict()
    if all(key in there and there[key].size == value.shape for key, value in own.items()) and len(there) == len(own):
        room = {key: torch.empty_like(value) for key, value in own.items()}
        read(folder, {f"{role}/{key}": value for key, value in room.items()})
        load_into(module, room, source=f"{folder}, {role}")
    else:
        room = {key: torch.empty(found.size) for key, found in there.items()}
        load_into(module, room, source=f"{folder}, {role}")


def roled(name: str, role: str) -> bool:
    """Whether a tensor is of a role."""
    return name.partition("/")[0] == role


def load_optimizer(folder: Path, name: str, optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Give an optimizer its state, held as its parameters are.

    Raises:
        ValueError: if it has other groups.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for full, found in metadata(folder).items():
        owner, _, rest = full.partition("/")
        if owner == f"optimizer-{name}":
            index, _, key = rest.partition("/")
            like = parameters[int(index)] if int(index) < len(parameters) else torch.empty(())
            same = found.size == like.shape and like.ndim
            room = torch.zeros_like(like.detach()) if same else torch.zeros(found.size)
            states.setdefault(int(index), {})[key] = room.to(found.properties.dtype)
    flat = {f"optimizer-{name}/{i}/{key}": value for i, state in states.items() for key, value in state.items()}
    if flat:
        read(folder, flat)
    pairs = [{key: tuple(v) if isinstance(v, list) and key != "params" else v for key, v in g.items()} for g in groups]
    optimizer.load_state_dict({"state": states, "param_groups": pairs})


def parted_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's whole state, held as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def held(index: int, value: object) -> object:
        if not isinstance(value, Tensor) or not value.ndim or index >= len(parameters):
            return value
        return parted_like(value, parameters[index].detach()) if value.shape == parameters[index].shape else value

    states = {
        index: {key: held(index, value) for key, value in entries.items()} for index, entries in state["state"].items()
    }
    return {"state": states, "param_groups": state["param_groups"]}


def consolidate(checkpoint: Path, role: str, target: Path) -> None:
    """Write a role of a checkpoint of parts as one safetensors file, in one process.

    Raises:
        ValueError: if there is no such role.
    """
    folder = checkpoint / PARTS
    names = {name: found for name, found in metadata(folder).items() if roled(name, role)}
    if not names:
        roles = sorted({name.partition("/")[0] for name in metadata(folder)})
        raise ValueError(f"{checkpoint} has no {role!r}; it holds {', '.join(roles)}")
    room = {name: torch.empty(found.size, dtype=found.properties.dtype) for name, found in names.items()}
    read(folder, room)
    save_file({name.removeprefix(f"{role}/"): value for name, value in room.items()}, target)
