"""PixArt as diffusers keeps it (`PixArtTransformer2DModel`): noise prediction with a learned variance.

PixArt-alpha is arXiv 2310.00426, PixArt-sigma arXiv 2403.04692. A prompt is `text` (b, n, caption channels) and `mask`
(b, n), 1 where a token counts. The networks of PixArt-alpha for 1024 pixels are also told the size and the aspect ratio
of the picture, which are taken from the latents' own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hidistill.foreign.network import Family
from hidistill.types import Cond, Points, Times

PIXELS = 8
"""Pixels to a side of a latent, in the autoencoders of both versions."""


def call(net: nn.Module, x: Points, time: Times, cond: Cond) -> Tensor:
    """The noise, and the learned variance behind it."""
    text, mask = cond["text"].to(x.dtype), cond["mask"]  # type: ignore[call-overload]
    told = size(x) if net.use_additional_conditions else None
    return net(x, text, timestep=time, added_cond_kwargs=told, encoder_attention_mask=mask).sample


def size(x: Points) -> dict[str, Tensor]:
    """Height and width in pixels, and height over width, of each picture."""
    height, width = x.shape[-2:]
    resolution = torch.tensor([PIXELS * height, PIXELS * width], dtype=x.dtype, device=x.device)
    ratio = torch.full((len(x), 1), height / width, dtype=x.dtype, device=x.device)
    return {"resolution": resolution.expand(len(x), 2), "aspect_ratio": ratio}


def blocks(net: nn.Module) -> Sequence[nn.Module]:
    """The transformer's blocks."""
    return list(net.transformer_blocks)  # type: ignore[arg-type]


def channels(net: nn.Module, block: int) -> int:
    """The width, which all blocks share."""
    del block
    return int(net.config.num_attention_heads * net.config.attention_head_dim)  # type: ignore[union-attr]


FAMILY = Family(
    name="pixart",
    networks=("PixArtTransformer2DModel",),
    part="transformer",
    call=call,
    blocks=blocks,
    channels=channels,
    texts=("text", "mask"),
    pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
)
