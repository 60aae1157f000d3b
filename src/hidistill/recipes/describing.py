"""A teacher in words, row by row."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from hidistill import weights
from hidistill.codecs import Autoencoder
from hidistill.foreign.folder import Folder
from hidistill.foreign.network import Network
from hidistill.recipes.originals import REPOSITORIES, Checkpoint
from hidistill.recipes.teachers import Loaded, shape_of
from hidistill.teachers.dit import DiT
from hidistill.types import Codec

Rows = Mapping[str, str]
"""What is described -> in words."""


def rows_of_folder(loaded: Loaded) -> Rows:
    """A pipeline of diffusers."""
    folder, network = loaded.folder, loaded.network
    assert isinstance(folder, Folder)
    said = {key: loaded.scheduler[key] for key in ("prediction_type", "beta_schedule") if key in loaded.scheduler}
    scheduler = ", ".join(
        [str(loaded.scheduler.get("_class_name")), *(f"{key} {value}" for key, value in said.items())]
    )
    return {
        "teacher": str(folder.root),
        "pipeline": folder.pipeline or "none: a network alone",
        **rows_of_network(network),
        "scheduler": scheduler,
        "codec": in_words(loaded.codec),
        "text encoders": text_encoders(folder) if network.family.texts else "none",
        "digest of weights": loaded.digest,
    }


def rows_of_checkpoint(network: Network, checkpoint: Checkpoint, codec: Codec | None) -> Rows:
    """A checkpoint of DiT or SiT, and the autoencoder that came with it, if one did."""
    missing = "none in a checkpoint; the published ones live on latents of Stable Diffusion's autoencoder"
    return {
        "teacher": str(checkpoint.root),
        "checkpoint": f"of the repository of {REPOSITORIES[checkpoint.kind]}",
        **rows_of_network(network),
        "codec": missing if codec is None else in_words(codec),
        "digest of weights": checkpoint.digest("transformer"),
    }


def rows_of_weights(net: DiT, path: Path) -> Rows:
    """A teacher that this package trained."""
    stored = weights.read(path)
    card = {key: stored.card[key] for key in ("recipe", "data", "license") if key in stored.card}
    return {
        "teacher": str(path),
        "network": "DiT of hidistill",
        "parameters": parameters(net),
        "convention": f"velocity on the linear path, preconditioned for data of size {net.data_std:g}",
        "latents": f"{net.channels} x {net.grid * net.patch} x {net.grid * net.patch}, pixels in [-1, 1]",
        "classes": classes(net.classes, stored.classes),
        "null condition": f"label {net.classes}",
        "taps": taps(net.taps, net.feature_channels, len(net.blocks)),
        "digest of weights": digest(path),
        **card,
    }


def rows_of_network(network: Network) -> dict[str, str]:
    """What a network of another library is."""
    shape = shape_of(network)
    embedded = bool(network.net.config.get("guidance_embeds", False))  # type: ignore[union-attr]
    return {
        "family": f"{network.family.name} ({type(network.net).__name__})",
        "parameters": parameters(network.net),
        "convention": network.convention.words,
        "latents": "of any size: it does not say" if shape is None else " x ".join(map(str, shape)),
        "condition": f"prompts as {', '.join(network.family.texts)}" if network.family.texts else "labels",
        "classes": classes(network.classes, ()),
        "null condition": null_of(network),
        "guidance": "embedded: distill with guidance 1" if embedded else "by a second pass, classifier-free",
        "taps": taps(network.taps, network.feature_channels, len(network.family.blocks(network.net))),
    }


def null_of(network: Network) -> str:
    """The null condition."""
    if network.family.texts:
        return "the empty prompt, as the pipeline encodes it"
    if not network.classes:
        return "none"
    try:
        return f"label {network.family.null(network.net) if network.family.null else network.classes}"
    except ValueError as error:
        return f"none: {error}"


def in_words(codec: Codec) -> str:
    """A codec."""
    if not isinstance(codec, Autoencoder):
        return "none: pixels in [-1, 1]"
    scale, shift = (", ".join(f"{value:g}" for value in values) for values in (codec.scale, codec.shift))
    return (
        f"{type(codec.module).__name__}, {codec.factor} x {codec.factor} pixels to a latent of {codec.channels} "
        f"channels, (latent - shift) scale with scale {scale} and shift {shift}"
    )


def text_encoders(folder: Folder) -> str:
    """The classes of a pipeline's text encoders."""
    found = [str(kind[-1]) for name, kind in folder.index.items() if name.startswith("text_encoder") and kind[-1]]
    return ", ".join(found) or "none in this folder"


def parameters(net: nn.Module) -> str:
    """How many, and of what type."""
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in net.parameters()})
    return f"{sum(p.numel() for p in net.parameters()):,} of {', '.join(kinds)}"


def classes(count: int, names: Sequence[str]) -> str:
    """Number and names of classes."""
    return f"{count}" + (f": {', '.join(names)}" if names else "") if count else "none"


def taps(chosen: Sequence[int], channels: Sequence[int], depth: int) -> str:
    """The blocks that give features."""
    listed = ", ".join(f"{tap} ({wide})" for tap, wide in zip(chosen, channels, strict=True))
    return f"behind the blocks (channels) {listed} of {depth}"


def digest(path: Path) -> str:
    """What tells a file from others."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
