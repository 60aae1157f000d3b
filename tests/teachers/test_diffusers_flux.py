import pytest
import torch
from both_samplers import DEV, of_flux
from randomized import randomized
from small_transformers import flux_teacher, pooled
from stock import DTYPES, relative

from hidistill.derivative import Forward
from hidistill.teachers import flux


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, DEV, DEV | {"guidance": 2.0}])
def test_sampling_is_that_of_the_stock_pipeline(dtype, options):
    assert relative(*of_flux(dtype, **options)) < 2e-5


@pytest.mark.parametrize("options", [{}, DEV])
def test_the_derivative_is_right_in_bfloat16(options):
    """The network's own rounding of the time, seen by calling it without the clock's hooks, makes it wrong."""

    class Bare:
        def mean_velocity(self, x_t, *, t, r, cond):
            return flux.FAMILY.call(student.network.net, x_t, 1000 * t, cond)

    student, cond = randomized(flux_teacher(**options).student()), pooled()
    x_t, direction = torch.randn(2, 5, 4, 4, 4)
    t = torch.tensor([0.3137, 0.4373, 0.5541, 0.7293, 0.9127])
    point = {"t": t, "r": 0.3 * t, "cond": cond, "direction": direction}
    differences = []
    for asked in (student, Bare()):
        exact = Forward()(asked, x_t, **point)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            differences.append(relative(Forward()(asked, x_t, **point), exact))
    assert differences[0] < 0.05
    assert differences[1] > 0.3


def test_the_embedded_guidance_matters_and_is_refused_where_there_is_none():
    noise, point = torch.randn(5, 4, 4, 4), {"t": torch.rand(5), "cond": pooled()}
    torch.manual_seed(1)
    default = flux_teacher(**DEV).velocity(noise, **point)
    for guidance, same in ((3.5, True), (2.0, False)):
        torch.manual_seed(1)
        teacher = flux_teacher(flux.family(guidance), **DEV)
        assert torch.equal(teacher.velocity(noise, **point), default) == same
    with pytest.raises(ValueError, match=r"scale of 3\.5 came, but this network embeds none"):
        flux_teacher(flux.family(3.5)).velocity(noise, **point)


def test_latents_with_an_odd_side_are_refused():
    with pytest.raises(ValueError, match="both sides must be even"):
        flux_teacher().velocity(torch.randn(5, 4, 4, 5), t=torch.rand(5), cond=pooled())


def test_features_are_the_image_in_blocks_of_both_kinds():
    """What later layers make of them is what the network answers; text tokens are not among them."""
    teacher, x_t, t = flux_teacher(), torch.randn(5, 4, 4, 6), torch.rand(5)
    velocity, features = teacher.probe(x_t, t=t, cond=pooled())
    assert [tuple(layer.shape) for layer in features] == [(5, 6, 16)] * 3
    net = teacher.net
    embedding = net.time_text_embed(1000 * t, pooled()["pooled"])
    answer = net.proj_out(net.norm_out(features[-1], embedding))
    torch.testing.assert_close(flux.unpack(answer, x_t), velocity, rtol=1e-4, atol=1e-4)
