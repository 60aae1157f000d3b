"""Small random U-Nets of diffusers as teachers, for the conformance suite and the tests of their family.

`FAMILIES` holds the arguments of the suite's `Family`; rows of a condition are alike as in `small_transformers`.
"""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from randomized import randomized

from hidistill.conventions import Diffusion, LogSigma, Sigma, Table
from hidistill.foreign.network import Network
from hidistill.teachers import unet

SCALED = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
LINEAR = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
SIZES = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
SIZES |= {"attention_head_dim": 4}


def pictures_net(**options):
    settings = {"in_channels": 3, "out_channels": 3, "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
    settings |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return randomized(UNet2DModel(**SIZES | settings | options))


def prompted_net(**options):
    settings = {"in_channels": 4, "out_channels": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    settings |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 12}
    return randomized(UNet2DConditionModel(**SIZES | settings | options))


def xl_net(**options):
    """With 6 numbers of 8 channels each beside 10 channels of pooled text."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True}
    return prompted_net(**added | {"projection_class_embeddings_input_dim": 10 + 6 * 8} | options)


def pictures():
    return Network(pictures_net(), unet.FAMILY, Diffusion("epsilon", Table.of(LINEAR.alphas_cumprod)), taps=(0, 2, 4))


def of_three_classes():
    net = pictures_net(num_class_embeds=3, resnet_time_scale_shift="scale_shift", mid_block_type=None)
    return Network(net, unet.LAST_IS_NULL, Diffusion("v_prediction", Table.of(LINEAR.alphas_cumprod)))


def fourier():
    """As the score networks of arXiv 2011.13456: sinusoids of the logarithm of the noise level."""
    net = pictures_net(
        time_embedding_type="fourier",
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 64),
        center_input_sample=True,
    )
    with torch.no_grad():
        net.time_proj.weight.mul_(0.3)
    return Network(net, unet.FAMILY, Diffusion("score", Sigma(0.01, 50.0)), taps=(0, 3))


def prompted(prediction="epsilon"):
    convention = Diffusion(prediction, Table.of(SCALED.alphas_cumprod))
    return Network(prompted_net(), unet.TEXT, convention, null={"text": torch.zeros(1, 5, 12)})


def preconditioned():
    convention = Diffusion("edm", LogSigma(0.002, 80.0, 0.5), 0.5)
    return Network(prompted_net(), unet.TEXT, convention, null={"text": torch.zeros(1, 5, 12)})


def xl():
    null = {"text": torch.zeros(1, 5, 12), "pooled": torch.zeros(1, 10)}
    return Network(xl_net(), unet.XL, Diffusion("epsilon", Table.of(SCALED.alphas_cumprod)), null=null)


def prompts(*keys):
    """Two prompts, which of them says each row."""
    numbers = torch.Generator().manual_seed(3)
    both = {"text": torch.randn(2, 5, 12, generator=numbers), "pooled": torch.randn(2, 10, generator=numbers)}
    return {key: both[key][[0, 1, 0, 1, 1]] for key in keys}


FAMILIES = {
    "unet": {"teacher": pictures, "shape": (3, 8, 8), "conditional": False},
    "unet of classes": {"teacher": of_three_classes, "shape": (3, 8, 8)},
    "unet of scores": {"teacher": fourier, "shape": (3, 8, 8), "conditional": False},
    "stable diffusion": {"teacher": prompted, "shape": (4, 8, 8), "cond": lambda: prompts("text")},
    "stable diffusion under edm": {"teacher": preconditioned, "shape": (4, 8, 8), "cond": lambda: prompts("text")},
    "stable diffusion xl": {"teacher": xl, "shape": (4, 8, 8), "cond": lambda: prompts("text", "pooled")},
}
