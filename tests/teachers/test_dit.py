"""What is particular to the DiT: its options, and what they change."""

import pytest
import torch

from hidistill.teachers.dit import DiT


def tiny(**options):
    return DiT(**({"image_size": 8, "channels": 1, "classes": 3, "size": "mini"} | options))


def velocity(net, x_t):
    return net.velocity(x_t, t=torch.full((len(x_t),), 0.5), cond=torch.zeros(len(x_t), dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "unknown activation 'relu'; known are gelu, silu"),
        ({"pixel_channels": -1}, "pixel_channels=-1: give 0 for a DiT without convolutions"),
        ({"data_std": 0.0}, r"data_std=0\.0: the root mean square of the data must be positive"),
    ],
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_a_configuration_from_before_an_option_describes_the_plain_network():
    net = tiny()
    old = {name: value for name, value in net.config.items() if name not in ("activation", "pixel_channels")}
    again = DiT.from_config(old)
    again.load_state_dict(net.state_dict())
    x_t = torch.randn(2, 1, 8, 8)
    assert torch.equal(velocity(again, x_t), velocity(net, x_t))


@pytest.mark.parametrize("pixel_channels", [0, 8])
def test_a_fresh_network_answers_the_best_linear_guess(pixel_channels):
    """Its last layer is zero, so that nothing is left but the preconditioning's skip."""
    x_t = torch.randn(2, 1, 8, 8)
    skip = (0.5 - 0.5 * 0.5**2) / ((0.5 * 0.5) ** 2 + 0.5**2)
    torch.testing.assert_close(velocity(tiny(pixel_channels=pixel_channels), x_t), skip * x_t)


def test_pixel_layers_reach_across_the_border_of_a_patch():
    """Without attention's answer, a plain patch knows nothing of its neighbor's pixels; with pixel layers it does."""
    reach = {}
    for pixel_channels in (0, 8):
        torch.manual_seed(0)
        net = tiny(pixel_channels=pixel_channels)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        for block in net.blocks:  # nothing passes between tokens
            torch.nn.init.zeros_(block.out.weight)
        x_t = torch.zeros(1, 1, 8, 8, requires_grad=True)
        velocity(net, x_t)[0, 0, 0, 3].backward()  # the last pixel of the first patch's first row
        reach[pixel_channels] = x_t.grad[0, 0, 0, 4].abs().item()  # its right neighbor, in the next patch
    assert reach[0] == 0.0
    assert reach[8] > 0.0
