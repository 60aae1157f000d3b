"""Our DiT in diffusers' architecture."""

import pytest
import torch
from randomized import randomized

from hidistill.export.dit import stock_dit
from hidistill.teachers.dit import DiT, Size


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize(("classes", "channels", "patch"), [(3, 2, 4), (0, 1, 3)])
def test_it_answers_as_ours(activation, classes, channels, patch):
    """At one time; `velocity = x + s F` there."""
    net = DiT(
        image_size=12, channels=channels, patch=patch, classes=classes, size=Size(32, 2, 4), activation=activation
    )
    randomized(net)
    one = torch.ones(4)
    theirs = stock_dit(net.config, net.state_dict(), time=net.time(one[:1]).squeeze(0))
    z, cond = torch.randn(4, channels, 12, 12), torch.tensor([0, 1, 2, 3]) % (classes + 1)
    expected = net.velocity(z, t=one, cond=cond) - z
    found = net.data_std * theirs(z, timestep=torch.tensor([0, 999, 3, 500]), class_labels=cond).sample
    assert (found - expected).abs().max() < 3e-6 * expected.abs().max()


def test_convolutions_around_the_blocks_have_no_place_there():
    net = DiT(image_size=12, channels=1, patch=4, classes=3, size=Size(32, 2, 4), pixel_channels=6)
    with pytest.raises(ValueError, match=r"convolutions of 6 channels .* onnx or safetensors"):
        stock_dit(net.config, net.state_dict(), time=torch.zeros(32))
