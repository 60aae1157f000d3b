"""Compiled paths against the plain ones; run without shape checks, which torch.compile cannot trace."""

import pytest
import torch
from torch import nn

from hidistill.derivative import Compiled, Forward
from hidistill.inference import CompiledStudent
from hidistill.sampling import jump
from hidistill.teachers.dit import DiT, Size
from hidistill.teachers.video import VideoDiT

# Inductor still uses torch.jit, of which torch warns.
pytestmark = [pytest.mark.compile, pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")]


def student(pixel_channels=0):
    torch.manual_seed(0)
    return drawn(DiT(image_size=8, channels=2, classes=3, patch=2, size=Size(32, 2, 2), pixel_channels=pixel_channels))


def drawn(net):
    made = net.student()
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return made.requires_grad_(False)


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def test_the_compiled_tangent_is_the_tangent():
    """In one graph; also after the weights have moved, at other times, and under bfloat16 autocast."""
    made, compiled, plain = student(), Compiled(), Forward()
    x_t, direction = torch.randn(2, 3, 2, 8, 8)
    at = {"cond": torch.arange(3), "direction": direction}
    first = {"t": torch.tensor([0.9137, 0.5541, 0.3127]), "r": torch.tensor([0.0213, 0.3313, 0.1127]), **at}
    assert relative(compiled(made, x_t, **first), plain(made, x_t, **first)) < 1e-5
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(1.1)
    second = first | {"t": first["t"] + 0.05}
    assert relative(compiled(made, x_t, **second), plain(made, x_t, **second)) < 1e-5
    moved = relative(plain(made, x_t, **second), plain(made, x_t, **first))
    assert moved > 1e-2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(compiled(made, x_t, **first).float(), plain(made, x_t, **first).float()) < 0.05


def test_the_compiled_tangent_of_a_network_of_clips():
    """Whose attention unflattens, a method that torch.compile does not trace while a derivative is taken."""
    torch.manual_seed(0)
    made = drawn(VideoDiT(frames=3, image_size=8, channels=2, classes=3, patch=4, dim=16, depth=1, heads=2))
    x_t, direction = torch.randn(2, 2, 3, 2, 8, 8)
    t = torch.tensor([0.9137, 0.5541])
    at = {"t": t, "r": 0.3 * t, "cond": torch.arange(2), "direction": direction}
    expected = Forward()(made, x_t, **at)
    assert expected.norm() > 0.1
    assert relative(Compiled(backend="aot_eager")(made, x_t, **at), expected) < 1e-5


def test_a_compiled_student_answers_the_same():
    made = student(pixel_channels=8)
    noise, labels = torch.randn(3, 2, 8, 8), torch.arange(3)
    torch.testing.assert_close(
        jump(CompiledStudent(made), noise, cond=labels), jump(made, noise, cond=labels), rtol=1e-4, atol=1e-5
    )
