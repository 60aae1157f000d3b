"""FLUX.1 as diffusers keeps it (`FluxTransformer2DModel`): a flow over latents in squares of 2 x 2.

A prompt is `text` (b, n, d) and `pooled` (b, d). Blocks are counted from the first with two streams to the last with
one; features are the image's part.

FLUX.1-dev embeds a guidance scale: it was trained to answer as its teacher does under that scale, so it is used as it
is, `Guided(scale=1)`. The scale reaches its embedding exactly, as the time does: by itself the network rounds both in
bfloat16, where 3.5 acts as 3.504.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidistill.foreign.clock import Entry, timed
from hidistill.foreign.network import Family
from hidistill.types import Cond, Points, Times, Tokens

GUIDANCE = 3.5
"""Embedded scale, the default of diffusers' `FluxPipeline`."""


def call(net: nn.Module, x: Points, time: Times, cond: Cond, guidance: float | None = None) -> Tensor:
    """The velocity."""
    text, pooled = (cond[key].to(x.dtype) for key in ("text", "pooled"))  # type: ignore[call-overload]
    ids = {"txt_ids": torch.zeros(text.shape[1], 3, device=x.device), "img_ids": places(x)}
    scale = embedded(net, time, guidance)
    # The network itself multiplies both by 1000.
    with nullcontext() if scale is None else exact(net, 1000 * scale):
        velocity = net(pack(x), text, pooled, timestep=time / 1000, **ids, guidance=scale).sample
    return unpack(velocity, x)


def embedded(net: nn.Module, time: Times, guidance: float | None) -> Tensor | None:
    """The guidance scale of each row, where the network embeds one.

    Raises:
        ValueError: if one is given and the network embeds none.
    """
    if net.config.guidance_embeds:  # type: ignore[union-attr]
        scale = GUIDANCE if guidance is None else guidance
        return torch.full((len(time),), scale, dtype=time.dtype, device=time.device)
    if guidance is not None:
        raise ValueError(
            f"an embedded guidance scale of {guidance} came, but this network embeds none (guidance_embeds is false in "
            "its configuration, as in FLUX.1-schnell's): leave it out and use Guided(scale=...) instead"
        )
    return None


def exact(net: nn.Module, scale: Tensor) -> AbstractContextManager[None]:
    """Within, the network embeds exactly this as 1000 times its guidance scale."""
    place = net.time_text_embed
    return timed([Entry(place.time_proj, place.guidance_embedder)], scale)  # type: ignore[arg-type]


def pack(x: Points) -> Tokens:
    """(b, c, h, w) -> (b, h / 2 w / 2, 4 c): one token for each square of 2 x 2.

    Raises:
        ValueError: if a side is odd.
    """
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(
            f"latents of {x.shape[2]} x {x.shape[3]} came; FLUX packs squares of 2 x 2, so both sides must be even: "
            "use pictures with sides that are multiples of 16 pixels"
        )
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tokens, like: Points) -> Points:
    """The inverse of `pack`, for latents of the size of `like`."""
    height, width = like.shape[2] // 2, like.shape[3] // 2
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), 2)


def places(x: Points) -> Tensor:
    """(tokens, 3): row and column of each token behind a zero; text has zeros alone."""
    rows, columns = (torch.arange(side // 2, device=x.device, dtype=torch.float32) for side in x.shape[2:])
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1)


def blocks(net: nn.Module) -> Sequence[nn.Module]:
    """The blocks with two streams, then those with one."""
    return [*net.transformer_blocks, *net.single_transformer_blocks]  # type: ignore[list-item,misc]


def channels(net: nn.Module, block: int) -> int:
    """The width, which all blocks share."""
    del block
    return int(net.config.num_attention_heads * net.config.attention_head_dim)  # type: ignore[union-attr]


def sample_channels(net: nn.Module) -> int:
    """A token holds a square of 2 x 2."""
    return int(net.config.in_channels) // 4  # type: ignore[union-attr]


def image(answer: tuple[Tensor, Tensor]) -> Tokens:
    """The image's part of a block's answer, which is (text, image) in blocks of both kinds."""
    return answer[1]


@cache
def warned() -> None:
    """Have torch warn, silently, that norms under autocast are not fused: it does so once, and it changes nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight", category=UserWarning)
        F.rms_norm(torch.zeros(1, dtype=torch.bfloat16), (1,), torch.ones(1))


def family(guidance: float | None = None) -> Family:
    """FLUX, with this guidance scale where the network embeds one; None is `GUIDANCE`."""
    warned()
    return Family(
        name="flux",
        networks=("FluxTransformer2DModel",),
        part="transformer",
        call=partial(call, guidance=guidance),
        blocks=blocks,
        channels=channels,
        tokens=image,
        texts=("text", "pooled"),
        pipelines=("FluxPipeline",),
        sample_channels=sample_channels,
    )


FAMILY = family()
