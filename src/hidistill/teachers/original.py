"""Checkpoints of the repositories of DiT (arXiv 2212.09748) and SiT (arXiv 2401.08740), as diffusers' network.

Both are one architecture, which diffusers has as `DiTTransformer2DModel`. It keeps a copy of the embeddings in every
block, splits the product of queries, keys and values, and spaces the frequencies of the time by 1 / (half - 1) where
the original spaces them by 1 / half. The last is no part of its configuration: it is set on the network that is built
here, and a folder that `save_pretrained` writes of it is without.

The answer of a SiT that learned a variance too is its velocity alone, as in its repository.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.serialization import safe_globals

from hidistill.conventions import Convention, Diffusion, Flow, Table
from hidistill.foreign.folder import library, read_tensors
from hidistill.weights import WeightsError, load_into

Kind = Literal["dit", "sit"]
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Heads by width: S, B, L and XL of arXiv 2212.09748, table 1. Weights do not tell them."""
SINUSOIDS = 256
"""Cosines and sines of the time."""
NETWORK = "DiTTransformer2DModel"
"""Class of diffusers that both are."""
SCHEDULERS: Mapping[Kind, Mapping[str, Any]] = {
    "dit": {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
        "clip_sample": False,
    },
    "sit": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1, "invert_sigmas": True},
}
"""Configuration of a scheduler of diffusers for the networks of a repository, as folders have one; what holds is
`convention`, whose noise levels are of float64."""


class Size(NamedTuple):
    """What the tensors of a checkpoint tell of its network."""

    dim: int
    depth: int
    patch: int
    channels: int
    answered: int
    """Channels of the answer."""
    classes: int
    patches: int


def convention(kind: Kind) -> Convention:
    """What the networks of a repository were trained on.

    DiT predicts the noise on the linear schedule of arXiv 2006.11239. SiT's published networks are of its linear path
    and predict the velocity, from noise at 0 to data at 1.
    """
    if kind == "sit":
        return Flow(unit=1.0, reversed=True)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return Diffusion("epsilon", Table.of((1 - betas).cumprod(0)))


def read_original(path: Path, *, kind: Kind, heads: int | None = None, allow_pickle: bool = False) -> nn.Module:
    """The network of a checkpoint, in diffusers' form, in evaluation mode and frozen.

    Of a training checkpoint that holds both, the averaged weights ("ema") are read and not those in training ("model").

    Args:
        path: a safetensors file, or a pickle (.pt).
        kind: which repository's.
        heads: of the attention; None looks them up by the width.
        allow_pickle: whether a pickle may be read, its tensors alone.

    Raises:
        WeightsError: if the file is damaged, is a pickle that was not asked for, or holds another network.
        ValueError: if the heads are not known, or do not divide the width.
    """
    state = weights_in(contents(path, allow_pickle=allow_pickle))
    size = size_of(state, path)
    check(state, shapes(size), path)
    kept = used(size, kind)
    net = getattr(library(), NETWORK)(**configuration(kept, heads or heads_of(size, path)))
    precision = state["x_embedder.proj.weight"].dtype
    if precision != torch.float32:  # diffusers logs a line about each cast, even one that changes nothing
        net.to(precision)
    load_into(net, renamed(state, size, kept), source=str(path))
    if (net.pos_embed.pos_embed - state["pos_embed"]).abs().max() > 0.01:
        raise WeightsError(
            f"pos_embed in {path} is not the table of sines and cosines over {isqrt(size.patches)} x "
            f"{isqrt(size.patches)} patches that DiT and SiT have and diffusers computes by itself: networks with "
            "learned positions need a teacher file of their own"
        )
    return spaced(net).eval().requires_grad_(False)


def read_configuration(path: Path, *, kind: Kind, allow_pickle: bool = False) -> dict[str, Any]:
    """What a folder of diffusers would say of a checkpoint's network; its frequencies (see `spaced`) are not in it.

    Raises:
        WeightsError: if the file is damaged, is a pickle that was not asked for, or holds another network.
        ValueError: if the width is none of the papers'.
    """
    size = size_of(weights_in(contents(path, allow_pickle=allow_pickle)), path)
    return {"_class_name": NETWORK, **configuration(used(size, kind), heads_of(size, path))}


def used(size: Size, kind: Kind) -> Size:
    """The sizes without the channels of the answer that are dropped."""
    drop = kind == "sit" and size.answered == 2 * size.channels
    return size._replace(answered=size.channels) if drop else size


def spaced(net: nn.Module) -> nn.Module:
    """Give a network of diffusers the frequencies of time that the originals have; the network itself is changed."""
    for block in net.transformer_blocks:  # type: ignore[union-attr]
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # type: ignore[union-attr]
    return net


def contents(path: Path, *, allow_pickle: bool) -> Mapping[str, Any]:
    """What a file holds: tensors by name, or several such mappings by name."""
    if not (allow_pickle and path.is_file() and path.suffix != ".safetensors"):
        return read_tensors(path)
    try:
        # Training checkpoints hold their options beside the tensors, in a class that does nothing.
        with safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}: {str(error).partition(chr(10))[0]}); it "
            "is not whole, or holds other objects: copy it again, or convert it to safetensors where it was made"
        ) from error
    if not isinstance(found, Mapping):
        raise WeightsError(
            f"{path} holds a {type(found).__name__}; a checkpoint holds tensors by name: save a state_dict"
        )
    return found


def weights_in(found: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights of a training checkpoint, averaged ones first; the mapping itself if it is none."""
    for name in ("ema", "model"):
        if isinstance(found.get(name), Mapping):
            return found[name]
    return found


def size_of(state: Mapping[str, Tensor], path: Path) -> Size:
    """The sizes that the tensors tell.

    Raises:
        WeightsError: if a tensor that tells them is not there, or is none of this architecture.
    """
    telling = ("x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
    ranks = {key: 0 if state.get(key) is None else state[key].ndim for key in telling}
    if tuple(ranks.values()) != (4, 3, 2, 2):
        ranked = ", ".join(f"{key} of rank {rank}" if rank else f"no {key}" for key, rank in ranks.items())
        raise WeightsError(
            f"{path} holds no DiT or SiT: it has {ranked}, which must be of ranks 4, 3, 2 and 2; in all it has "
            f"{some(sorted(state))}: give a checkpoint of facebookresearch/DiT or willisma/SiT"
        )
    dim, channels, patch, _ = state[telling[0]].shape
    patches = state[telling[1]].shape[1]
    if isqrt(patches) ** 2 != patches:
        raise WeightsError(
            f"pos_embed in {path} has {patches} patches, which are no square; DiT and SiT are of squares"
        )
    blocks = [int(found[1]) for key in state if (found := re.match(r"blocks\.(\d+)\.", key))]
    answered, odd = divmod(state[telling[3]].shape[0], patch**2)
    if odd:
        raise WeightsError(f"final_layer.linear in {path} has {odd} rows too many for patches of {patch} x {patch}")
    return Size(dim, max(blocks, default=-1) + 1, patch, channels, answered, state[telling[2]].shape[0] - 1, patches)


def heads_of(size: Size, path: Path) -> int:
    """Heads of the paper's networks.

    Raises:
        ValueError: if the width is none of theirs.
    """
    if size.dim not in HEADS:
        raise ValueError(
            f"{path} is of width {size.dim}, which does not tell its heads; known are widths "
            f"{', '.join(map(str, HEADS))}: give heads=..."
        )
    return HEADS[size.dim]


def configuration(size: Size, heads: int) -> dict[str, Any]:
    """The arguments of `DiTTransformer2DModel`."""
    if size.dim % heads:
        raise ValueError(f"{heads} heads came for a width of {size.dim}; they must divide it")
    return {
        "num_attention_heads": heads,
        "attention_head_dim": size.dim // heads,
        "in_channels": size.channels,
        "out_channels": size.answered,
        "num_layers": size.depth,
        "sample_size": isqrt(size.patches) * size.patch,
        "patch_size": size.patch,
        "num_embeds_ada_norm": size.classes,
        "activation_fn": "gelu-approximate",
        "norm_eps": 1e-6,
    }


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint and its shape."""
    dim = size.dim
    layers = {
        "t_embedder.mlp.0": (dim, SINUSOIDS),
        "t_embedder.mlp.2": (dim, dim),
        "final_layer.linear": (size.patch**2 * size.answered, dim),
        "final_layer.adaLN_modulation.1": (2 * dim, dim),
        "x_embedder.proj": (dim, size.channels, size.patch, size.patch),
    }
    for index in range(size.depth):
        layers |= {
            f"blocks.{index}.attn.qkv": (3 * dim, dim),
            f"blocks.{index}.attn.proj": (dim, dim),
            f"blocks.{index}.mlp.fc1": (4 * dim, dim),
            f"blocks.{index}.mlp.fc2": (dim, 4 * dim),
            f"blocks.{index}.adaLN_modulation.1": (6 * dim, dim),
        }
    found: dict[str, tuple[int, ...]] = {f"{key}.weight": shape for key, shape in layers.items()}
    found |= {f"{key}.bias": shape[:1] for key, shape in layers.items()}
    return found | {
        "pos_embed": (1, size.patches, dim),
        "y_embedder.embedding_table.weight": (size.classes + 1, dim),
    }


def check(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Refuse a checkpoint with other tensors than expected.

    Raises:
        WeightsError: if keys are missing or unexpected, or a shape differs; names them.
    """
    both = [key for key in expected if key in state]
    odd = [
        f"{key} of {tuple(state[key].shape)} instead of {expected[key]}"
        for key in both
        if state[key].shape != expected[key]
    ]
    faults = [
        f"it {word} {some(keys)}"
        for word, keys in (
            ("misses", sorted(expected.keys() - state.keys())),
            ("has the unexpected", sorted(state.keys() - expected.keys())),
            ("has other shapes:", odd),
        )
        if keys
    ]
    if faults:
        raise WeightsError(
            f"{path} is not quite a DiT or SiT: {'; '.join(faults)}. Variants with other layers need a teacher file of "
            "their own; a file that lacks some is to be copied again"
        )


def some(keys: list[str]) -> str:
    """The first of many names."""
    more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    return f"{', '.join(keys[:8]) or 'nothing'}{more}"


def renamed(state: Mapping[str, Tensor], size: Size, kept: Size) -> dict[str, Tensor]:
    """The tensors under diffusers' names, the answer's channels cut to those that are kept."""
    found = {}
    for kind in ("weight", "bias"):
        last = state[f"final_layer.linear.{kind}"].unflatten(0, (size.patch**2, size.answered))
        found |= {
            f"pos_embed.proj.{kind}": state[f"x_embedder.proj.{kind}"],
            f"proj_out_1.{kind}": state[f"final_layer.adaLN_modulation.1.{kind}"],
            f"proj_out_2.{kind}": last[:, : kept.answered].flatten(0, 1),
        }
        for index in range(size.depth):
            old, new = f"blocks.{index}", f"transformer_blocks.{index}"
            query, key, value = state[f"{old}.attn.qkv.{kind}"].chunk(3)
            found |= {
                f"{new}.norm1.emb.timestep_embedder.linear_1.{kind}": state[f"t_embedder.mlp.0.{kind}"],
                f"{new}.norm1.emb.timestep_embedder.linear_2.{kind}": state[f"t_embedder.mlp.2.{kind}"],
                f"{new}.norm1.emb.class_embedder.embedding_table.weight": state["y_embedder.embedding_table.weight"],
                f"{new}.norm1.linear.{kind}": state[f"{old}.adaLN_modulation.1.{kind}"],
                f"{new}.attn1.to_q.{kind}": query,
                f"{new}.attn1.to_k.{kind}": key,
                f"{new}.attn1.to_v.{kind}": value,
                f"{new}.attn1.to_out.0.{kind}": state[f"{old}.attn.proj.{kind}"],
                f"{new}.ff.net.0.proj.{kind}": state[f"{old}.mlp.fc1.{kind}"],
                f"{new}.ff.net.2.{kind}": state[f"{old}.mlp.fc2.{kind}"],
            }
    return found
