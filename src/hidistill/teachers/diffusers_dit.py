"""DiT as diffusers keeps it (`DiTTransformer2DModel`, arXiv 2212.09748): class-conditional, noise prediction.

Its null class is the label after the last. The original sampler guides only the first three of the four latent
channels; `Guided(channels=3)` does so, and all channels are the default, as in diffusers' own pipeline.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from hidistill.foreign.network import Family
from hidistill.types import Cond, Points, Times


def call(net: nn.Module, x: Points, time: Times, cond: Cond) -> Tensor:
    """The prediction; labels of the batch are its condition."""
    return net(x, timestep=time, class_labels=cond).sample


def blocks(net: nn.Module) -> Sequence[nn.Module]:
    """The transformer's blocks."""
    return list(net.transformer_blocks)  # type: ignore[arg-type]


def channels(net: nn.Module, block: int) -> int:
    """The width, which all blocks share."""
    del block
    return int(net.config.num_attention_heads * net.config.attention_head_dim)  # type: ignore[union-attr]


def classes(net: nn.Module) -> int:
    """Number of classes."""
    return int(net.config.num_embeds_ada_norm)  # type: ignore[union-attr]


FAMILY = Family(
    name="dit",
    networks=("DiTTransformer2DModel",),
    part="transformer",
    call=call,
    blocks=blocks,
    channels=channels,
    classes=classes,
    pipelines=("DiTPipeline",),
)
