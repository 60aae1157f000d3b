"""Small random transformers of diffusers as teachers, for the conformance suite and the tests of each family.

`FAMILIES` holds the arguments of the suite's `Family`; `cond` gives five conditions, of which rows 0 and 2, and rows
1, 3 and 4, are alike.
"""

from functools import partial

import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from randomized import randomized

from hidistill.conventions import Diffusion, Flow, Table
from hidistill.foreign.network import Network
from hidistill.teachers import diffusers_dit, flux, pixart, sana, stable_diffusion_3

LINEAR = DDIMScheduler(
    num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="trailing"
)
NOISE = Diffusion("epsilon", Table.of(LINEAR.alphas_cumprod))
ROWS = torch.tensor([0, 1, 0, 1, 1])
TEXT, POOLED = (3, 6), (5,)
"""Tokens and channels of a prompt, and the channels of its pooled embedding."""


def masked():
    """Five prompts with masks; the second is one token shorter."""
    generator = torch.Generator().manual_seed(7)
    text, mask = torch.randn(2, *TEXT, generator=generator), torch.tensor([[1, 1, 1], [1, 1, 0]])
    return {"text": text[ROWS], "mask": mask[ROWS]}


def masked_null():
    text = torch.randn(1, *TEXT, generator=torch.Generator().manual_seed(8))
    return {"text": text, "mask": torch.tensor([[1, 0, 0]])}


def pooled():
    """Five prompts with pooled embeddings."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"text": TEXT, "pooled": POOLED}
    return {key: torch.randn(2, *shape, generator=generator)[ROWS] for key, shape in shapes.items()}


def pooled_null():
    generator = torch.Generator().manual_seed(8)
    return {key: torch.randn(1, *shape, generator=generator) for key, shape in (("text", TEXT), ("pooled", POOLED))}


def dit_net(**options):
    settings = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 4}
    settings |= {"sample_size": 4, "num_embeds_ada_norm": 2, "patch_size": 2}
    return randomized(DiTTransformer2DModel(**settings | options))


def dit(**options):
    return Network(dit_net(**options), diffusers_dit.FAMILY, NOISE, taps=(0, 3))


def sana_net(**options):
    settings = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3}
    settings |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
    settings |= {"caption_channels": TEXT[1], "sample_size": 4, "patch_size": 1}
    return randomized(SanaTransformer2DModel(**settings | options))


def sana_teacher(convention=Flow(), family=sana.FAMILY, **options):  # noqa: B008 -- frozen
    return Network(sana_net(**options), family, convention, taps=(0, 2), null=masked_null())


def sprint():
    return sana_teacher(Flow(unit=1.0), guidance_embeds=True, qk_norm="rms_norm_across_heads")


def pixart_net(**options):
    settings = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8}
    settings |= {"num_layers": 3, "cross_attention_dim": 24, "sample_size": 4, "caption_channels": TEXT[1]}
    return randomized(PixArtTransformer2DModel(**settings | options))


def pixart_teacher(**options):
    return Network(pixart_net(**options), pixart.FAMILY, NOISE, taps=(0, 2), null=masked_null())


def sd3_net(**options):
    settings = {"sample_size": 4, "in_channels": 4, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2}
    settings |= {"joint_attention_dim": TEXT[1], "caption_projection_dim": 16, "pooled_projection_dim": POOLED[0]}
    return randomized(SD3Transformer2DModel(**settings | {"out_channels": 4, "pos_embed_max_size": 8} | options))


def sd3_teacher(**options):
    return Network(sd3_net(**options), stable_diffusion_3.FAMILY, Flow(), taps=(0, 2), null=pooled_null())


def flux_net(**options):
    settings = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8}
    settings |= {"num_attention_heads": 2, "joint_attention_dim": TEXT[1], "pooled_projection_dim": POOLED[0]}
    return randomized(FluxTransformer2DModel(**settings | {"axes_dims_rope": (2, 2, 4)} | options))


def flux_teacher(family=flux.FAMILY, **options):
    return Network(flux_net(**options), family, Flow(), taps=(0, 1, 3), null=pooled_null())


SHAPE = (4, 4, 4)
MASKED, POOLS = {"shape": SHAPE, "cond": masked}, {"shape": SHAPE, "cond": pooled}
SD35 = {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}
FAMILIES = {
    "diffusers dit": {"teacher": dit, "shape": SHAPE},
    "sana": {"teacher": sana_teacher} | MASKED,
    "sana with scaled times": {"teacher": partial(sana_teacher, timestep_scale=0.001)} | MASKED,
    "sana sprint": {"teacher": sprint} | MASKED,
    "pixart alpha": {"teacher": partial(pixart_teacher, use_additional_conditions=True)} | MASKED,
    "pixart sigma": {"teacher": pixart_teacher} | MASKED,
    "stable diffusion 3": {"teacher": sd3_teacher} | POOLS,
    "stable diffusion 3.5": {"teacher": partial(sd3_teacher, **SD35)} | POOLS,
    "flux schnell": {"teacher": flux_teacher} | POOLS,
    "flux dev": {"teacher": partial(flux_teacher, guidance_embeds=True)} | POOLS,
}
