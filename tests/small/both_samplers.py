"""The same samples twice for each family: by our Euler through the adapter, and by the stock pipeline itself.

Every function gives (ours, theirs) from the same noise, guided where the family can be, and takes the precision. In
float64 the stock side keeps its sinusoids and its schedule in float32.
"""

import math
from functools import partial
from itertools import pairwise

import small_originals
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    SanaPipeline,
    SanaSprintPipeline,
    SCMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from small_transformers import (
    LINEAR,
    dit,
    flux_teacher,
    masked,
    masked_null,
    pixart_teacher,
    pooled,
    pooled_null,
    sana_teacher,
    sd3_teacher,
)
from small_unets import LINEAR as LINEAR_UNET
from small_unets import SCALED, pictures_net, prompted_net, prompts, xl_net
from stock import (
    SCALE,
    autoencoder,
    converted,
    deep_autoencoder,
    flow_scheduler,
    flow_times,
    noise_times,
    repeated,
    sampled,
)

from hidistill.conventions import Flow
from hidistill.foreign.network import Network
from hidistill.foreign.scheduler import convention_of
from hidistill.guidance import Guided
from hidistill.path import rows_of
from hidistill.sampling import euler, renoise
from hidistill.teachers import flux, sana, unet

LABELS = [3, 999, 0]
SIZE = {"height": 32, "width": 48, "output_type": "latent"}
DEEP = {"height": 128, "width": 192, "use_resolution_binning": False, "output_type": "latent"}
ALPHA = {"sample_size": 128, "use_additional_conditions": True}
DEV = {"guidance_embeds": True}
SPRINT = DEV | {"qk_norm": "rms_norm_across_heads"}
STEPS = 5
"""A divisor of 1000: with others, DDIM takes the noise level after a step from another time than the next one."""


def of_dit(dtype):
    """The pipeline answers with pictures alone: its last latents are what its decoder is given."""
    network, vae, latents = dit(num_embeds_ada_norm=1000).to(dtype), autoencoder().to(dtype), []
    vae.decoder.register_forward_pre_hook(lambda _module, given: latents.append(given[0]))
    pipe = DiTPipeline(network.net, vae, DDIMScheduler.from_config(LINEAR.config))
    generator = torch.Generator().manual_seed(4)
    sampled(pipe, class_labels=LABELS, guidance_scale=SCALE, generator=generator, output_type="pt")
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(4), dtype=dtype)
    times, size = noise_times(pipe.scheduler)
    return euler(Guided(network, SCALE), noise / size, cond=torch.tensor(LABELS), times=times), latents[0]


def of_sana(dtype, **options):
    network, cond = sana_teacher(**options).to(dtype), converted(masked(), dtype)
    null, noise = repeated(converted(masked_null(), dtype)), torch.randn(5, 4, 4, 6)
    pipe = SanaPipeline(None, None, deep_autoencoder(), network.net, flow_scheduler())
    theirs = sampled(
        pipe,
        prompt_embeds=cond["text"],
        prompt_attention_mask=cond["mask"],
        negative_prompt=None,
        negative_prompt_embeds=null["text"],
        negative_prompt_attention_mask=null["mask"],
        guidance_scale=SCALE,
        latents=noise,
        **DEEP,
    )
    return euler(Guided(network, SCALE), noise.to(dtype), cond=cond, times=flow_times(pipe.scheduler)), theirs


def of_sprint(dtype, *, guidance=None, steps=2):
    """Its trigonometric path is the linear one, rescaled; the embedded guidance is the pipeline's own."""
    network = sana_teacher(Flow(unit=1.0), sana.family(guidance), **SPRINT).to(dtype)
    cond, noise = converted(masked(), dtype), torch.randn(5, 4, 4, 6)
    pipe = SanaSprintPipeline(None, None, deep_autoencoder(), network.net, SCMScheduler())
    theirs = sampled(
        pipe,
        steps=steps,
        prompt_embeds=cond["text"],
        prompt_attention_mask=cond["mask"],
        latents=noise,
        generator=torch.Generator().manual_seed(3),
        intermediate_timesteps=1.3 if steps == 2 else None,
        **DEEP | ({} if guidance is None else {"guidance_scale": guidance}),
    )
    middle = math.sin(1.3) / (math.sin(1.3) + math.cos(1.3))
    times, fresh = [(1.0, 0.0), (1.0, middle, 0.0)][steps - 1], torch.Generator().manual_seed(3)
    fresh = [torch.randn(noise.shape, generator=fresh).to(dtype) for _ in times[2:]]
    return renoise(network.student(), noise.to(dtype), cond=cond, times=times, fresh=fresh), theirs


def of_pixart(dtype, *, stock=PixArtSigmaPipeline, **options):
    network, cond = pixart_teacher(**options).to(dtype), converted(masked(), dtype)
    null, noise = repeated(converted(masked_null(), dtype)), torch.randn(5, 4, 4, 6, dtype=torch.float64)
    pipe = stock(None, None, autoencoder(), network.net, DDIMScheduler.from_config(LINEAR.config))
    theirs = sampled(
        pipe,
        prompt_embeds=cond["text"],
        prompt_attention_mask=cond["mask"],
        negative_prompt=None,
        negative_prompt_embeds=null["text"],
        negative_prompt_attention_mask=null["mask"],
        guidance_scale=SCALE,
        latents=noise.to(dtype),
        use_resolution_binning=False,
        **SIZE,
    )
    times, size = noise_times(pipe.scheduler)
    return euler(Guided(network, SCALE), (noise / size).to(dtype), cond=cond, times=times), theirs


def of_stable_diffusion_3(dtype, **options):
    network, cond = sd3_teacher(**options).to(dtype), converted(pooled(), dtype)
    null, noise = repeated(converted(pooled_null(), dtype)), torch.randn(5, 4, 4, 6).to(dtype)
    pipe = StableDiffusion3Pipeline(network.net, flow_scheduler(), autoencoder(), None, None, None, None, None, None)
    theirs = sampled(
        pipe,
        prompt_embeds=cond["text"],
        pooled_prompt_embeds=cond["pooled"],
        negative_prompt_embeds=null["text"],
        negative_pooled_prompt_embeds=null["pooled"],
        guidance_scale=SCALE,
        latents=noise,
        **SIZE,
    )
    return euler(Guided(network, SCALE), noise, cond=cond, times=flow_times(pipe.scheduler)), theirs


def of_flux(dtype, *, guidance=None, **options):
    """With true guidance, so that the null side counts too; packed and unpacked by the pipeline's own functions."""
    network, cond = flux_teacher(flux.family(guidance), **options).to(dtype), converted(pooled(), dtype)
    null, noise = repeated(converted(pooled_null(), dtype)), torch.randn(5, 4, 4, 6).to(dtype)
    pipe = FluxPipeline(flow_scheduler(), autoencoder(), None, None, None, None, network.net)
    theirs = sampled(
        pipe,
        prompt_embeds=cond["text"],
        pooled_prompt_embeds=cond["pooled"],
        negative_prompt_embeds=null["text"],
        negative_pooled_prompt_embeds=null["pooled"],
        true_cfg_scale=SCALE,
        latents=pipe._pack_latents(noise, 5, 4, 4, 6),
        **SIZE | ({} if guidance is None else {"guidance_scale": guidance}),
    )
    theirs = pipe._unpack_latents(theirs, 32, 48, 8)
    return euler(Guided(network, SCALE), noise, cond=cond, times=flow_times(pipe.scheduler)), theirs


def scheduler(like, **options):
    return DDIMScheduler.from_config(like.config, timestep_spacing="trailing", **options)


def convention(of):
    return convention_of({**of.config, "_class_name": type(of).__name__})


def places(of):
    """Shares (alpha, sigma) of signal and noise at each step of a DDIM sampler, and where it ends."""
    of.set_timesteps(STEPS)
    kept = [*of.alphas_cumprod[of.timesteps].double(), of.final_alpha_cumprod.double()]
    return [(value.sqrt(), (1 - value).sqrt()) for value in kept]


def along(field, start, shares, cond):
    """Euler's method from `start`, which is alpha x_0 + sigma noise, over the same places."""
    x = start / sum(shares[0])
    times = [sigma / (alpha + sigma) for alpha, sigma in shares]
    for t, r in pairwise(times):
        x = x - (t - r) * field.velocity(x, t=t.expand(len(x)).to(x.dtype), cond=cond)
    return x * sum(shares[-1])


def drawn(dtype, *shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def texts(dtype, *keys):
    """Conditions of two rows and the empty prompt of one."""
    cond = {key: value.to(dtype) for key, value in rows_of(prompts(*keys), slice(0, 2)).items()}
    null = {key: value.to(dtype) for key, value in rows_of(prompts(*keys), slice(0, 1)).items()}
    return cond, {key: 0.5 * value.flip(-1) for key, value in null.items()}


def of_unet(dtype, *, answer="epsilon"):
    net = pictures_net().to(dtype)
    pipeline = DDIMPipeline(net, scheduler(LINEAR_UNET, prediction_type=answer))
    pipeline.set_progress_bar_config(disable=True)
    step, ends = pipeline.scheduler.step, []

    def seen(*args, **options):
        ends.append(step(*args, **options).prev_sample)
        return DDIMSchedulerOutput(ends[-1])

    pipeline.scheduler.step = seen  # the pipeline clamps what it returns
    generator = torch.Generator().manual_seed(5)
    pipeline(batch_size=2, generator=generator, num_inference_steps=STEPS, eta=0.0, output_type="pt")
    assert len(ends) == STEPS
    teacher = Network(net, unet.FAMILY, convention(pipeline.scheduler))
    none = torch.zeros(2, dtype=torch.long)
    return along(teacher, drawn(dtype, 3, 8, 8), places(pipeline.scheduler), none), ends[-1]


def of_unet_of_classes(dtype):
    """No pipeline of many steps takes its labels: the scheduler's own steps, around the network itself."""
    net, steps = pictures_net(num_class_embeds=3).to(dtype), scheduler(LINEAR_UNET)
    shares, labels, x = places(steps), torch.tensor([0, 2]), drawn(dtype, 3, 8, 8)
    with torch.no_grad():
        for time in steps.timesteps:
            x = steps.step(net(x, time, class_labels=labels).sample, time, x, eta=0.0).prev_sample
    teacher = Network(net, unet.FAMILY, convention(steps))
    return along(teacher, drawn(dtype, 3, 8, 8), shares, labels), x


def of_stable_diffusion(dtype, *, answer="epsilon"):
    net, (cond, null) = prompted_net().to(dtype), texts(dtype, "text")
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=net,
        scheduler=scheduler(SCALED, prediction_type=answer, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs = sampled(
        pipeline,
        steps=STEPS,
        prompt_embeds=cond["text"],
        negative_prompt_embeds=null["text"].expand(2, -1, -1),
        latents=drawn(dtype, 4, 8, 8),
        guidance_scale=3.0,
        output_type="latent",
    )
    teacher = Network(net, unet.TEXT, convention(pipeline.scheduler), null=null)
    return along(Guided(teacher, 3.0), drawn(dtype, 4, 8, 8), places(pipeline.scheduler), cond), theirs


def of_stable_diffusion_xl(dtype, *, side=64):
    net, (cond, null) = xl_net().to(dtype), texts(dtype, "text", "pooled")
    pipeline = StableDiffusionXLPipeline(
        vae=None,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=net,
        scheduler=scheduler(SCALED, prediction_type="epsilon"),
        add_watermarker=False,
    )
    latents = drawn(dtype, 4, side // 8, side // 8)
    theirs = sampled(
        pipeline,
        steps=STEPS,
        height=side,
        width=side,
        prompt_embeds=cond["text"],
        pooled_prompt_embeds=cond["pooled"],
        negative_prompt_embeds=null["text"].expand(2, -1, -1),
        negative_pooled_prompt_embeds=null["pooled"].expand(2, -1),
        latents=latents,
        guidance_scale=3.0,
        output_type="latent",
    )
    teacher = Network(net, unet.XL, convention(pipeline.scheduler), null=null)
    return along(Guided(teacher, 3.0), latents, places(pipeline.scheduler), cond), theirs


def of_original_sit(dtype, *, steps=8):
    """Its own runs from noise at 0 to data at 1: its Euler steps from the same noise end where ours do."""
    ours, net, labels = original("sit", dtype)
    noise = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(5)).to(dtype)
    x = noise
    with torch.no_grad():
        for step in range(steps):
            x = x + net(x, torch.full((3,), step / steps, dtype=dtype), labels)[:, :4] / steps
        return euler(ours, noise, cond=labels, steps=steps), x


def of_original_dit(dtype):
    """DDIM's own formula (arXiv 2010.02502, eq. 12), from the levels that its repository's betas give."""
    ours, net, labels = original("dit", dtype)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    levels = [*kept[[999, 799, 599, 399, 199]], torch.tensor(1.0, dtype=torch.float64)]
    shares = [(level.sqrt(), (1 - level).sqrt()) for level in levels]
    start = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(5)).to(dtype)
    x = start
    with torch.no_grad():
        for time, ((alpha, sigma), (less, little)) in zip((999, 799, 599, 399, 199), pairwise(shares), strict=True):
            noise = net(x, torch.full((3,), float(time), dtype=dtype), labels)[:, :4]
            x = less.to(dtype) * (x - sigma.to(dtype) * noise) / alpha.to(dtype) + little.to(dtype) * noise
        return along(ours, start, shares, labels), x


def original(kind, dtype):
    """A checkpoint's network as a teacher, the same network by itself, and labels."""
    torch.manual_seed(1)
    ours = small_originals.teacher(kind).to(dtype)
    torch.manual_seed(1)
    return ours, small_originals.Original().to(dtype), torch.tensor([0, 1, 3])


SAMPLERS = {
    "dit": of_dit,
    "sana": of_sana,
    "sana sprint": of_sprint,
    "pixart alpha": partial(of_pixart, stock=PixArtAlphaPipeline, **ALPHA),
    "pixart sigma": of_pixart,
    "stable diffusion": of_stable_diffusion,
    "stable diffusion xl": of_stable_diffusion_xl,
    "stable diffusion 3": of_stable_diffusion_3,
    "flux schnell": of_flux,
    "flux dev": partial(of_flux, **DEV),
    "unet": of_unet,
    "unet of classes": of_unet_of_classes,
    "original dit": of_original_dit,
    "original sit": of_original_sit,
}
