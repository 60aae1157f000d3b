"""Stable Diffusion 3 and 3.5 as diffusers keeps them (`SD3Transformer2DModel`, arXiv 2403.03206): a flow.

A prompt is `text` (b, n, d), the tokens of all three encoders in one row, and `pooled` (b, d). Image and text are two
streams; features are the image's. Some blocks of version 3.5 attend twice, which changes nothing here.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from hidistill.foreign.network import Family
from hidistill.types import Cond, Points, Times, Tokens


def call(net: nn.Module, x: Points, time: Times, cond: Cond) -> Tensor:
    """The velocity."""
    text, pooled = (cond[key].to(x.dtype) for key in ("text", "pooled"))  # type: ignore[call-overload]
    return net(x, text, pooled, timestep=time).sample


def blocks(net: nn.Module) -> Sequence[nn.Module]:
    """The transformer's blocks."""
    return list(net.transformer_blocks)  # type: ignore[arg-type]


def channels(net: nn.Module, block: int) -> int:
    """The width, which all blocks share."""
    del block
    return int(net.config.num_attention_heads * net.config.attention_head_dim)  # type: ignore[union-attr]


def tokens(answer: tuple[Tensor | None, Tensor]) -> Tokens:
    """The image's part of a block's answer, which is (text, image); the last block drops the text."""
    return answer[1]


FAMILY = Family(
    name="stable diffusion 3",
    networks=("SD3Transformer2DModel",),
    part="transformer",
    call=call,
    blocks=blocks,
    channels=channels,
    tokens=tokens,
    texts=("text", "pooled"),
    pipelines=("StableDiffusion3Pipeline",),
)
