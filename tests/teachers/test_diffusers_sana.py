import math

import pytest
import torch
from diffusers import SanaPipeline, SanaSprintPipeline, SCMScheduler
from small_transformers import masked, masked_null, sana_teacher
from stock import DTYPES, SCALE, converted, deep_autoencoder, flow_scheduler, flow_times, relative, repeated, sampled

from hidistill.conventions import Flow
from hidistill.guidance import Guided
from hidistill.sampling import euler, renoise
from hidistill.teachers import sana

SIZE = {"height": 128, "width": 192, "use_resolution_binning": False, "output_type": "latent"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"timestep_scale": 0.001}, {"qk_norm": "rms_norm_across_heads"}])
def test_sampling_is_that_of_the_stock_pipeline(dtype, options):
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
        **SIZE,
    )
    ours = euler(Guided(network, SCALE), noise.to(dtype), cond=cond, times=flow_times(pipe.scheduler))
    assert relative(ours, theirs) < 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_sprint_samples_as_its_stock_pipeline(dtype, guidance, steps):
    """Its trigonometric path is the linear one, rescaled; the embedded guidance is the pipeline's own."""
    family = sana.family(guidance)
    network = sana_teacher(Flow(unit=1.0), family, guidance_embeds=True, qk_norm="rms_norm_across_heads").to(dtype)
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
        **SIZE | ({} if guidance is None else {"guidance_scale": guidance}),
    )
    middle = math.sin(1.3) / (math.sin(1.3) + math.cos(1.3))
    times, fresh = [(1.0, 0.0), (1.0, middle, 0.0)][steps - 1], torch.Generator().manual_seed(3)
    fresh = [torch.randn(noise.shape, generator=fresh).to(dtype) for _ in times[2:]]
    ours = renoise(network.student(), noise.to(dtype), cond=cond, times=times, fresh=fresh)
    # The pipeline starts at 1.5708, beyond a quarter turn by 4e-6.
    assert relative(ours, theirs) < 1e-4


def test_the_embedded_guidance_matters_and_is_refused_where_there_is_none():
    noise, point = torch.randn(5, 4, 4, 4), {"t": torch.rand(5), "cond": masked()}
    torch.manual_seed(1)
    default = sana_teacher(Flow(unit=1.0), guidance_embeds=True).velocity(noise, **point)
    for guidance, same in ((4.5, True), (3.0, False)):
        torch.manual_seed(1)
        teacher = sana_teacher(Flow(unit=1.0), sana.family(guidance), guidance_embeds=True)
        assert torch.equal(teacher.velocity(noise, **point), default) == same
    with pytest.raises(ValueError, match=r"scale of 3\.0 came, but this network embeds none"):
        sana_teacher(family=sana.family(3.0)).velocity(noise, **point)
