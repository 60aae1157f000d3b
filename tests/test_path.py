import numpy as np
import pytest
import torch

from hidistill.path import (
    concatenate,
    data_to_velocity,
    interpolate,
    mean_per_sample,
    noise_to_velocity,
    per_row,
    rows_of,
    score_to_velocity,
    sum_per_sample,
    velocity_to_data,
    velocity_to_noise,
    velocity_to_score,
)

SHAPES = [(5, 2), (5, 1, 3, 3), (5, 4, 2)]


def state(shape):
    x_0, noise = torch.randn(2, *shape, dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, shape[0], dtype=torch.float64)
    return x_0, noise, t, interpolate(x_0, noise, t)


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_data_noise_and_velocity_are_recovered_from_one_another(shape):
    x_0, noise, t, x_t = state(shape)
    velocity = noise - x_0
    exact(velocity_to_data(velocity, x_t, t), x_0)
    exact(velocity_to_noise(velocity, x_t, t), noise)
    exact(data_to_velocity(x_0, x_t, t), velocity)
    exact(noise_to_velocity(noise, x_t, t), velocity)


@pytest.mark.parametrize("shape", SHAPES)
def test_score_round_trip(shape):
    _, _, t, x_t = state(shape)
    velocity = torch.randn_like(x_t)
    exact(score_to_velocity(velocity_to_score(velocity, x_t, t), x_t, t), velocity)


def test_score_of_one_gaussian():
    """Data N(m, s^2): x_t is N((1 - t) m, (1 - t)^2 s^2 + t^2), whose score is known without any velocity."""
    t, x_t = torch.tensor([0.3, 0.8], dtype=torch.float64), torch.tensor([[0.4], [-1.1]], dtype=torch.float64)
    mean, std = 0.7, 0.5
    variance = (1 - t) ** 2 * std**2 + t**2
    e = x_t[:, 0] - (1 - t) * mean
    velocity = (t * e / variance - (mean + (1 - t) * std**2 * e / variance))[:, None]
    exact(velocity_to_score(velocity, x_t, t), (-e / variance)[:, None])


def test_ends_of_the_path():
    x_0, noise = torch.randn(2, 3, 2, 2)
    assert torch.equal(interpolate(x_0, noise, torch.zeros(3)), x_0)
    assert torch.equal(interpolate(x_0, noise, torch.ones(3)), noise)


def test_the_path_moves_with_its_velocity():
    x_0, noise, t, x_t = state((5, 2))
    exact((interpolate(x_0, noise, t + 0.01) - x_t) / 0.01, noise - x_0)


def test_reductions_agree_with_numpy():
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    flat = x.numpy().reshape(4, -1)
    np.testing.assert_allclose(mean_per_sample(x).numpy(), flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(sum_per_sample(x).numpy(), flat.sum(1), rtol=1e-12)
    assert per_row(torch.arange(4.0), x).shape == (4, 1, 1, 1)


def test_conditions_are_selected_and_joined_by_rows():
    labels, text = torch.arange(4), torch.randn(4, 3, 2)
    rows = torch.tensor([2, 0])
    assert rows_of(labels, rows).tolist() == [2, 0]
    cond = {"label": labels, "text": text}
    joined = concatenate(rows_of(cond, rows), rows_of(cond, slice(1, 2)))
    assert joined["label"].tolist() == [2, 0, 1]
    assert torch.equal(joined["text"], text[[2, 0, 1]])
    assert concatenate(labels, labels[:1]).tolist() == [0, 1, 2, 3, 0]


def test_conditions_that_differ_in_kind_cannot_be_joined():
    labels = torch.arange(2)
    with pytest.raises(ValueError, match=r"keys.*must agree"):
        concatenate({"label": labels}, {"text": labels})
    with pytest.raises(TypeError, match="cannot be one batch"):
        concatenate(labels, {"label": labels})
