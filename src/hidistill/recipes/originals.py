"""Checkpoints of DiT's and SiT's own repositories, read as the folder of the pipeline that diffusers has for them.

A checkpoint holds a network alone. Its autoencoder is a folder that a person names, or none, where the network lives on
pixels: nobody could guess which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hidistill.codecs import Autoencoder, Pixels
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.folder import Folder, FolderError
from hidistill.teachers import diffusers_dit, original
from hidistill.weights import WeightsError

Where = Literal["pixels"] | Path
"""Where an autoencoder lies, or that a network lives on pixels in [-1, 1]."""
PIXELS: Literal["pixels"] = "pixels"
REPOSITORIES: Mapping[original.Kind, str] = {"dit": "DiT", "sit": "SiT"}


def where_of(text: str | None) -> Where | None:
    """Where an autoencoder lies, as files that hold text say it."""
    if text is None:
        return None
    return PIXELS if text == PIXELS else Path(text)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and an autoencoder as the parts of a `DiTPipeline`; see `hidistill.foreign.folder.Parts`.

    Args:
        root: the checkpoint's file.
        kind: which repository's.
        autoencoder: folder of the autoencoder, or of a pipeline that has it as its vae; "pixels" if there is none; None
            if it was not said, with which only the network can be had.
        variant: of the autoencoder's weights.
        allow_pickle: whether weights in a pickle may be read, tensors alone.

    Raises:
        FolderError: if the autoencoder's folder is none.
        WeightsError: if there is no such file.
    """

    root: Path
    kind: original.Kind
    autoencoder: Where | None = None
    variant: str | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Refuse what is not there."""
        if not self.root.is_file():
            raise WeightsError(f"there is no file {self.root}; give the path of a {REPOSITORIES[self.kind]} checkpoint")
        _ = self.vae

    @cached_property
    def vae(self) -> Folder | None:
        """The folder that the autoencoder is in."""
        if self.autoencoder is None or self.autoencoder == PIXELS:
            return None
        return Folder(Path(self.autoencoder), self.variant, self.allow_pickle)

    @property
    def pipeline(self) -> str:
        """Class name of the pipeline."""
        return diffusers_dit.FAMILY.pipelines[0]

    @property
    def index(self) -> Mapping[str, Any]:
        """What its `model_index.json` would say."""
        parts = {"transformer": self.config("transformer"), "scheduler": self.config("scheduler")}
        if self.vae is not None:
            parts["vae"] = self.vae.config("vae")
        named = {name: ["diffusers", config["_class_name"]] for name, config in parts.items()}
        return {"_class_name": self.pipeline, **named}

    def names(self) -> list[str]:
        """The parts that it has."""
        return [name for name in self.index if name != "_class_name"]

    def has(self, part: str) -> bool:
        """Whether it has a part."""
        return part in self.names()

    def place(self, part: str) -> Path:
        """Where a part lies: the folder of the autoencoder, or the checkpoint."""
        return self.vae.place(part) if part == "vae" and self.vae is not None else self.root

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part.

        Raises:
            FolderError: if there is none.
            WeightsError: if the checkpoint holds another network.
        """
        if part == "scheduler":
            return dict(original.SCHEDULERS[self.kind])
        if part == "vae" and self.vae is not None:
            return self.vae.config(part)
        if part != "transformer":
            raise FolderError(f"{self.root} is a checkpoint, which has no {part}; a folder of diffusers may have one")
        return dict(self.configuration)

    @cached_property
    def configuration(self) -> Mapping[str, Any]:
        """The network's, once for all."""
        return original.read_configuration(self.root, kind=self.kind, allow_pickle=self.allow_pickle)

    def digest(self, part: str) -> str:
        """What tells a part's weights from others."""
        if part == "vae" and self.vae is not None:
            return self.vae.digest(part)
        with self.root.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()[:16]

    def network(self, part: str) -> nn.Module:
        """A part built from its configuration, with its weights."""
        if part == "vae" and self.vae is not None:
            return self.vae.network(part)
        return original.read_original(self.root, kind=self.kind, allow_pickle=self.allow_pickle)

    def codec(self) -> Autoencoder | Pixels:
        """Between pixels and where the network lives.

        Raises:
            ValueError: if nobody said so, or the autoencoder's latents are not the network's.
        """
        if self.autoencoder is None:
            raise ValueError(
                f"{self.root} is a checkpoint of {REPOSITORIES[self.kind]}, which holds a network alone, and no "
                "autoencoder came; say --autoencoder DIR, the folder of the one that it was trained with (Stable "
                "Diffusion's, with the published ones), or --autoencoder pixels if it lives on pixels"
            )
        takes = int(self.configuration["in_channels"])
        codec = Pixels() if self.autoencoder == PIXELS else codec_of(self)
        if isinstance(codec, Autoencoder) and codec.channels != takes:
            raise ValueError(
                f"the autoencoder in {self.autoencoder} has latents of {codec.channels} channels, and the network in "
                f"{self.root} takes {takes}; give the autoencoder that it was trained with"
            )
        if isinstance(codec, Pixels) and takes not in (1, 3):
            raise ValueError(
                f"the network in {self.root} takes {takes} channels, and pixels have 1 or 3; give the folder of the "
                "autoencoder that it was trained with"
            )
        return codec


def parts_at(
    place: Path,
    *,
    kind: original.Kind | None = None,
    autoencoder: Where | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> Folder | Checkpoint:
    """What a person means by a teacher: the folder of a pipeline, or a checkpoint of a repository of its own.

    Raises:
        FolderError: if the folder is none.
        ValueError: if it is not said what a file is, or said of a folder, which says so itself.
    """
    if place.is_dir() or (kind is None and not place.is_file()):
        said = {"kind": kind, "autoencoder": autoencoder}
        needless = [f"--{name} {value}" for name, value in said.items() if value is not None]
        if needless:
            raise ValueError(
                f"{' and '.join(needless)} came with {place}, which is no file; they are for checkpoints of DiT and "
                "SiT, and folders say themselves what is in them: leave it out"
            )
        return Folder(place, variant, allow_pickle)
    if kind is None:
        raise ValueError(
            f"{place} is a file, and not the folder of a pipeline; if it is a checkpoint of the repository of DiT or "
            "SiT, say so: --kind dit or --kind sit"
        )
    return Checkpoint(place, kind, autoencoder, variant, allow_pickle)
