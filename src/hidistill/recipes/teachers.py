"""Teachers from where users have them: a folder of diffusers, an original checkpoint, a run of ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hidistill.codecs import Autoencoder, Pixels
from hidistill.conventions import Convention
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.clock import timeless
from hidistill.foreign.folder import Folder, FolderError, Parts, build
from hidistill.foreign.network import Family, Network
from hidistill.foreign.scheduler import convention_of
from hidistill.recipes.originals import Checkpoint, Where, parts_at
from hidistill.teachers import diffusers_dit, flux, original, pixart, sana, stable_diffusion_3, unet

FAMILIES: tuple[Family, ...] = (
    diffusers_dit.FAMILY,
    sana.FAMILY,
    pixart.FAMILY,
    stable_diffusion_3.FAMILY,
    flux.FAMILY,
    *unet.FAMILIES,
)
"""Every family that a folder of diffusers can be of."""
EMBEDDING: Mapping[str, Callable[[float | None], Family]] = {"sana": sana.family, "flux": flux.family}
"""Families some of whose networks embed a guidance scale, by name."""


@dataclass(frozen=True)
class Loaded:
    """A teacher, and what belongs to it.

    Args:
        network: the teacher.
        codec: between pixels and where it lives.
        folder: where it came from: the folder of a pipeline, or a checkpoint that is read as one.
        scheduler: configuration of its pipeline's scheduler.
        embedded: the guidance scale that a network which embeds one is given; None is its pipeline's default.
    """

    network: Network
    codec: Autoencoder | Pixels
    folder: Folder | Checkpoint
    scheduler: Mapping[str, Any]
    embedded: float | None = None

    @property
    def family(self) -> Family:
        """Its family."""
        return self.network.family

    @property
    def digest(self) -> str:
        """What tells its weights from others."""
        return self.folder.digest(part_of(self.folder)[0])

    @property
    def codec_digest(self) -> str:
        """What tells its autoencoder, or that there is none, from others."""
        return self.codec.digest


def shape_of(network: Network) -> tuple[int, int, int] | None:
    """Of one sample at the size that the network was made for: channels, height, width; None if it does not say."""
    side = network.net.config.get("sample_size")  # type: ignore[union-attr]
    if side is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    return network.family.sample_channels(network.net), int(height), int(width)


def has_null(network: Network) -> bool:
    """Whether a network knows the absence of its condition, without which it cannot be guided."""
    if network.family.texts or network.family.null is None:
        return bool(network.family.texts or network.classes)
    try:
        return bool(network.classes) and network.family.null(network.net) >= 0
    except ValueError:
        return False


def family_of(config: Mapping[str, Any], *, where: str, embedded: float | None = None) -> Family:
    """The family of a network's configuration.

    Args:
        config: of the network.
        where: it lies, for the message.
        embedded: guidance scale for a network that embeds one; None is its pipeline's default.

    Raises:
        FolderError: if there is none; names what was found and what is supported.
        ValueError: if a scale came for a family whose networks embed none.
    """
    name = str(config.get("_class_name"))
    found = next((family for family in FAMILIES if name in family.networks and family.fits(config)), None)
    if found is None:
        known = ", ".join(kind for family in FAMILIES for kind in family.networks)
        raise FolderError(
            f"{where} holds a {name}, whose family is not known; supported are {known}: docs/extending.md shows how a "
            "family is added in one file"
        )
    if embedded is None:
        return found
    if found.name not in EMBEDDING:
        raise ValueError(
            f"an embedded guidance scale of {embedded} came for a {found.name}, whose networks embed none; only "
            f"{' and '.join(EMBEDDING)} do: leave it out and use guidance"
        )
    return EMBEDDING[found.name](embedded)


def part_of(folder: Parts) -> tuple[str, Family]:
    """The name of the part that is the denoising network, and its family.

    Raises:
        FolderError: if no part is of a known family.
    """
    for part in ("transformer", "unet"):
        if folder.has(part):
            return part, family_of(folder.config(part), where=str(folder.place(part)))
    raise FolderError(
        f"{folder.root} is a {folder.pipeline or 'folder'} with {', '.join(folder.names()) or 'no parts'}: it has no "
        "transformer and no unet, one of which is the teacher; give the folder of an image pipeline"
    )


def load(
    root: Path,
    *,
    taps: Sequence[int] | None = None,
    embedded: float | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    kind: original.Kind | None = None,
    autoencoder: Where | None = None,
) -> Loaded:
    """A teacher from the folder of a diffusers pipeline, or from a checkpoint of DiT or SiT.

    Args:
        root: the folder or the file; nothing is ever written into it.
        taps: indices of the blocks that give features; None spreads three over the depth.
        embedded: guidance scale for a network that embeds one; None is its pipeline's default.
        variant: of the weights, e.g. "fp16".
        allow_pickle: whether weights in a pickle may be read, tensors alone.
        kind: which repository's a checkpoint is; None for a folder.
        autoencoder: of a checkpoint, its folder or "pixels"; None for a folder.

    Raises:
        FolderError: if the folder, its family or its scheduler is not known.
        WeightsError: if weights are damaged or do not fit.
        ValueError: if it is not said what a file is, or which autoencoder a checkpoint has.
    """
    found = parts_at(root, kind=kind, autoencoder=autoencoder, variant=variant, allow_pickle=allow_pickle)
    return load_parts(found, taps=taps, embedded=embedded)


def load_parts(
    folder: Folder | Checkpoint, *, taps: Sequence[int] | None = None, embedded: float | None = None
) -> Loaded:
    """A teacher from its parts; see `load`."""
    codec = codec_at(folder)  # first: of a checkpoint it may not be said, and a network is large
    part, _ = part_of(folder)
    family = family_of(folder.config(part), where=str(folder.place(part)), embedded=embedded)
    scheduler = folder.config("scheduler")
    kind = folder.kind if isinstance(folder, Checkpoint) else None
    network = Network(folder.network(part), family, convention_for(scheduler, kind), taps=taps)
    refuse_folded(network, folder)
    return Loaded(network, codec, folder, scheduler, embedded)


def codec_at(folder: Folder | Checkpoint) -> Autoencoder | Pixels:
    """The codec between pixels and where a teacher lives."""
    return folder.codec() if isinstance(folder, Checkpoint) else codec_of(folder)


def convention_for(scheduler: Mapping[str, Any], kind: original.Kind | None) -> Convention:
    """The convention of a checkpoint's repository, or of a folder's scheduler."""
    return convention_of(scheduler) if kind is None else original.convention(kind)


def built(config: Mapping[str, Any], kind: original.Kind | None, *, where: str) -> nn.Module:
    """A fresh network from its configuration, with the frequencies of its repository."""
    net = build(config, where=where)
    return net if kind is None else original.spaced(net)


def refuse_folded(network: Network, folder: Parts) -> None:
    """Refuse a network that answers alike at all times: a one-step student, which is no field.

    Raises:
        FolderError: if every embedding of its time is a constant.
    """
    if timeless(network.places):
        raise FolderError(
            f"{folder.root} holds a network that does not look at its time: a student that was exported for one "
            "step. It has no velocity to distill or to inspect; give the folder of its teacher, or sample from it"
        )
