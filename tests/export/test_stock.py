"""The one step of any student, in the words of schedulers of diffusers."""

import math
from dataclasses import replace

import pytest
import torch
from small_unets import fourier, pictures_net

from hidistill.export.fold import OneStep, fold
from hidistill.export.stock import adapt, betas, ddim, pipeline_for
from hidistill.teachers import unet

STEPS = [(157.3, -157.3), (1.2, -0.66), (1.0, -1.0), (1.0, 1.0), (0.06, -0.998), (0.0031, 0.5), (0.0, 1.0), (0.0, -1.0)]


@pytest.mark.parametrize("kept", [0.0, 4.1e-5, 0.0047, 0.3, 0.9991, 1 - 2.0**-20])
def test_two_betas_end_where_they_should(kept):
    """As a scheduler computes it: all in float32."""
    signal = float((1 - torch.tensor(betas(kept), dtype=torch.float32)).prod())
    assert math.isclose(signal, kept, rel_tol=1e-7)


@pytest.mark.parametrize(("noise", "answer"), STEPS)
@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "ConsistencyModelPipeline"])
def test_a_schedulers_step_is_the_students(pipeline, noise, answer):
    net = pictures_net(num_class_embeds=3 if pipeline == "ConsistencyModelPipeline" else None)
    step, cond = OneStep(net, unet.FAMILY, noise=noise, answer=answer, scale=1.0, time=999.0), torch.tensor([0, 2])
    z = torch.randn(2, 3, 8, 8)
    expected = step(z, cond)
    assert pipeline_for(step, "DDPMPipeline") == pipeline
    scheduler = adapt(step, pipeline, {})
    torch.testing.assert_close(step(z, cond), expected, rtol=1e-4, atol=1e-5)  # its factors have moved, no more
    scheduler.set_timesteps(1)
    [t] = scheduler.timesteps
    sample = z * scheduler.init_noise_sigma
    # A network's time does not matter here: it is what a folded one is not told.
    labels = cond if unet.has_classes(net) else None
    net_answer = net(scheduler.scale_model_input(sample, t), 999.0, class_labels=labels).sample
    found = scheduler.step(net_answer, t, sample).prev_sample
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()


def test_a_predictions_own_weights_stay_as_they_are():
    net = pictures_net()
    before = net.conv_out.weight.clone()
    alpha = 0.0063
    ddim(OneStep(net, unet.FAMILY, noise=1 / alpha, answer=-math.sqrt(1 - alpha**2) / alpha, scale=1.0, time=999.0))
    assert torch.equal(net.conv_out.weight, before)


def test_more_noise_than_none_cannot_be_taken_away():
    step = OneStep(pictures_net(), unet.FAMILY, noise=-0.1, answer=-1.0, scale=1.0, time=999.0)
    with pytest.raises(ValueError, match="negative share of signal"):
        ddim(step)


def test_networks_whose_input_enters_twice_are_refused():
    folded = fold(fourier().student())
    with pytest.raises(ValueError, match=r"has SkipDownBlock2D.*enters by more than one layer"):
        adapt(folded, "DDPMPipeline", {})


def test_a_network_that_no_pipeline_runs_is_refused():
    step = OneStep(pictures_net(), replace(unet.XL, pipelines=()), noise=1.0, answer=-1.0, scale=1.0, time=999.0)
    step.net.__class__ = type("NovelNetwork", (type(step.net),), {})
    with pytest.raises(ValueError, match=r"a KolorsPipeline, and no pipeline .* runs a stable diffusion xl"):
        pipeline_for(step, "KolorsPipeline")
