import math

import pytest
import torch

from hidistill.metrics.spectrum import RadialSpectrum, radial_power
from hidistill.types import Gallery, Samples


def wave(cycles, side=32, amplitude=0.25):
    x = torch.arange(side) * 2 * math.pi * cycles / side
    return (0.5 + amplitude * x.cos()).expand(1, 1, side, side)


def gallery(images):
    return Gallery(images.float(), torch.zeros(len(images), dtype=torch.int64))


def test_a_wave_has_its_power_in_its_own_ring():
    power = radial_power(wave(5))
    assert len(power) == 16
    assert power.argmax() == 4
    # |F|^2 of a cosine: two peaks of (a n^2 / 2)^2, over n^2 pixels, among the frequencies of the ring
    ring = sum(round(math.hypot(i - 32 * (i > 15), j - 32 * (j > 15))) == 5 for i in range(32) for j in range(32))
    assert power[4] == pytest.approx(2 * (0.25 * 32**2 / 2) ** 2 / 32**2 / ring, rel=1e-6)
    assert power.sum() - power[4] < 1e-9 * power[4]


def test_white_noise_is_flat():
    power = radial_power(torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert (power - 1).abs().max() < 0.15


def test_half_the_contrast_is_six_decibel_everywhere():
    real = torch.rand(20, 3, 16, 24)
    found = RadialSpectrum()(Samples(gallery(0.5 + (real - 0.5) / 2), gallery(real)))
    assert found["spectrum"] == pytest.approx(10 * math.log10(4), rel=1e-4)
    assert [found[f"power_{part}"] for part in ("low", "middle", "high")] == pytest.approx([0.25] * 3, rel=1e-4)


def test_blur_loses_the_high_thirds():
    real = torch.rand(20, 1, 32, 32)
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1, count_include_pad=False)
    found = RadialSpectrum()(Samples(gallery(blurred), gallery(real)))
    assert found["power_low"] > 0.5
    assert found["power_high"] < 0.3


def test_refuses_small_constant_and_unequal_images():
    with pytest.raises(ValueError, match="at least 8 pixels"):
        radial_power(torch.rand(1, 1, 4, 9))
    with pytest.raises(ValueError, match="different sizes"):
        RadialSpectrum()(Samples(gallery(torch.rand(2, 1, 8, 8)), gallery(torch.rand(2, 1, 16, 16))))
    with pytest.raises(ValueError, match="the generated images have no power"):
        RadialSpectrum()(Samples(gallery(torch.ones(2, 1, 8, 8)), gallery(torch.rand(2, 1, 8, 8))))
