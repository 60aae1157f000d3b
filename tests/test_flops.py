"""What a derivative costs, in forwards of the student."""

import pytest
import torch
from measuring.counting import flops

from hidistill.derivative import Forward
from hidistill.teachers.dit import DiT


@pytest.mark.parametrize(
    ("size", "image_size", "channels", "pixel_channels"),
    [("mini", 28, 1, 0), ("slim", 28, 1, 16), ("tiny", 28, 1, 0), ("S", 32, 4, 0)],
)
def test_a_derivative_costs_two_forwards(size, image_size, channels, pixel_channels):
    """Two products for each of a linear or convolutional layer's, six for attention's two."""
    net = DiT(image_size=image_size, channels=channels, classes=10, patch=4, size=size, pixel_channels=pixel_channels)
    student = net.student()
    x_t, direction = torch.randn(2, 2, channels, image_size, image_size)
    point = {"t": torch.tensor([0.9, 0.6]), "r": torch.tensor([0.1, 0.3]), "cond": torch.tensor([3, 10])}
    with torch.no_grad():
        forward = flops(lambda: student.mean_velocity(x_t, **point))
        derivative = flops(lambda: Forward()(student, x_t, **point, direction=direction))
    assert 2.0 * forward < derivative <= 2.1 * forward
