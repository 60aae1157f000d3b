"""Small random teachers in pipelines' folders, their students, and what a stock pipeline makes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from randomized import randomized
from small_transformers import dit_net, flux_net, masked, pixart_net, pooled, sana_net, sd3_net
from small_unets import pictures_net, prompted_net, prompts, xl_net
from stock import as_tensor

from hidistill.foreign.folder import Folder
from hidistill.foreign.identity import SCALE, identity_autoencoder
from hidistill.foreign.network import FlowMap, Network
from hidistill.foreign.scheduler import convention_of
from hidistill.sampling import grid, jump
from hidistill.teachers import diffusers_dit, flux, pixart, sana, stable_diffusion_3, unet

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

DDPM = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}


def autoencoder():
    """What decodes latents of small networks, which nothing here needs but for the pipelines' asking."""
    return randomized(
        diffusers.AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            latent_channels=4,
        )
    )


def diffusion(**options):
    return diffusers.DDIMScheduler(**DDPM | options)


def flow(**options):
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | options)


@dataclass(frozen=True)
class Case:
    """A kind of teacher.

    Args:
        net: its network.
        family: its family.
        scheduler: its scheduler.
        pipeline: class name of its pipeline.
        cond: conditions of five rows.
        call: arguments of the stock pipeline's call for them.
        null: the pipeline's parts that are left out, which `from_pretrained` wants to hear of again.
        parts: further parts of the pipeline.
        shape: of a sample.
        noise: how the pipeline is told of the noise: latents or generator.
        divisor: pixels in [-1, 1] are samples divided by this; 0 where the pipeline gives latents.
        expected: class name of the pipeline that is exported to, if it is another.
    """

    net: Callable[[], torch.nn.Module]
    family: Any
    scheduler: Callable[[], Any]
    pipeline: str
    cond: Callable[[], Any]
    call: Callable[[Any], Mapping[str, Any]]
    null: tuple[str, ...] = ()
    parts: Callable[[], Mapping[str, Any]] = lambda: {"vae": autoencoder()}
    shape: tuple[int, int, int] = (4, 4, 4)
    noise: str = "latents"
    divisor: float = 0.0
    expected: str = ""

    def write(self, root: Path) -> Folder:
        """The teacher's folder."""
        net = self.net()
        parts = dict.fromkeys(self.null) | dict(self.parts())
        kind = getattr(diffusers, self.pipeline)
        kind(**{self.family.part: net, "scheduler": self.scheduler()} | parts).save_pretrained(root)
        return Folder(root)

    def teacher(self, folder: Folder) -> Network:
        """The teacher in it."""
        return Network(folder.network(self.family.part), self.family, convention_of(folder.config("scheduler")))

    def student(self, folder: Folder, degree: int | None = 8) -> FlowMap:
        """A student of it that has learned something, whatever it may be."""
        student = self.teacher(folder).student(degree=degree)
        randomized(student.interval)
        for fit in student.curve.parameters() if student.curve else ():
            fit.data += 0.3 * torch.randn_like(fit)
        return student.eval().requires_grad_(False)

    @property
    def z(self):
        """Noise of five rows."""
        return torch.randn(5, *self.shape, generator=torch.Generator().manual_seed(3))

    def ours(self, student, steps=1):
        """Our samples, as the pipeline hands them out."""
        samples = jump(student, self.z, cond=self.cond(), times=grid(steps))
        if self.divisor:
            return (samples / self.divisor).clamp(-1, 1)
        return flux.pack(samples) if self.family.name == "flux" else samples

    def arguments(self):
        """Of the call for five pictures, but for the generator."""
        z = flux.pack(self.z) if self.family.name == "flux" else self.z
        given = {"latents": z} if self.noise == "latents" else {}
        return {**self.call(self.cond()), **given, "output_type": "pt" if self.divisor else "latent"}

    def theirs(self, pipeline, steps=1):
        """The samples of a pipeline."""
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        images = as_tensor(pipeline(**self.arguments(), num_inference_steps=steps, generator=generator).images)
        return 2 * images - 1 if self.divisor else images


def difference(theirs, ours):
    """The largest, in units of the largest sample."""
    return float((theirs - ours).abs().max() / ours.abs().max())


def labels():
    return torch.tensor([0, 1, 0, 1, 1])


def by_label(cond):
    return {"class_labels": cond.tolist(), "guidance_scale": 1.0}


def by_mask(cond, side=8):
    return {
        "prompt_embeds": cond["text"],
        "prompt_attention_mask": cond["mask"],
        "guidance_scale": 1.0,
        "use_resolution_binning": False,
        "negative_prompt": None,
        "height": side,
        "width": side,
    }


def by_pool(cond):
    return {
        "prompt_embeds": cond["text"],
        "pooled_prompt_embeds": cond["pooled"],
        "guidance_scale": 1.0,
        "height": 8,
        "width": 8,
    }


def sprint(cond):
    call = by_mask(cond, side=128)
    del call["negative_prompt"]
    return call | {"intermediate_timesteps": None}


def by_sana(cond):
    return by_mask(cond, side=128)


def shrinking(divisor):
    """A decoder that gives a part of the latents as pixels, so that no value is cut off."""
    vae = identity_autoencoder(4)
    vae.register_to_config(scaling_factor=divisor * SCALE)
    return {"vae": vae}


def by_text(cond):
    return {"prompt_embeds": cond["text"], "guidance_scale": 1.0, "height": 64, "width": 64}


def by_xl(cond):
    return by_text(cond) | {"pooled_prompt_embeds": cond["pooled"]}


def by_number(cond):
    return {"class_labels": cond, "batch_size": 5}


def scaled():
    return diffusion(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


TEXT = ("text_encoder", "tokenizer")
MASKED = {"cond": masked, "call": partial(by_mask, side=32), "null": (*TEXT, "vae"), "parts": dict}
SANA = MASKED | {"call": by_sana, "null": (*TEXT, "vae"), "parts": dict}
POOLED = {"cond": pooled, "call": by_pool}
SD3 = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
FLUX = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
DIT = {"cond": labels, "call": by_label, "parts": partial(shrinking, 8.0), "noise": "generator", "divisor": 8.0}
LARGE = DIT | {"parts": partial(shrinking, 1024.0), "divisor": 1024.0}
PIXELS = {
    "cond": labels,
    "call": lambda cond: {"batch_size": 5},
    "parts": dict,
    "noise": "generator",
    "divisor": 1.0,
    "shape": (3, 8, 8),
}
PROMPTS = {"shape": (4, 8, 8), "null": (*TEXT, "vae"), "parts": dict}


CASES = {
    "dit": Case(dit_net, diffusers_dit.FAMILY, diffusion, "DiTPipeline", **LARGE),
    "dit, v": Case(
        dit_net, diffusers_dit.FAMILY, partial(diffusion, prediction_type="v_prediction"), "DiTPipeline", **DIT
    ),
    "dit, data": Case(
        dit_net, diffusers_dit.FAMILY, partial(diffusion, prediction_type="sample"), "DiTPipeline", **DIT
    ),
    "dit, v without signal": Case(
        dit_net,
        diffusers_dit.FAMILY,
        partial(diffusion, prediction_type="v_prediction", rescale_betas_zero_snr=True),
        "DiTPipeline",
        **DIT,
    ),
    "dit, flow": Case(dit_net, diffusers_dit.FAMILY, flow, "DiTPipeline", **DIT),
    "dit, reversed flow": Case(dit_net, diffusers_dit.FAMILY, partial(flow, invert_sigmas=True), "DiTPipeline", **DIT),
    "pixart alpha": Case(
        partial(pixart_net, use_additional_conditions=True, sample_size=128),
        pixart.FAMILY,
        diffusion,
        "PixArtAlphaPipeline",
        **MASKED,
    ),
    "pixart sigma": Case(pixart_net, pixart.FAMILY, diffusion, "PixArtSigmaPipeline", **MASKED),
    "sana": Case(sana_net, sana.FAMILY, flow, "SanaPipeline", **SANA),
    "sana sprint": Case(
        partial(sana_net, guidance_embeds=True, qk_norm="rms_norm_across_heads"),
        sana.FAMILY,
        diffusers.SCMScheduler,
        "SanaSprintPipeline",
        **SANA | {"call": sprint},
    ),
    "stable diffusion 3": Case(
        sd3_net, stable_diffusion_3.FAMILY, flow, "StableDiffusion3Pipeline", **POOLED, null=SD3
    ),
    "flux schnell": Case(flux_net, flux.FAMILY, flow, "FluxPipeline", **POOLED, null=FLUX),
    "flux dev": Case(
        partial(flux_net, guidance_embeds=True),
        flux.FAMILY,
        partial(flow, use_dynamic_shifting=True),
        "FluxPipeline",
        **POOLED,
        null=FLUX,
    ),
    "stable diffusion": Case(
        prompted_net,
        unet.TEXT,
        scaled,
        "StableDiffusionPipeline",
        partial(prompts, "text"),
        by_text,
        **PROMPTS | {"null": (*TEXT, "vae", "safety_checker", "feature_extractor")},
    ),
    "stable diffusion under edm": Case(
        prompted_net,
        unet.TEXT,
        diffusers.EDMEulerScheduler,
        "StableDiffusionPipeline",
        partial(prompts, "text"),
        by_text,
        **PROMPTS | {"null": (*TEXT, "vae", "safety_checker", "feature_extractor")},
    ),
    "stable diffusion xl": Case(
        xl_net,
        unet.XL,
        scaled,
        "StableDiffusionXLPipeline",
        partial(prompts, "text", "pooled"),
        by_xl,
        **PROMPTS | {"null": (*TEXT, "text_encoder_2", "tokenizer_2", "vae")},
    ),
    "unet, ddpm": Case(
        pictures_net, unet.FAMILY, partial(diffusers.DDPMScheduler, beta_end=0.002), "DDPMPipeline", **PIXELS
    ),
    "unet, ddim": Case(pictures_net, unet.FAMILY, partial(diffusion, beta_end=0.002), "DDIMPipeline", **PIXELS),
    "unet, edm": Case(pictures_net, unet.FAMILY, diffusers.EDMEulerScheduler, "DDPMPipeline", **PIXELS),
    "unet, flow": Case(pictures_net, unet.FAMILY, flow, "DDPMPipeline", **PIXELS),
    "unet of scores": Case(
        partial(pictures_net, time_embedding_type="fourier"),
        unet.FAMILY,
        partial(diffusers.ScoreSdeVeScheduler, sigma_max=2.0),
        "DDPMPipeline",
        **PIXELS,
    ),
    "unet of classes": Case(
        partial(pictures_net, num_class_embeds=3),
        unet.FAMILY,
        partial(diffusion, beta_end=0.002),
        "DDPMPipeline",
        expected="ConsistencyModelPipeline",
        **PIXELS | {"call": by_number},
    ),
    "unet of classes, edm": Case(
        partial(pictures_net, num_class_embeds=3),
        unet.FAMILY,
        diffusers.EDMEulerScheduler,
        "DDPMPipeline",
        expected="ConsistencyModelPipeline",
        **PIXELS | {"call": by_number},
    ),
    "unet of classes, flow": Case(
        partial(pictures_net, num_class_embeds=3),
        unet.FAMILY,
        flow,
        "DDPMPipeline",
        expected="ConsistencyModelPipeline",
        **PIXELS | {"call": by_number},
    ),
    "unet of classes, data": Case(
        partial(pictures_net, num_class_embeds=3),
        unet.FAMILY,
        partial(diffusion, prediction_type="sample"),
        "DDPMPipeline",
        expected="ConsistencyModelPipeline",
        **PIXELS | {"call": by_number},
    ),
}
NEAR = {"sana sprint": 2e-5, "unet of classes, data": 1e-5}
"""Differences in units of the largest sample, where there are larger ones than 2e-6: the pipeline's pi / 2 has six
digits, and a millionth of the noise is left where the student has none.
"""
