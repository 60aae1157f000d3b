"""Weights of our own DiT in the architecture that diffusers has for it, for one fixed time.

Both are the transformer of arXiv 2212.09748. What differs: queries, keys and values are one layer here; every block
there has its own copy of the embeddings of time and class; the first half of the channels tells rows here and columns
there, which is made up for by exchanging the halves of every token; patches are (channel, row, column) here and (row,
column, channel) there. The embedding of time, low frequencies here and high ones there, is a constant at a fixed time.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hidistill.foreign.folder import library
from hidistill.weights import load_into

ACTIVATIONS = {"gelu": "gelu-approximate", "silu": "linear-silu"}
"""What diffusers calls the activations of our blocks."""


def stock_dit(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, time: Tensor) -> nn.Module:
    """A `DiTTransformer2DModel` that answers as the network F of our DiT.

    Args:
        config: of our DiT.
        tensors: its weights.
        time: (dim,), what stands for the embeddings of time and interval.

    Raises:
        ValueError: if it has convolutions around its blocks, which diffusers' has not.
    """
    if config.get("pixel_channels", 0):
        raise ValueError(
            f"this network has convolutions of {config['pixel_channels']} channels around its blocks "
            "(pixel_channels), for which diffusers' DiT has no place. Export to onnx or safetensors, which hold it as "
            "it is; or port the teacher first (hidistill train pipelines.port) and distill that"
        )
    dim, depth, heads = config["size"]
    net = library().DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=dim // heads,
        in_channels=config["channels"],
        out_channels=config["channels"],
        num_layers=depth,
        sample_size=config["image_size"],
        patch_size=config["patch"],
        num_embeds_ada_norm=config["classes"],
        activation_fn=ACTIVATIONS[config.get("activation", "gelu")],
        norm_eps=1e-6,
    )
    theirs = entrance(config, tensors) | leaving(config, tensors)
    for index in range(depth):
        theirs |= block(tensors, index, time=time, sinusoids=net.transformer_blocks[index].norm1.emb.timestep_embedder)
    load_into(net, theirs, source="the student")
    return net.eval().requires_grad_(False)


def swapped(x: Tensor, dim: int = 0, parts: int = 1) -> Tensor:
    """The halves of a token's channels exchanged, in each of `parts` groups along a dimension."""
    return torch.cat([torch.cat(part.chunk(2, dim)[::-1], dim) for part in x.chunk(parts, dim)], dim)


def entrance(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Patches to tokens: a linear layer here, a convolution there."""
    weight = tensors["patchify.weight"].unflatten(1, (config["channels"], config["patch"], config["patch"]))
    return {"pos_embed.proj.weight": swapped(weight), "pos_embed.proj.bias": swapped(tensors["patchify.bias"])}


def leaving(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tokens to patches, and the modulation before."""
    shape = (config["channels"], config["patch"], config["patch"])

    def ordered(x: Tensor) -> Tensor:
        return x.unflatten(0, shape).movedim(0, 2).flatten(0, 2)

    return {
        "proj_out_1.weight": swapped(tensors["last_modulation.weight"], parts=2),
        "proj_out_1.bias": swapped(tensors["last_modulation.bias"], parts=2),
        "proj_out_2.weight": ordered(swapped(tensors["unpatchify.weight"], 1)),
        "proj_out_2.bias": ordered(tensors["unpatchify.bias"]),
    }


def block(tensors: Mapping[str, Tensor], index: int, *, time: Tensor, sinusoids: nn.Module) -> dict[str, Tensor]:
    """One block, with its copy of the embeddings."""

    def ours(key: str) -> Tensor:
        return tensors[f"blocks.{index}.{key}"]

    found = {
        f"norm1.emb.timestep_embedder.{key}": torch.zeros_like(value) for key, value in sinusoids.state_dict().items()
    }
    found |= {"norm1.emb.timestep_embedder.linear_2.bias": time}
    found |= {"norm1.emb.class_embedder.embedding_table.weight": tensors["label.weight"]}
    parts: dict[str, tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        # name there, name here, how its outputs and how its inputs are ordered
        "norm1.linear": ("modulation", lambda x: swapped(x, parts=6), as_it_is),
        "attn1.to_out.0": ("out", swapped, as_it_is),
        "ff.net.0.proj": ("mlp.0", as_it_is, lambda x: swapped(x, 1)),
        "ff.net.2": ("mlp.2", swapped, as_it_is),
    }
    for there, (here, outputs, inputs) in parts.items():
        found[f"{there}.weight"] = inputs(outputs(ours(f"{here}.weight")))
        found[f"{there}.bias"] = outputs(ours(f"{here}.bias"))
    for place, name in enumerate(("to_q", "to_k", "to_v")):
        found[f"attn1.{name}.weight"] = swapped(ours("qkv.weight").chunk(3)[place], 1)
        found[f"attn1.{name}.bias"] = ours("qkv.bias").chunk(3)[place]
    return {f"transformer_blocks.{index}.{key}": value for key, value in found.items()}


def as_it_is(x: Tensor) -> Tensor:
    """The same order on both sides."""
    return x
