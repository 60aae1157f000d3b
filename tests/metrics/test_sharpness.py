import pytest
import torch

from hidistill.metrics.sharpness import HighFrequencyRatio, high_frequency_energy
from hidistill.types import Gallery, Samples


def ratio(generated, real):
    labels = torch.zeros(len(real), dtype=torch.int64)
    return HighFrequencyRatio()(Samples(Gallery(generated, labels), Gallery(real, labels)))["high_frequency"]


def test_is_one_for_the_images_themselves_zero_for_flat_ones_and_quadratic_in_contrast():
    real = torch.rand(8, 3, 7, 9)
    assert ratio(real, real) == 1
    assert ratio(torch.full_like(real, 0.4), real) == 0
    assert ratio(0.25 + real / 2, real) == pytest.approx(0.25)


def test_of_a_checkerboard_is_sixteen_squared_amplitudes():
    signs = (-1.0) ** (torch.arange(6)[:, None] + torch.arange(5))
    assert high_frequency_energy((0.5 + 0.25 * signs)[None, None]) == pytest.approx(16 * 0.25**2)


def test_does_not_see_a_sum_of_rows_and_columns():
    rows, columns = torch.rand(6, 1).double(), torch.rand(1, 5).double()
    assert high_frequency_energy((rows + columns)[None, None]) == pytest.approx(0, abs=1e-30)


def test_of_one_dot_by_hand():
    # a dot of brightness 1 touches four of the four differences of a 3 x 3 image
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 1, 1] = 1
    assert high_frequency_energy(image) == 1
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 0] = 2
    assert high_frequency_energy(image) == 4 / 4


def test_refuses_images_without_detail():
    with pytest.raises(ValueError, match="2 rows and columns"):
        high_frequency_energy(torch.rand(2, 1, 1, 8))
    with pytest.raises(ValueError, match="no fine detail"):
        ratio(torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
