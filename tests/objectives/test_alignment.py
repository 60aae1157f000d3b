import math

import numpy as np
import pytest
import torch
from torch import nn

from hidistill.objectives.alignment import (
    Align,
    Discrepancy,
    Drift,
    Moments,
    OneTime,
    SetDistance,
    SlicedWasserstein,
    each_token,
    energy,
    gaussians,
    pooled,
)
from hidistill.objectives.combine import OnNoised, OnSamples
from hidistill.teachers.dit import DiT, Size
from hidistill.teachers.mixture import Mixture
from hidistill.times import Uniform
from hidistill.types import Batch, Noised, Probe, Rollout

DOUBLE = torch.float64
DISTANCES = {
    "energy": Discrepancy(energy),
    "gaussians": Discrepancy(gaussians),
    "sliced": SlicedWasserstein(),
    "moments": Moments(),
    "drift": Drift(),
}


def normal_grid(n, mean=0.0, std=1.0):
    """n points in the middle of n equally likely intervals: sums over them are integrals to the order of 1 / n."""
    middle = (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    return (mean + std * math.sqrt(2) * torch.erfinv(2 * middle - 1))[:, None, None]


@pytest.fixture(params=DISTANCES)
def distance(request):
    return DISTANCES[request.param]


def test_a_value_per_row_that_moves_with_it(distance):
    """And with the real rows in any order."""
    assert isinstance(distance, SetDistance)
    g, r, order = torch.randn(7, 3, 5), torch.randn(7, 3, 5), torch.randperm(7)

    def value(g, r):
        torch.manual_seed(3)
        return distance(g, r)

    assert value(g, r).shape == (7,)
    torch.testing.assert_close(value(g[order], r), value(g, r)[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value(g, r[order]), value(g, r), rtol=1e-4, atol=1e-5)


def test_sets_are_compared_apart_and_averaged(distance):
    g, r = torch.randn(7, 3, 5), torch.randn(7, 3, 5)

    def value(*sets):
        torch.manual_seed(3)
        return distance(g[:, sets], r[:, sets])

    alone = torch.stack([value(index) for index in range(3)])
    torch.testing.assert_close(value(0, 1, 2), alone.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_the_energy_distance_of_two_gaussians(shift):
    """X - Y is normal with mean `shift` and variance 2, and E|N(m, 2)| = 2 exp(-m^2 / 4) / sqrt(pi) + m erf(m / 2)."""
    n = 800
    value = Discrepancy(energy)(normal_grid(n, shift), normal_grid(n)).mean()
    within = 2 / math.sqrt(math.pi)
    expected = 2 * (within * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)) - 2 * within
    assert value == pytest.approx(expected, abs=4 * within / n + 2e-3)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_the_discrepancy_of_two_gaussians(shift):
    """E exp(-(X - Y)^2 / (2 w^2)) = w / sqrt(w^2 + 2) exp(-m^2 / (2 w^2 + 4)), for each of the five widths."""
    n = 800
    value = Discrepancy(gaussians)(normal_grid(n, shift), normal_grid(n)).mean()
    within, across = (
        np.mean([w / math.sqrt(w * w + 2) * math.exp(-m * m / (2 * w * w + 4)) for w in (0.25, 0.5, 1.0, 2.0, 4.0)])
        for m in (0.0, shift)
    )
    assert value == pytest.approx(2 * (within - across), abs=4 / n)


def test_the_discrepancy_is_unbiased():
    """Between small batches of one distribution its mean over many is zero, within three of its standard errors."""
    values = torch.stack([Discrepancy(energy)(*torch.randn(2, 3, 200, 2)).mean() for _ in range(50)])
    assert values.mean().abs() < 3 * values.std() / len(values) ** 0.5
    assert 0.01 < values.std() < 0.1


def test_equal_sets_in_another_order_are_no_distance_apart():
    r = torch.randn(9, 2, 4, dtype=DOUBLE)
    g = r[torch.randperm(9)].requires_grad_()
    for statistic in (SlicedWasserstein(), Moments()):
        value = statistic.along(g, r, torch.randn(4, 30, dtype=DOUBLE)) if statistic != Moments() else statistic(g, r)
        assert value.mean().abs() < 1e-12
        (gradient,) = torch.autograd.grad(value.mean(), g)
        assert gradient.abs().max() < 1e-12


def test_a_shift_costs_its_square():
    """Of sliced Wasserstein along an orthogonal basis, and of the means: |s|^2 / d, and the covariances see nothing."""
    r, shift = torch.randn(9, 1, 4, dtype=DOUBLE), torch.tensor([0.3, -1.2, 0.0, 2.0], dtype=DOUBLE)
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=DOUBLE)).Q
    expected = shift.square().sum() / 4
    torch.testing.assert_close(SlicedWasserstein().along(r + shift, r, 3 * basis), expected.expand(9))
    torch.testing.assert_close(Moments()(r + shift, r).mean(), expected)


def test_sliced_wasserstein_of_gaussians_of_two_widths():
    """In one dimension the squared distance is (difference of means)^2 + (difference of widths)^2."""
    value = SlicedWasserstein().along(normal_grid(4000, 0.5, 2.0), normal_grid(4000), torch.ones(1, 1, dtype=DOUBLE))
    assert value.mean() == pytest.approx(0.25 + 1.0, rel=5e-3)


def test_moments_in_numpy():
    g, r = torch.randn(8, 2, 3, dtype=DOUBLE), torch.randn(8, 2, 3, dtype=DOUBLE)
    for weight in (0.0, 0.7):
        expected = 0.0
        for k in range(2):
            a, b = g[:, k].numpy(), r[:, k].numpy()
            covariances = np.cov(a.T, bias=True) - np.cov(b.T, bias=True)
            expected += (((a.mean(0) - b.mean(0)) ** 2).sum() + weight * (covariances**2).sum()) / 3 / 2
        assert Moments(weight)(g, r).mean() == pytest.approx(expected, rel=1e-10)


def test_drift_by_hand():
    """Two points each on a line; a generated one is pushed by the one other."""
    places = (0.5, -1.0)
    g, r = (torch.tensor(values, dtype=DOUBLE)[:, None, None] for values in ((0.0, 1.0), places))
    field = Drift(0.5).field(g, r)[:, 0, 0]
    for row, (x, other) in enumerate(((0.0, 1.0), (1.0, 0.0))):
        weights = [math.exp(-2 * abs(x - y)) for y in places]
        attraction = sum(w * y for w, y in zip(weights, places, strict=True)) / sum(weights)
        assert field[row] == pytest.approx(attraction - other)
    free = g.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Drift(0.5)(free, r).sum(), free)
    torch.testing.assert_close(gradient[:, 0, 0], -field)


def test_descending_a_distance_brings_the_distributions_together(distance):
    """A generator's mean and width, from 1.5 and 2 to the 0 and 1 of batches that are drawn anew each time."""
    mean, width = torch.full((2,), 1.5, requires_grad=True), torch.full((2,), 2.0, requires_grad=True)
    optimizer = torch.optim.Adam([mean, width], lr=0.1)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 120)
        optimizer.zero_grad()
        distance(mean + width * torch.randn(64, 1, 2), torch.randn(64, 1, 2)).mean().backward()
        optimizer.step()
    assert mean.abs().max() < 0.2
    assert (width - 1).abs().max() < 0.2


def points():
    return Mixture(torch.zeros(1, 2), torch.ones(1))


def network():
    net = DiT(image_size=4, channels=2, patch=2, classes=2, size=Size(16, 2, 2))
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.3)
    return net.eval().requires_grad_(False)


def test_features_are_noised_alike_and_measured_in_the_real_ones_deviation():
    """By hand, on the two layers of a network: each pooled, each divided by its own unit, then averaged."""
    net, b = network(), 6
    x_0, real, noise, other = (torch.randn(b, 2, 4, 4) for _ in range(4))
    t, cond = torch.linspace(0.2, 0.8, b), torch.tensor([0, 1, 2, 0, 1, 2])
    x_t, real_t = (
        (1 - t[:, None, None, None]) * x + t[:, None, None, None] * n for x, n in ((x_0, noise), (real, other))
    )
    noised = Noised(x_0, x_t, t, cond, Probe(x_t, net.features(x_t, t=t, cond=cond)), real)
    expected = []
    for generated, truth in zip(noised.probe.features, net.features(real_t, t=t, cond=cond), strict=True):
        g, r = generated.mean(1, keepdim=True), truth.mean(1, keepdim=True)
        unit = ((r - r.mean(0)) ** 2).mean().sqrt()
        expected.append(Discrepancy(energy)(g / unit, r / unit))
    value = Align(net, Discrepancy(energy)).at(noised, noise=other).value
    torch.testing.assert_close(value, (expected[0] + expected[1]) / 2)


def test_reading_tokens():
    tokens = torch.randn(3, 4, 5)
    torch.testing.assert_close(pooled(tokens)[:, 0], tokens.mean(1))
    assert each_token(tokens) is tokens


def test_a_student_is_aligned_through_the_bridge():
    """A shift that is learned from samples at one noise level for all rows, without a discriminator or a fake score."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor([1.5, -1.0]))

        def mean_velocity(self, x_t, *, t, r, cond):
            return -self.shift.expand_as(x_t)  # the sample is the noise, shifted

    student, teacher = Shifted(), points()
    align = Align(teacher, Discrepancy(energy))
    judged = OnNoised(teacher, OneTime(Uniform(0.05, 0.5)), {"aligned": align}, feature_gradient=1.0)
    objective = OnSamples(student, {"judged": judged}, differentiable=True)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        objective(Batch(torch.randn(128, 2), torch.zeros(128, dtype=torch.long))).value.mean().backward()
        optimizer.step()
    assert student.shift.abs().max() < 0.3


def test_one_time_for_all_rows():
    times = OneTime(Uniform(0.2, 0.9)).sample(torch.zeros(5, 2))
    assert times.shape == (5,)
    assert (times == times[0]).all()
    assert OneTime(Uniform(0.2, 0.9)).sample(torch.zeros(5, 2))[0] != times[0]


def test_what_cannot_be_compared_is_refused():
    teacher, x, cond = points(), torch.randn(3, 2), torch.zeros(3, dtype=torch.long)
    align, t = Align(teacher, Discrepancy(energy)), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match="3 generated samples and no real ones"):
        align(Noised(x, x, t, cond, teacher.probe(x, t=t, cond=cond)))
    with pytest.raises(ValueError, match="two rows or more"):
        OnNoised(teacher, terms={"aligned": align})(Rollout(x[:1], x[:1], cond[:1]))
    for build in (lambda: SlicedWasserstein(0), lambda: Moments(-1.0), lambda: Drift(0.0)):
        with pytest.raises(ValueError, match=r"give 1 or more|must not be negative|must be positive"):
            build()
