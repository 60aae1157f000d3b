"""What is particular to the space-time DiT: its options, what passes between frames and places, and what it costs."""

import pytest
import torch
from randomized import randomized
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hidistill.derivative import Forward
from hidistill.teachers.video import VideoDiT

SHAPE = (3, 1, 8, 8)


def tiny(**options):
    given = {"frames": 3, "image_size": 8, "channels": 1, "classes": 3, "patch": 2, "dim": 16, "depth": 2, "heads": 2}
    return VideoDiT(**(given | options))


def velocity(net, x_t):
    return net.velocity(x_t, t=torch.full((len(x_t),), 0.5), cond=torch.zeros(len(x_t), dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, r"frames=0.*sizes must be 1 or more"),
        ({"data_std": 0.0}, r"data_std=0\.0.*positive"),
        ({"patch": 3}, r"patch 3 does not divide frames of 8 pixels; use one of \[1, 2, 4, 8\]"),
        ({"tubelet": 2}, r"tubelet 2 does not divide clips of 3 frames; use one of \[1, 3\]"),
        ({"heads": 3}, "dim 16 must be a multiple of 4 and of the 3 heads"),
        ({"taps": (2,)}, r"taps \(2,\): name one block or more; blocks are 0 to 1"),
    ],
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_clips_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"clips of shape \(2, 1, 8, 8\) came; this VideoDiT takes \(3, 1, 8, 8\)"):
        velocity(tiny(), torch.zeros(1, 2, 1, 8, 8))


def test_a_fresh_network_answers_the_best_linear_guess():
    """Its last layer is zero, so that nothing is left but the preconditioning's skip."""
    x_t = torch.randn(2, *SHAPE)
    skip = (0.5 - 0.5 * 0.5**2) / ((0.5 * 0.5) ** 2 + 0.5**2)
    torch.testing.assert_close(velocity(tiny(), x_t), skip * x_t)


def test_patches_come_back_to_where_they_were_cut():
    """With the blocks idle and the last layer the first one's inverse, the network scales each pixel by itself."""
    net = tiny()
    for block in net.blocks:
        torch.nn.init.zeros_(block.modulation.weight)
    net.place.zero_()
    torch.nn.init.zeros_(net.patchify.weight)
    torch.nn.init.zeros_(net.unpatchify.weight)
    with torch.no_grad():
        net.patchify.weight[:4, :4] = torch.eye(4)
        net.unpatchify.weight[:4, :4] = torch.eye(4)
    x_t = torch.zeros(1, *SHAPE, requires_grad=True)
    velocity(net, x_t)[0, 1, 0, 2, 5].backward()
    patch = torch.zeros(SHAPE, dtype=torch.bool)
    patch[1, 0, 2:4, 4:6] = True  # layer norm joins the pixels of a patch
    assert x_t.grad[0][patch].abs().min() > 0
    assert x_t.grad[0][~patch].abs().max() == 0
    assert int(x_t.grad.abs().argmax()) == 1 * 64 + 2 * 8 + 5


@pytest.mark.parametrize(("tubelet", "channels"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_a_token_holds_a_patch_of_so_many_frames(tubelet, channels):
    """With the attentions silent, what a pixel's velocity depends on is its patch in its tubelet's frames."""
    net = randomized(tiny(frames=4, channels=channels, tubelet=tubelet))
    for block in net.blocks:
        for silent in (block.space, block.time):
            torch.nn.init.zeros_(silent.out.weight)
    x_t = torch.randn(1, 4, channels, 8, 8, requires_grad=True)
    velocity(net, x_t)[0, 2, 0, 2, 5].backward()
    expected = torch.zeros(4, channels, 8, 8, dtype=torch.bool)
    first = 2 // tubelet * tubelet
    expected[first : first + tubelet, :, 2:4, 4:6] = True
    assert torch.equal(x_t.grad[0] != 0, expected)
    (tokens, *_) = net.features(x_t, t=torch.tensor([0.5]), cond=torch.tensor([1]))
    assert tokens.shape == (1, 4 // tubelet * 16, 16)


def test_pixels_of_a_tubelet_come_back_to_where_they_were_cut():
    net = tiny(frames=4, channels=2, tubelet=2, dim=16)
    for block in net.blocks:
        torch.nn.init.zeros_(block.modulation.weight)
    net.place.zero_()
    with torch.no_grad():
        net.patchify.weight.copy_(torch.eye(16))
        net.unpatchify.weight.copy_(torch.eye(16))
    x_t = torch.randn(2, 4, 2, 8, 8)
    rest = velocity(net, x_t) - velocity(tiny(frames=4, channels=2, tubelet=2), x_t)
    patches = [x.reshape(2, 2, 2, 2, 4, 2, 4, 2).permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4) for x in (rest, x_t)]
    normal = torch.nn.functional.layer_norm(patches[1], (16,), eps=1e-6)
    slope = (patches[0] * normal).sum() / normal.square().sum()
    torch.testing.assert_close(patches[0], slope * normal, rtol=0, atol=1e-4)
    assert slope > 0.1


@pytest.mark.parametrize(("silent", "reached"), [("time", "frame"), ("space", "place"), (None, "all")])
def test_space_attends_within_a_frame_and_time_along_a_place(silent, reached):
    net = randomized(tiny())
    for block in net.blocks:
        if silent:
            torch.nn.init.zeros_(getattr(block, silent).out.weight)
    x_t = torch.randn(1, *SHAPE, requires_grad=True)
    velocity(net, x_t)[0, 1, 0, 2:4, 4:6].sum().backward()
    touched = x_t.grad[0, :, 0] != 0
    expected = torch.zeros_like(touched)
    expected[{"frame": (1,), "place": (slice(None), slice(2, 4), slice(4, 6)), "all": ()}[reached]] = True
    assert torch.equal(touched, expected)


def test_the_order_of_frames_matters():
    net = randomized(tiny())
    x_t = torch.randn(1, *SHAPE)
    order = [2, 0, 1]
    assert (velocity(net, x_t[:, order]) - velocity(net, x_t)[:, order]).norm() > 0.01


def test_features_are_those_of_frame_after_frame():
    """A change of the last frame's last patch changes no token but the last, where nothing passes between tokens."""
    net = randomized(tiny(taps=(0, 1)))
    for block in net.blocks:
        torch.nn.init.zeros_(block.space.out.weight)
        torch.nn.init.zeros_(block.time.out.weight)
    point = {"t": torch.tensor([0.5]), "cond": torch.tensor([1])}
    x_t = torch.randn(1, *SHAPE)
    changed = x_t.clone()
    changed[0, 2, 0, 6:, 6:] += 1
    for before, after in zip(net.features(x_t, **point), net.features(changed, **point), strict=True):
        assert before.shape == (1, 3 * 16, 16)
        assert (before != after).any(2)[0].nonzero().flatten().tolist() == [47]


def flops(run):
    """Products of one call; attention is counted because it is unfused."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run()
    return counter.get_total_flops()


def test_a_derivative_costs_two_forwards():
    student = VideoDiT(frames=8, image_size=16, channels=1, classes=10, dim=64, heads=2).student()
    x_t, direction = torch.randn(2, 2, 8, 1, 16, 16)
    point = {"t": torch.tensor([0.9, 0.6]), "r": torch.tensor([0.1, 0.3]), "cond": torch.tensor([3, 10])}
    forward = flops(lambda: student.mean_velocity(x_t, **point))
    derivative = flops(lambda: Forward()(student, x_t, **point, direction=direction))
    assert 2.0 * forward < derivative <= 2.1 * forward


def test_attention_costs_a_frame_and_a_place_for_each_token():
    """Per token and block: 2 x 4 dim^2 for the attentions' layers, 8 dim^2 the perceptron's, 2 dim (n + f) for scores.

    All of it twice, for a product is a multiplication and an addition.
    """
    frames, side, dim, depth = 5, 16, 64, 3
    net = VideoDiT(frames=frames, image_size=side, channels=1, classes=10, dim=dim, heads=2, depth=depth, patch=2)
    places, batch = (side // 2) ** 2, 8
    x_t, t, cond = torch.randn(batch, frames, 1, side, side), torch.rand(batch), torch.zeros(batch, dtype=torch.long)
    tokens = batch * frames * places
    expected = 2 * depth * tokens * (16 * dim**2 + 2 * dim * (places + frames))
    spent = flops(lambda: net.velocity(x_t, t=t, cond=cond))
    assert expected < spent < 1.03 * expected
