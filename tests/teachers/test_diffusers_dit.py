import pytest
import torch
from both_samplers import LABELS, of_dit
from diffusers import DDIMScheduler
from small_transformers import LINEAR, dit
from stock import DTYPES, SCALE, STEPS, noise_times, relative

from hidistill.guidance import Guided
from hidistill.sampling import euler


@pytest.mark.parametrize("dtype", DTYPES)
def test_sampling_is_that_of_the_stock_pipeline(dtype):
    assert relative(*of_dit(dtype)) < 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_of_three_channels_is_that_of_the_original_sampler(dtype):
    """The noise of three channels is guided, that of the fourth is the conditional one (arXiv 2212.09748)."""
    network, labels = dit(num_embeds_ada_norm=1000).to(dtype), torch.tensor(LABELS)
    scheduler, noise = DDIMScheduler.from_config(LINEAR.config), torch.randn(3, 4, 4, 4, dtype=torch.float64)
    scheduler.set_timesteps(STEPS)
    times, size = noise_times(scheduler)
    x, both = noise.to(dtype), torch.cat([labels, torch.full_like(labels, 1000)])
    for time in scheduler.timesteps:
        answer = network.net(torch.cat([x, x]), timestep=time.expand(6), class_labels=both).sample[:, :4]
        conditional, null = answer.chunk(2)
        guided = null + SCALE * (conditional - null)
        x = scheduler.step(torch.cat([guided[:, :3], conditional[:, 3:]], 1), time, x).prev_sample
    start = (noise / size).to(dtype)
    ours = euler(Guided(network, SCALE, channels=3), start, cond=labels, times=times)
    assert relative(ours, x) < 2e-5
    everything = euler(Guided(network, SCALE), start, cond=labels, times=times)
    assert relative(everything, x) > 0.1
