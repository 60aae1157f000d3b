"""U-Nets of diffusers against its own pipelines: DDIM without noise is Euler's method on the linear path."""

import pytest
import small_unets
import torch
from both_samplers import (
    STEPS,
    along,
    convention,
    drawn,
    of_stable_diffusion,
    of_stable_diffusion_xl,
    of_unet,
    of_unet_of_classes,
    texts,
)
from diffusers import EDMEulerScheduler
from small_unets import LINEAR, SCALED, pictures_net, prompted_net, prompts, xl_net

from hidistill.conventions import Diffusion, LogSigma, Table
from hidistill.derivative import Forward
from hidistill.foreign.network import Network
from hidistill.teachers import unet

CLOSE = {torch.float32: 1e-5, torch.float64: 2e-6}
"""Largest difference relative to the largest value. In float64 diffusers' own sinusoids and schedule are of float32."""


def difference(ours, theirs):
    assert ours.dtype == theirs.dtype
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("answer", ["epsilon", "v_prediction", "sample"])
def test_pictures_are_the_pipeline_s(dtype, answer):
    assert difference(*of_unet(dtype, answer=answer)) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", CLOSE)
def test_pictures_of_classes_are_those_of_the_scheduler_s_steps(dtype):
    assert difference(*of_unet_of_classes(dtype)) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("answer", ["epsilon", "v_prediction"])
def test_guided_latents_are_those_of_stable_diffusion(dtype, answer):
    assert difference(*of_stable_diffusion(dtype, answer=answer)) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("side", [64, 96])
def test_guided_latents_are_those_of_stable_diffusion_xl(dtype, side):
    """At the default size and at another one, which the network is told."""
    assert difference(*of_stable_diffusion_xl(dtype, side=side)) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("answer", ["epsilon", "v_prediction"])
def test_edm_is_the_loop_of_its_scheduler(dtype, answer):
    """Its Euler steps in sigma are ours in t: on every path they are the line from x to the predicted data."""
    net, (cond, _) = prompted_net().to(dtype), texts(dtype, "text")
    steps = EDMEulerScheduler(prediction_type=answer)
    steps.set_timesteps(STEPS)
    sample = drawn(dtype, 4, 8, 8) * steps.init_noise_sigma
    teacher = Network(net, unet.TEXT, convention(steps))
    shares = [(torch.tensor(1.0).double(), sigma.double()) for sigma in steps.sigmas]
    ours = along(teacher, sample, shares, cond)
    for time in steps.timesteps:
        given = steps.scale_model_input(sample, time)
        sample = steps.step(net(given, time, cond["text"]).sample, time, sample).prev_sample
    assert difference(ours, sample) < CLOSE[dtype]


def test_scores_are_those_of_the_network():
    """Tweedie's formula, `x_0 = x + sigma^2 score`, at the points and times of exploding variance."""
    teacher = small_unets.fourier().double()
    sigma = torch.tensor([0.05, 0.7, 9.0, 49.0], dtype=torch.float64)
    x = (1 + sigma).reshape(-1, 1, 1, 1) * torch.randn(4, 3, 8, 8, dtype=torch.float64)
    t, column = sigma / (1 + sigma), sigma.reshape(-1, 1, 1, 1)
    x_t, labels = x / (1 + column), torch.zeros(4, dtype=torch.long)
    data = x_t - t.reshape(-1, 1, 1, 1) * teacher.velocity(x_t, t=t, cond=labels)
    with torch.no_grad():
        expected = x + column.square() * teacher.net(x, sigma).sample
    torch.testing.assert_close(data, expected, rtol=1e-6, atol=1e-6)


def test_a_learned_variance_behind_the_answer_is_dropped():
    net, x = pictures_net(out_channels=6).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    teacher, t = Network(net, unet.FAMILY, convention(LINEAR)), torch.tensor([0.3, 0.9], dtype=torch.float64)
    time, scale, skip, gain = (value.reshape(-1, 1, 1, 1) for value in teacher.convention.at(t))
    answer = net(scale * x, time.flatten()).sample[:, :3]
    velocity = teacher.velocity(x, t=t, cond=torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(velocity, skip * x + gain * answer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["unet", "stable diffusion under edm"])
def test_the_derivative_survives_autocast_on_a_cpu(name):
    given = small_unets.FAMILIES[name]
    student = given["teacher"]().student()
    x, direction = torch.randn(2, 5, *given["shape"])
    t = torch.tensor([0.2137, 0.3541, 0.5541, 0.7813, 0.9127])
    cond = given.get("cond", lambda: torch.zeros(5, dtype=torch.long))()
    point = {"t": t, "r": 0.3 * t, "cond": cond, "direction": direction}
    exact = Forward()(student, x, **point)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = Forward()(student, x, **point)
    assert (rounded - exact).norm() < 0.1 * exact.norm()


def test_a_curve_in_place_of_the_embedding_reaches_all_times_of_edm():
    """They run from -1.55 to 1.1, so that the embedding is smooth, and a polynomial of degree 12 is the embedding."""
    teacher = small_unets.preconditioned().double()
    student = teacher.student(degree=12)
    assert student.curve.residual < 1e-6
    x, t = torch.randn(5, 4, 8, 8, dtype=torch.float64), torch.tensor([0.0, 0.01, 0.4, 0.8, 1.0], dtype=torch.float64)
    cond = {"text": prompts("text")["text"].double()}
    u = student.mean_velocity(x, t=t, r=t, cond=cond)
    torch.testing.assert_close(u, teacher.velocity(x, t=t, cond=cond), rtol=1e-5, atol=1e-5)


def test_configurations_tell_the_families_apart():
    nets = {unet.FAMILY: pictures_net(), unet.TEXT: prompted_net(), unet.XL: xl_net()}
    for family, net in nets.items():
        config = {**net.config, "_class_name": type(net).__name__}
        fitting = [other for other in unet.FAMILIES if config["_class_name"] in other.networks and other.fits(config)]
        assert fitting == [family]


def test_classes_without_a_null_class_have_none():
    teacher = Network(pictures_net(num_class_embeds=3), unet.FAMILY, convention(LINEAR))
    assert teacher.classes == 3
    with pytest.raises(ValueError, match=r"has 3 labels, and nothing says .* unet\.LAST_IS_NULL"):
        teacher.null(torch.zeros(2, dtype=torch.long))
    assert Network(teacher.net, unet.LAST_IS_NULL, convention(LINEAR)).classes == 2
    with pytest.raises(ValueError, match="has no labels"):
        Network(pictures_net(), unet.LAST_IS_NULL, convention(LINEAR)).null(torch.zeros(2, dtype=torch.long))


NETS = {
    "class_embed_type 'timestep'": lambda: pictures_net(class_embed_type="timestep"),
    "time_embedding_type 'learned'": lambda: pictures_net(time_embedding_type="learned", num_train_timesteps=10),
    "in_channels 6 above out_channels 3": lambda: pictures_net(in_channels=6),
    "in_channels 9 above out_channels 4": lambda: prompted_net(in_channels=9),
    "time_cond_proj_dim 8": lambda: prompted_net(time_cond_proj_dim=8),
    "num_class_embeds 7": lambda: prompted_net(num_class_embeds=7),
    "addition_embed_type 'text_time'": xl_net,
}


@pytest.mark.parametrize("words", NETS)
def test_networks_that_need_more_are_refused(words):
    net = NETS[words]()
    family = unet.FAMILY if type(net).__name__ == "UNet2DModel" else unet.TEXT
    teacher = Network(net, family, convention(LINEAR))
    cond = {"text": torch.zeros(2, 5, 12)} if family.texts else torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=f"{words}: it needs more than a sample"):
        teacher.velocity(torch.zeros(2, 3, 8, 8), t=torch.ones(2), cond=cond)


def test_a_refiner_of_stable_diffusion_xl_is_refused():
    """It embeds five numbers, the last of them a score of the picture's looks."""
    net = xl_net(projection_class_embeddings_input_dim=10 + 5 * 8)
    cond = {"text": torch.zeros(2, 5, 12), "pooled": torch.zeros(2, 10)}
    with pytest.raises(ValueError, match="beside pooled texts of 10 channels this network embeds 5 numbers; 6"):
        Network(net, unet.XL, convention(LINEAR)).velocity(torch.zeros(2, 4, 8, 8), t=torch.ones(2), cond=cond)


def test_conventions_of_the_small_teachers_are_their_schedulers():
    """So that the suite's teachers and the pipelines above are the same."""
    assert small_unets.prompted().convention == convention(SCALED)
    assert small_unets.pictures().convention == Diffusion("epsilon", Table.of(LINEAR.alphas_cumprod))
    assert small_unets.preconditioned().convention == Diffusion("edm", LogSigma(0.002, 80.0, 0.5), 0.5)
