"""The field of rescaled data against a Gaussian mixture whose data was rescaled."""

import pytest
import torch

from hidistill.rescaling import Rescaled
from hidistill.sampling import heun
from hidistill.teachers.mixture import Mixture

MEANS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)
STDS = torch.tensor([[0.3, 0.4], [0.5, 0.5], [0.8, 0.2]], dtype=torch.float64)
LABELS = torch.zeros(7, dtype=torch.long)
T = torch.tensor([0.0, 0.0213, 0.2137, 0.5541, 0.7813, 0.98, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("factor", [0.18215, 1.0, 3.7])
def test_it_is_the_field_of_the_rescaled_data(factor):
    x_t = torch.randn(7, 2, dtype=torch.float64)
    exact = Mixture(factor * MEANS, factor * STDS).velocity(x_t, t=T, cond=LABELS)
    found = Rescaled(Mixture(MEANS, STDS), factor).velocity(x_t, t=T, cond=LABELS)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_two_factors_that_cancel_change_nothing():
    x_t, field = torch.randn(7, 2, dtype=torch.float64), Mixture(MEANS, STDS)
    again = Rescaled(Rescaled(field, 2.5), 0.4)
    torch.testing.assert_close(again.velocity(x_t, t=T, cond=LABELS), field.velocity(x_t, t=T, cond=LABELS))


def test_samples_of_it_are_the_samples_times_the_factor():
    field, noise = Mixture(MEANS, STDS), torch.randn(7, 2, dtype=torch.float64)
    plain = heun(field, noise, cond=LABELS, steps=400)
    scaled = heun(Rescaled(field, 3.0), noise, cond=LABELS, steps=400)
    torch.testing.assert_close(scaled, 3.0 * plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_factors_that_lose_the_data_are_refused(factor):
    with pytest.raises(ValueError, match="must be positive and finite"):
        Rescaled(Mixture(MEANS, STDS), factor)
