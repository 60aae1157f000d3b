"""Folders of diffusers: what is in them, read exactly and never written into.

diffusers' own loader initializes at random what a weights file lacks, and drops what it has too much, with a line in
the log. Here a part is built from its configuration, and its weights must fit to the last key.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hidistill.weights import WeightsError, load_into

STEM = "diffusion_pytorch_model"
"""Name of the weights of a part that diffusers wrote."""
VARIANT = re.compile(r"(diffusion_pytorch_)?model(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors")
"""Names of weights of diffusers and transformers."""


class FolderError(ValueError):
    """A folder that is not what it should be: names what was found, what is supported, and what to do."""


def library(name: str = "diffusers", *, extra: str = "diffusers") -> ModuleType:
    """A library that only some uses need.

    Raises:
        ModuleNotFoundError: if it is not installed; names the extra that brings it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"{name} is not installed, which is needed here; pip install 'hidistill[{extra}]' brings it", name=name
        ) from None


@runtime_checkable
class Parts(Protocol):
    """Where the parts of a pipeline are had from: a `Folder`, or what is read as one."""

    @property
    def root(self) -> Path:
        """Where it lies."""
        ...

    @property
    def variant(self) -> str | None:
        """Of the weights."""
        ...

    @property
    def index(self) -> Mapping[str, Any]:
        """What `model_index.json` says."""
        ...

    @property
    def pipeline(self) -> str:
        """Class name of the pipeline."""
        ...

    def names(self) -> list[str]:
        """The parts that it has."""
        ...

    def has(self, part: str) -> bool:
        """Whether it has a part."""
        ...

    def place(self, part: str) -> Path:
        """The folder of a part."""
        ...

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part."""
        ...

    def digest(self, part: str) -> str:
        """What tells a part's weights from others."""
        ...

    def network(self, part: str) -> nn.Module:
        """A part built from its configuration, with its weights."""
        ...


@dataclass(frozen=True)
class Folder:
    """A pipeline's folder (with `model_index.json`), or the folder of one network (with `config.json`).

    Args:
        root: the folder.
        variant: of the weights, e.g. "fp16"; None reads those without one, or the only one where all weights have it.
        allow_pickle: whether weights in a pickle (.bin, .pt) may be read, tensors alone, where there is no safetensors.

    Raises:
        FolderError: if there is no such folder, or it holds neither file.
    """

    root: Path
    variant: str | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no such folder."""
        if not self.root.is_dir():
            raise FolderError(f"{self.root} is no folder; give a folder that a diffusers pipeline was saved into")
        if not (self.root / "model_index.json").is_file() and not (self.root / "config.json").is_file():
            found = sorted(path.name for path in self.root.iterdir())[:8]
            raise FolderError(
                f"{self.root} has neither model_index.json (a pipeline) nor config.json (a network); it holds "
                f"{', '.join(found) or 'nothing'}: give the folder that save_pretrained wrote, or a checkpoint's file"
            )
        if self.variant is None:
            object.__setattr__(self, "variant", only_variant(self.root))

    @property
    def index(self) -> Mapping[str, Any]:
        """What `model_index.json` says; empty for the folder of a network alone."""
        path = self.root / "model_index.json"
        return read_json(path) if path.is_file() else {}

    @property
    def pipeline(self) -> str:
        """Class name of the pipeline; empty for a network alone."""
        name = self.index.get("_class_name", "")
        return name[-1] if isinstance(name, list) else str(name)

    def names(self) -> list[str]:
        """The parts that the pipeline has, without those it was saved without."""
        return [
            name
            for name, kind in self.index.items()
            if not name.startswith("_") and isinstance(kind, list) and kind[-1] is not None
        ]

    def place(self, part: str) -> Path:
        """The folder of a part; the folder itself where it is that of a network alone."""
        return self.root / part if self.index else self.root

    def has(self, part: str) -> bool:
        """Whether the folder holds a part."""
        return part in self.names() if self.index else (self.root / "config.json").is_file()

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part.

        Raises:
            FolderError: if there is none.
        """
        for name in ("config.json", "scheduler_config.json"):
            path = self.place(part) / name
            if path.is_file():
                return read_json(path)
        raise FolderError(
            f"{self.root} has no {part}: no configuration in {self.place(part)}; it has {', '.join(self.names())}: "
            "copy the part from where the folder came from"
        )

    def files(self, part: str) -> list[Path]:
        """The files that hold a part's weights, one or several.

        Raises:
            FolderError: if there is none, or only a pickle that was not asked for.
        """
        place, ending = self.place(part), f".{self.variant}" if self.variant else ""
        listing = place / f"{STEM}.safetensors.index{ending}.json"
        if listing.is_file():
            files = [place / name for name in sorted(set(read_json(listing)["weight_map"].values()))]
            lost = [path.name for path in files if not path.is_file()]
            if lost:
                raise FolderError(f"{place} lacks {', '.join(lost)}, which {listing.name} names; copy them again")
            return files
        whole = place / f"{STEM}{ending}.safetensors"
        if whole.is_file():
            return [whole]
        pickled = place / f"{STEM}{ending}.bin"
        if pickled.is_file() and self.allow_pickle:
            return [pickled]
        if pickled.is_file():
            raise FolderError(
                f"{pickled} is a pickle, and there is no {whole.name} beside it; a pickle can run code when it is "
                "opened. Convert it to safetensors, or say --allow-pickle to have its tensors alone read"
            )
        found = sorted(path.name for path in place.glob(f"{STEM}*")) if place.is_dir() else []
        raise FolderError(
            f"{place} has no weights {whole.name}; there {'is ' + ', '.join(found) if found else 'are none'}: copy the "
            "part again from where the folder came from"
        )

    def digest(self, part: str) -> str:
        """What tells a part's weights from others: a hash of its files' bytes."""
        total = hashlib.sha256()
        for path in self.files(part):
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()[:16]

    def network(self, part: str) -> nn.Module:
        """A part built from its configuration, with its weights, in evaluation mode and frozen.

        Raises:
            FolderError: if its class is unknown to the installed diffusers.
            WeightsError: if its weights are damaged, or do not fit.
        """
        module = build(self.config(part), where=str(self.place(part)))
        tensors: dict[str, Tensor] = {}
        for path in self.files(part):
            tensors |= read_tensors(path, allow_pickle=self.allow_pickle)
        first = next(iter(tensors.values()), None)
        # diffusers logs a line about each cast, even one that changes nothing.
        if first is not None and first.is_floating_point() and first.dtype != torch.float32:
            module.to(first.dtype)
        load_into(module, tensors, source=str(self.place(part)))
        return module.eval().requires_grad_(False)


def build(config: Mapping[str, Any], *, where: str) -> nn.Module:
    """A network of diffusers from its configuration, freshly initialized.

    Raises:
        FolderError: if the installed diffusers has no such class, or refuses the configuration.
    """
    name = config.get("_class_name")
    kind = getattr(library(), str(name), None)
    if name is None or kind is None:
        raise FolderError(
            f"{where} holds a {name!r}, which diffusers {library().__version__} does not have; install the version "
            f"that wrote it ({config.get('_diffusers_version', 'unknown')})"
        )
    try:
        return kind.from_config(dict(config))
    except (TypeError, ValueError) as error:
        raise FolderError(f"{where}: {name} refuses its configuration ({error}); repair config.json") from error


def read_tensors(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        path: a safetensors file, or a pickle.
        allow_pickle: whether a pickle may be read, its tensors alone.

    Raises:
        WeightsError: if the file is damaged, is a pickle that was not asked for, or holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; give the path of a weights file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    if not allow_pickle:
        raise WeightsError(
            f"{path} is a pickle, not safetensors; a pickle can run code when it is opened. Convert it, or say "
            "--allow-pickle to have its tensors alone read"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{path} cannot be read as tensors alone ({str(error).splitlines()[0]}); it is damaged or holds other "
            "objects: convert it to safetensors where it was made"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file.

    Raises:
        FolderError: if it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} is no JSON ({error}); copy it again") from error


def only_variant(root: Path) -> str | None:
    """The variant that all weights of a folder have in their names, e.g. "fp16"; None if some have none or another."""
    files = [path.name for pattern in ("*.safetensors", "*/*.safetensors") for path in root.glob(pattern)]
    named = [VARIANT.fullmatch(name) for name in files]
    variants = {match["variant"] if match else None for match in named}
    return variants.pop() if len(variants) == 1 else None
