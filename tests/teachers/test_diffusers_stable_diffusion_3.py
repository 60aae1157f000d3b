import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from small_transformers import SD35, pooled, pooled_null, sd3_teacher
from stock import DTYPES, SCALE, autoencoder, converted, flow_scheduler, flow_times, relative, repeated, sampled

from hidistill.guidance import Guided
from hidistill.sampling import euler


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, SD35])
def test_sampling_is_that_of_the_stock_pipeline(dtype, options):
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
        height=32,
        width=48,
        output_type="latent",
    )
    ours = euler(Guided(network, SCALE), noise, cond=cond, times=flow_times(pipe.scheduler))
    assert relative(ours, theirs) < 2e-5
