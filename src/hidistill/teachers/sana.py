"""SANA as diffusers keeps it (`SanaTransformer2DModel`, arXiv 2410.10629): a flow over deeply compressed latents.

A prompt is `text` (b, n, caption channels) and `mask` (b, n), 1 where a token counts. SANA-Sprint (arXiv 2503.09641) is
the same network with an embedded guidance scale: it was trained to answer as its teacher does under that scale, so it
is used as it is, `Guided(scale=1)`. Its pipeline speaks of a trigonometric path; what enters the network and what it
answers are the linear path's, at time t itself: `Flow(unit=1.0)`.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from hidistill.foreign.network import Family
from hidistill.types import Cond, Points, Times

GUIDANCE = 4.5
"""Embedded scale, the default of diffusers' `SanaSprintPipeline`."""


def call(net: nn.Module, x: Points, time: Times, cond: Cond, guidance: float | None = None) -> Tensor:
    """The velocity, and an unused variance behind it where the network has learned one."""
    text, embedded = cond["text"].to(x.dtype), None  # type: ignore[call-overload]
    if net.config.guidance_embeds:  # type: ignore[union-attr]
        unit = float(net.config.guidance_embeds_scale)  # type: ignore[union-attr]
        embedded = torch.full((len(x),), unit * (GUIDANCE if guidance is None else guidance), device=x.device)
    elif guidance is not None:
        raise ValueError(
            f"an embedded guidance scale of {guidance} came, but this network embeds none (guidance_embeds is false in "
            "its configuration): leave it out and use Guided(scale=...) instead"
        )
    mask = cond["mask"]  # type: ignore[call-overload]
    return net(x, text, encoder_attention_mask=mask, timestep=time, guidance=embedded).sample


def blocks(net: nn.Module) -> Sequence[nn.Module]:
    """The transformer's blocks."""
    return list(net.transformer_blocks)  # type: ignore[arg-type]


def channels(net: nn.Module, block: int) -> int:
    """The width, which all blocks share."""
    del block
    return int(net.config.num_attention_heads * net.config.attention_head_dim)  # type: ignore[union-attr]


def time_scale(net: nn.Module) -> float:
    """By what its pipeline multiplies the scheduler's times; SANA-Sprint's, whose networks embed guidance, does not."""
    return 1.0 if net.config.guidance_embeds else float(net.config.timestep_scale)  # type: ignore[union-attr]


def family(guidance: float | None = None) -> Family:
    """SANA, with this guidance scale where the network embeds one; None is `GUIDANCE`."""
    return Family(
        name="sana",
        networks=("SanaTransformer2DModel",),
        part="transformer",
        call=partial(call, guidance=guidance),
        blocks=blocks,
        channels=channels,
        texts=("text", "mask"),
        time_scale=time_scale,
        pipelines=("SanaPipeline", "SanaSprintPipeline"),
    )


FAMILY = family()
