import pytest
import torch
from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline
from small_transformers import LINEAR, masked, masked_null, pixart_teacher
from stock import DTYPES, SCALE, autoencoder, converted, noise_times, relative, repeated, sampled

from hidistill.guidance import Guided
from hidistill.sampling import euler
from hidistill.teachers import pixart

ALPHA = {"sample_size": 128, "use_additional_conditions": True}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("stock", "options"), [(PixArtAlphaPipeline, ALPHA), (PixArtSigmaPipeline, {})])
def test_sampling_is_that_of_the_stock_pipeline(dtype, stock, options):
    network, cond = pixart_teacher(**options).to(dtype), converted(masked(), dtype)
    null, noise = repeated(converted(masked_null(), dtype)), torch.randn(5, 4, 4, 6, dtype=torch.float64)
    scheduler = DDIMScheduler.from_config(LINEAR.config)
    pipe = stock(None, None, autoencoder(), network.net, scheduler)
    theirs = sampled(
        pipe,
        prompt_embeds=cond["text"],
        prompt_attention_mask=cond["mask"],
        negative_prompt=None,
        negative_prompt_embeds=null["text"],
        negative_prompt_attention_mask=null["mask"],
        guidance_scale=SCALE,
        latents=noise.to(dtype),
        height=32,
        width=48,
        use_resolution_binning=False,
        output_type="latent",
    )
    times, size = noise_times(pipe.scheduler)
    ours = euler(Guided(network, SCALE), (noise / size).to(dtype), cond=cond, times=times)
    assert relative(ours, theirs) < 2e-5


def test_the_size_is_told_in_pixels_height_first():
    told = pixart.size(torch.randn(5, 4, 4, 6))
    assert told["resolution"].tolist() == [[32.0, 48.0]] * 5
    torch.testing.assert_close(told["aspect_ratio"], torch.full((5, 1), 2 / 3))
