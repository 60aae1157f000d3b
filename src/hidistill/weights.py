"""Weights of one network in one safetensors file that says what network it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hidistill import __version__
from hidistill.files import whole
from hidistill.parted import parted_like
from hidistill.parted import whole as whole_tensor

FORMAT = 1
"""Of the metadata: family, config, card and classes. Files that name none are of format 1, and may lack the classes."""


class WeightsError(ValueError):
    """A weights file that is missing, damaged, or of another network."""


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Args:
        family: name of the network's family, e.g. "dit"; says who can read `config`.
        config: what the family needs to build the network.
        card: the model card: recipe, seed, steps, numbers, license.
        tensors: the network's state, by key.
        classes: names of the classes by label; empty if there are none, or nobody knew them.
    """

    family: str
    config: Mapping[str, Any]
    card: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    classes: Sequence[str] = ()


def save(
    path: Path,
    module: nn.Module,
    *,
    family: str,
    config: Mapping[str, Any],
    card: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    write: bool = True,
) -> None:
    """Write a module's weights; the file appears whole or not at all.

    Args:
        path: the file; its folder is made.
        module: the network.
        family: name of its family.
        config: what rebuilds it; anything that JSON can hold.
        card: its model card.
        classes: names of its classes by label, if they are known.
        dtype: floating-point type in the file; None keeps the module's.
        write: whether this process writes, of several that hold the module in parts and must all come here.
    """
    tensors = state_of(module)
    if not write:
        return
    if dtype is not None:
        tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    metadata = {"format": str(FORMAT), "family": family, "classes": json.dumps(list(classes))}
    metadata |= {"config": json.dumps(dict(config)), "card": json.dumps(dict(card or {}))}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole(path) as partial:
            save_file(tensors, partial, metadata=metadata)
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise OSError(
            f"cannot write {path} ({size:,} bytes): {error}; free some space or choose another place"
        ) from error


def read(path: Path) -> Weights:
    """Read a weights file into memory.

    Raises:
        WeightsError: if it is missing, truncated, not safetensors, not written by `save`, or of a newer format.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}); copy or train it again") from error
    if not {"family", "config"} <= metadata.keys():
        raise WeightsError(
            f"{path} does not say which network it holds; a file written by hidistill has 'family' and 'config' in its "
            "metadata: write it with hidistill.weights.save"
        )
    if (found := metadata.get("format", "1")) != str(FORMAT):
        raise WeightsError(
            f"{path} is of format {found}; hidistill {__version__} reads format {FORMAT}: install the version that "
            "wrote the file, or a newer one"
        )
    card, classes = json.loads(metadata.get("card", "{}")), tuple(json.loads(metadata.get("classes", "[]")))
    return Weights(metadata["family"], json.loads(metadata["config"]), card, tensors, classes)


@torch.no_grad()
def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Give a module the state in `tensors`, in the module's own types and on its device.

    Args:
        module: what receives the weights.
        tensors: state by key; exactly the module's keys.
        source: where they come from, for the message.

    Raises:
        WeightsError: if keys are missing or unexpected, or a shape differs; the module is untouched then.
    """
    state = module.state_dict()
    missing, unexpected = sorted(state.keys() - tensors.keys()), sorted(tensors.keys() - state.keys())
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} there and {tuple(state[key].shape)} here"
        for key in state
        if key in tensors and tensors[key].shape != state[key].shape
    ]
    faults = [
        f"{word} {', '.join(keys)}"
        for word, keys in (("misses", missing), ("has the unexpected", unexpected), ("has other shapes:", shapes))
        if keys
    ]
    if faults:
        raise WeightsError(
            f"{source} does not fit a {type(module).__name__}: it {'; it '.join(faults)}. Keys and shapes must match "
            "exactly; build the network with the configuration that these weights were saved with"
        )
    module.load_state_dict({key: parted_like(value, state[key]) for key, value in tensors.items()})


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's state as contiguous tensors on the CPU, none of which shares memory with another (no file could).

    Of a module that several processes hold in parts it is all of it; each of them must ask.
    """
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{type(module).__name__} keeps {key!r}, a {type(value).__name__}; only tensors can be saved"
            )
        tensor = whole_tensor(value.detach()).cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        state[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return state
