"""Autoencoders of diffusers' pipelines as codecs."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hidistill.codecs import Autoencoder, Pixels
from hidistill.foreign.folder import FolderError, Parts
from hidistill.types import Points

logger = logging.getLogger(__name__)

SHIFTED = ("StableDiffusion3Pipeline", "FluxPipeline")
"""Pipelines that decode `latents / scaling_factor + shift_factor`."""
STANDARDIZED = ("StableDiffusionXLPipeline",)
"""Pipelines that decode `latents * latents_std / scaling_factor + latents_mean` where there are both."""
SCALED = (
    "DiTPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
    "SanaSprintPipeline",
    "StableDiffusionPipeline",
)
"""Pipelines that decode `latents / scaling_factor` and look at no other number."""


@dataclass(frozen=True)
class Kind:
    """A class of autoencoders.

    Args:
        latent: the latent in what its `encode` answers.
        blocks: the setting with one entry per resolution; each but the first halves the sides.
    """

    latent: Callable[[Any], Points]
    blocks: str


def mean_of(answer: Any) -> Points:  # noqa: ANN401 -- the library's own
    """The mean of the posterior."""
    return answer.latent_dist.mode()


def latent_of(answer: Any) -> Points:  # noqa: ANN401 -- the library's own
    """The latent of an autoencoder without a distribution."""
    return answer.latent


def latents_of(answer: Any) -> Points:  # noqa: ANN401 -- the library's own
    """The same under the name that `AutoencoderTiny` gives it."""
    return answer.latents


KINDS: Mapping[str, Kind] = {
    "AutoencoderKL": Kind(mean_of, "block_out_channels"),
    "AutoencoderDC": Kind(latent_of, "encoder_block_out_channels"),
    "AutoencoderTiny": Kind(latents_of, "encoder_block_out_channels"),
}


def codec_of(folder: Parts, part: str = "vae") -> Autoencoder | Pixels:
    """The codec between pixels and what a pipeline's network sees; pixels themselves where there is no autoencoder.

    Args:
        folder: of a pipeline, or of an autoencoder alone.
        part: name of the autoencoder within the pipeline.

    Raises:
        FolderError: if the autoencoder is of a class that is not known, was left out, or there is only a network.
        WeightsError: if its weights are damaged or do not fit.
    """
    if folder.index and not folder.has(part):
        refuse_missing(folder, part)
        return Pixels()
    config = folder.config(part)
    name = str(config.get("_class_name"))
    if name not in KINDS:
        what = f"{folder.place(part)} holds a {name}, not an autoencoder that is known"
        raise FolderError(f"{what}; known are {', '.join(KINDS)}: give the folder of a pipeline that has one of them")
    # In float32 whatever the file's type: some autoencoders overflow in float16, and encoding is done once.
    module = folder.network(part).float()
    settings: Mapping[str, Any] = module.config  # type: ignore[assignment]  -- with the defaults of older files filled in
    shift, scale = numbers(settings, folder.pipeline)
    total = hashlib.sha256(json.dumps([name, folder.digest(part), shift, scale]).encode())
    return Autoencoder(
        module=module,
        latent=KINDS[name].latent,
        factor=2 ** (len(settings[KINDS[name].blocks]) - 1),
        channels=int(settings["latent_channels"]),
        image_channels=int(settings["in_channels"]),
        shift=shift,
        scale=scale,
        digest=total.hexdigest()[:16],
    )


def numbers(config: Mapping[str, Any], pipeline: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shift and scale of the latents, as the pipeline uses them.

    Args:
        config: of the autoencoder.
        pipeline: class name; for one that is not known all numbers count.

    Raises:
        FolderError: if the pipeline is not known, and the autoencoder has both a shift and means.
    """
    factor = float(config["scaling_factor"])
    shift = float(config.get("shift_factor") or 0.0)
    means, stds = config.get("latents_mean") or (), config.get("latents_std") or ()
    both = bool(means) and bool(stds)
    known = pipeline in (*SHIFTED, *STANDARDIZED, *SCALED)
    if not known and both and shift:
        raise FolderError(
            f"the autoencoder has both shift_factor and latents_mean, and how a {pipeline or 'pipeline'} uses them is "
            f"not known; known are {', '.join((*SHIFTED, *STANDARDIZED, *SCALED))}: give such a folder"
        )
    if both and (pipeline in STANDARDIZED or not known):
        return tuple(float(mean) for mean in means), tuple(factor / float(std) for std in stds)
    if pipeline in SHIFTED or not known:
        return (shift,), (factor,)
    if shift or both:
        logger.info(
            "a %s scales latents by scaling_factor alone: its autoencoder's other numbers are left out here, too",
            pipeline,
        )
    return (0.0,), (factor,)


def refuse_missing(folder: Parts, part: str) -> None:
    """Raise unless a pipeline without this part works on pixels."""
    if part in folder.index:
        raise FolderError(
            f"{folder.root} was saved without its {part}, which a {folder.pipeline} needs; copy the folder {part} from "
            "where the pipeline came from, and name it in model_index.json"
        )
    others = [
        f"{name} ({kind[-1]})"
        for name, kind in folder.index.items()
        if isinstance(kind, list) and str(kind[-1]).startswith(("Autoencoder", "VQ", "AsymmetricAutoencoder"))
    ]
    if others:
        raise FolderError(
            f"{folder.root} is a {folder.pipeline} with the autoencoder {', '.join(others)}, which is not known; known "
            f"are {', '.join(KINDS)} under the name {part}: give the folder of such a pipeline"
        )
    if folder.pipeline in (*SHIFTED, *STANDARDIZED, *SCALED):
        raise FolderError(
            f"{folder.root} is a {folder.pipeline}, which decodes latents, and its model_index.json names no {part}; "
            f"copy the folder {part} from where the pipeline came from, and name it there"
        )
