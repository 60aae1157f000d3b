"""U-Nets as diffusers keeps them: of pictures (arXiv 2006.11239), and of latents under a prompt (arXiv 2112.10752).

`UNet2DModel` is unconditional or has classes. Its configuration does not say whether the last of them stands for the
absence of the others: `FAMILY` takes every label for a class and refuses guidance, `LAST_IS_NULL` takes the last one
for the null class. `UNet2DConditionModel` is Stable Diffusion's, whose prompt is `text` (b, n, d), and Stable Diffusion
XL's, whose prompt is `text` and `pooled` (b, d); sizes and crops, which the latter embeds too, are those that its
pipeline gives by default: the picture's own size, uncropped.

Features are what the down blocks, the mid block and the up blocks give, in this order, each at its own resolution.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hidistill.foreign.network import Family
from hidistill.types import Cond, Points, Times

PIXELS = 8
"""Pixels per latent of Stable Diffusion's autoencoders, along each side."""


@contextmanager
def contiguous_norms(net: nn.Module) -> Iterator[None]:
    """Within, group norms are given contiguous tensors, which attention does not give.

    Torch's forward derivative of them fails otherwise; the norm itself would copy them in any case.
    """
    with ExitStack() as hooks:
        for module in net.modules():
            if isinstance(module, nn.GroupNorm):
                hooks.callback(module.register_forward_pre_hook(contiguous).remove)
        yield


def contiguous(norm: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The input of a norm, contiguous."""
    del norm
    return (given[0].contiguous(),)


def blocks(net: nn.Module) -> Sequence[nn.Module]:
    """The down blocks, the mid block if there is one, and the up blocks."""
    middle = [] if net.mid_block is None else [net.mid_block]
    return [*net.down_blocks, *middle, *net.up_blocks]  # type: ignore[list-item,misc]


def channels(net: nn.Module, block: int) -> int:
    """Channels behind a block, which are those of its last residual layer."""
    return int(blocks(net)[block].resnets[-1].out_channels)  # type: ignore[index,union-attr]


def refuse(net: nn.Module, usual: Mapping[str, Sequence[object]]) -> None:
    """Refuse networks that need more than their family gives.

    Raises:
        ValueError: if the configuration is not as usual; names where.
    """
    config: Mapping[str, Any] = net.config  # type: ignore[assignment]
    unusual = [f"{key} {config[key]!r}" for key, values in usual.items() if config.get(key) not in values]
    if config["in_channels"] > config["out_channels"]:
        unusual.append(f"in_channels {config['in_channels']} above out_channels {config['out_channels']}")
    if unusual:
        raise ValueError(
            f"this {type(net).__name__} has {', '.join(unusual)}: it needs more than a sample, its time, and a label "
            "or a prompt; networks of class or text to image are supported, others need a family of their own"
        )


def call_pictures(net: nn.Module, x: Points, time: Times, cond: Cond) -> Tensor:
    """The answer; labels of the batch are the condition where there are classes, and ignored otherwise."""
    refuse(net, {"class_embed_type": [None], "time_embedding_type": ["positional", "fourier"]})
    with contiguous_norms(net):
        return net(x, time, class_labels=cond if has_classes(net) else None).sample


def has_classes(net: nn.Module) -> bool:
    """Whether labels are embedded."""
    return net.config.num_class_embeds is not None  # type: ignore[union-attr]


def classes(net: nn.Module) -> int:
    """Number of labels, all of them classes; 0 if there are none."""
    return int(net.config.num_class_embeds or 0)  # type: ignore[union-attr]


def classes_but_last(net: nn.Module) -> int:
    """Number of labels without the last.

    Raises:
        ValueError: if there are no labels.
    """
    if not has_classes(net):
        raise ValueError(
            "this UNet2DModel has no labels (num_class_embeds is null), and so no last one that is the null class; "
            "give the family unet.FAMILY, which is for networks without classes too"
        )
    return classes(net) - 1


def no_null_class(net: nn.Module) -> int:
    """The label 0 of networks without classes.

    Raises:
        ValueError: if there are classes.
    """
    if has_classes(net):
        raise ValueError(
            f"this UNet2DModel has {classes(net)} labels, and nothing says that one of them is the null class, which "
            "guidance needs: give the family unet.LAST_IS_NULL if the last one is, or use no guidance"
        )
    return 0


USUAL = {
    "class_embed_type": [None],
    "num_class_embeds": [None],
    "encoder_hid_dim_type": [None],
    "time_cond_proj_dim": [None],
}
"""What the configuration of a network under a prompt alone says."""


def call_text(net: nn.Module, x: Points, time: Times, cond: Cond) -> Tensor:
    """The answer under a prompt."""
    refuse(net, USUAL | {"addition_embed_type": [None]})
    with contiguous_norms(net):
        return net(x, time, cond["text"].to(x.dtype)).sample  # type: ignore[call-overload]


def call_xl(net: nn.Module, x: Points, time: Times, cond: Cond) -> Tensor:
    """The answer under a prompt, for an uncropped picture of the latents' own size."""
    refuse(net, USUAL | {"addition_embed_type": ["text_time"]})
    text, pooled = (cond[key].to(x.dtype) for key in ("text", "pooled"))  # type: ignore[call-overload]
    added = {"text_embeds": pooled, "time_ids": sizes(net, x, pooled)}
    with contiguous_norms(net):
        return net(x, time, text, added_cond_kwargs=added).sample


def sizes(net: nn.Module, x: Points, pooled: Tensor) -> Tensor:
    """(b, 6): original height and width, place of the crop, target height and width, in pixels.

    Raises:
        ValueError: if the network embeds another count of numbers, as refiners do.
    """
    config: Mapping[str, Any] = net.config  # type: ignore[assignment]
    width, pool = config["addition_time_embed_dim"], pooled.shape[1]
    numbers = (config["projection_class_embeddings_input_dim"] - pool) / width
    if numbers != 6:
        raise ValueError(
            f"beside pooled texts of {pool} channels this network embeds {numbers:g} numbers; 6 (two sizes and a crop) "
            "are supported, as in base models of Stable Diffusion XL, not refiners: check the texts and the model"
        )
    side = [PIXELS * length for length in x.shape[2:]]
    return torch.tensor([*side, 0, 0, *side], device=x.device, dtype=x.dtype).expand(len(x), 6)


def is_xl(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is Stable Diffusion XL's."""
    return config.get("addition_embed_type") == "text_time"


def is_text(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is Stable Diffusion's."""
    return not is_xl(config)


FAMILY = Family(
    name="unet",
    networks=("UNet2DModel",),
    part="unet",
    call=call_pictures,
    blocks=blocks,
    channels=channels,
    classes=classes,
    null=no_null_class,
    pipelines=("DDIMPipeline", "DDPMPipeline"),
)
LAST_IS_NULL = replace(FAMILY, classes=classes_but_last, null=None)
TEXT = Family(
    name="stable diffusion",
    networks=("UNet2DConditionModel",),
    part="unet",
    call=call_text,
    blocks=blocks,
    channels=channels,
    texts=("text",),
    pipelines=("StableDiffusionPipeline",),
    fits=is_text,
)
XL = Family(
    name="stable diffusion xl",
    networks=("UNet2DConditionModel",),
    part="unet",
    call=call_xl,
    blocks=blocks,
    channels=channels,
    texts=("text", "pooled"),
    pipelines=("StableDiffusionXLPipeline",),
    fits=is_xl,
)
FAMILIES = (FAMILY, TEXT, XL)
"""Those that a configuration tells apart, by its class and `Family.fits`."""
