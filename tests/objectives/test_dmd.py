from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from hidistill.objectives.adversarial import (
    DivergenceWeight,
    Softplus,
    TellApart,
    forward_kl,
    jeffreys,
    jensen_shannon,
    neyman,
    reverse_kl,
    squared_hellinger,
)
from hidistill.objectives.dmd import DMD
from hidistill.path import interpolate
from hidistill.teachers.dit import DiT, Size
from hidistill.teachers.mixture import Mixture
from hidistill.types import Noised, Probe

DOUBLE = torch.float64


def gaussian(mean, std):
    return Mixture(torch.tensor([mean], dtype=DOUBLE), torch.tensor([std], dtype=DOUBLE))


def noised(real, x_0, noise, t):
    cond, t = torch.zeros(len(x_0), dtype=torch.long), torch.full((len(x_0),), t, dtype=DOUBLE)
    x_t = interpolate(x_0, noise, t)
    return Noised(x_0, x_t, t, cond, Probe(real.velocity(x_t, t=t, cond=cond).detach(), []))


def signs(dim):
    """Points z, e in {-1, 1}^dim, as (n, dim) each: averages over them are exact for all quadratic functions."""
    points = torch.tensor(list(product([-1.0, 1.0], repeat=2 * dim)), dtype=DOUBLE)
    return points[:, :dim], points[:, dim:]


def unnormalized(objective, sample, real):
    """`x0_fake - x0_real`: the gradient that arrives at x_0, without the mean over components and the divisor."""
    (gradient,) = torch.autograd.grad(objective(sample).value.sum(), sample.x_0, retain_graph=True)
    x_0_real = sample.x_t - sample.t[:, None] * sample.probe.velocity
    scale = (sample.x_0 - x_0_real).abs().mean(1, keepdim=True)
    return (gradient * gradient.shape[1] * scale).detach()


GAUSSIANS = [
    ([1.0], [0.5], [-0.5], [0.8]),
    ([0.3], [0.9], [0.3], [0.4]),
    ([1.0, -0.4], [0.5, 0.7], [-0.5, 0.2], [0.8, 0.3]),
]


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("mean", "std", "mean_real", "std_real"), GAUSSIANS)
def test_the_direction_is_the_gradient_of_the_divergence(mean, std, mean_real, std_real, t):
    """Of KL(noised student || noised teacher), for the student `x_0 = mean + std z` and both scores exact.

    With alpha = 1 - t, sigma = t: score = (alpha x_0 - x_t) / sigma^2, so that
    score_fake - score_real = alpha / sigma^2 (x0_fake - x0_real), and the chain rule through x_t = alpha x_0 + sigma e
    gives d KL / d parameter = E[alpha (score_fake - score_real) . d x_0 / d parameter].
    """
    fake, real = gaussian(mean, std), gaussian(mean_real, std_real)
    z, e = signs(len(mean))
    mean, std = (torch.tensor(value, dtype=DOUBLE, requires_grad=True) for value in (mean, std))
    sample = noised(real, mean + std * z, e, t)
    direction = unnormalized(DMD(fake), sample, real)

    scores = [field.score(sample.x_t, t=sample.t, cond=sample.cond) for field in (fake, real)]
    torch.testing.assert_close(direction, (t**2 / (1 - t) * (scores[0] - scores[1])).detach(), rtol=1e-4, atol=1e-5)

    estimate = torch.autograd.grad(((1 - t) ** 2 / t**2 * direction * sample.x_0).sum() / len(z), [mean, std])
    variance = (1 - t) ** 2 * std**2 + t**2
    variance_real = (1 - t) ** 2 * real.stds[0] ** 2 + t**2
    ratio = (variance + (1 - t) ** 2 * (mean - real.means[0]) ** 2) / variance_real
    expected = torch.autograd.grad(0.5 * (ratio - (variance / variance_real).log() - 1).sum(), [mean, std])
    for mine, truth in zip(estimate, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-4)


def test_descending_moves_samples_towards_the_teacher():
    """Between Gaussians of equal width the gradient is parallel to the difference of their means."""
    fake, real = gaussian([1.0, 2.0], [0.5, 0.5]), gaussian([-1.0, 1.0], [0.5, 0.5])
    z, e = signs(2)
    x_0 = (fake.means + 0.5 * z).requires_grad_()
    DMD(fake)(noised(real, x_0, e, 0.6)).value.sum().backward()
    away = (fake.means - real.means).expand_as(x_0)
    torch.testing.assert_close(torch.cosine_similarity(x_0.grad, away), torch.ones(len(z), dtype=DOUBLE))


def test_nothing_moves_where_the_scores_agree():
    real = gaussian([1.0, 2.0], [0.5, 0.2])
    z, e = signs(2)
    x_0 = z.clone().requires_grad_()
    loss = DMD(real)(noised(real, x_0, e, 0.6))
    loss.value.sum().backward()
    assert loss.value.max() < 1e-12
    assert x_0.grad.abs().max() < 1e-6
    assert loss.metrics["dmd_gradient"] == 0


def test_the_gradient_at_the_sample_is_the_normalized_difference_and_reaches_nothing_else():
    """weight (x0_fake - x0_real) / mean|x_0 - x0_real| / components, whatever x_t and the networks would pass on."""
    real, fake = (DiT(image_size=4, channels=2, patch=2, classes=2, size=Size(16, 2, 2)) for _ in range(2))
    for weight in [*real.parameters(), *fake.parameters()]:
        torch.nn.init.normal_(weight, std=0.3)
    x_0, noise = torch.randn(5, 2, 4, 4, requires_grad=True), torch.randn(5, 2, 4, 4)
    t, cond = torch.linspace(0.1, 0.9, 5), torch.tensor([0, 1, 2, 0, 1])
    x_t = interpolate(x_0, noise, t)
    velocity, features = real.probe(x_t, t=t, cond=cond)
    sample = Noised(x_0, x_t, t, cond, Probe(velocity.detach(), features))
    DMD(fake, weight=3.0)(sample).value.sum().backward()
    with torch.no_grad():
        x_0_fake, x_0_real = (x_t - t.reshape(5, 1, 1, 1) * net.velocity(x_t, t=t, cond=cond) for net in (fake, real))
        scale = (x_0 - x_0_real).abs().mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(x_0.grad, 3.0 / 32 * (x_0_fake - x_0_real) / scale, rtol=1e-4, atol=1e-6)
    assert all(weight.grad is None for weight in [*real.parameters(), *fake.parameters()])


def test_a_sample_that_the_teacher_leaves_where_it_is_has_a_bounded_gradient():
    fake, (z, e) = gaussian([0.0, 0.0], [1.0, 1.0]), signs(2)
    t, cond = torch.full((len(z),), 0.5, dtype=DOUBLE), torch.zeros(len(z), dtype=torch.long)
    x_0 = z.clone().requires_grad_()
    x_t = interpolate(x_0, e, t).detach()
    DMD(fake, floor=0.25)(Noised(x_0, x_t, t, cond, Probe(e - z, []))).value.sum().backward()
    x_0_fake = x_t - 0.5 * fake.velocity(x_t, t=t, cond=cond)
    torch.testing.assert_close(x_0.grad, (x_0_fake - z) / 0.25 / 2, rtol=1e-5, atol=1e-6)


class AsItIs(nn.Module):
    """A discriminator whose feature is its logit."""

    def forward(self, features, *, t, cond):
        return features[0][:, 0]


DIVERGENCES = {
    reverse_kl: lambda r: -r.log(),
    forward_kl: lambda r: r * r.log(),
    jensen_shannon: lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    squared_hellinger: lambda r: 2 * (1 - r.sqrt()) ** 2,
    jeffreys: lambda r: (r - 1) * r.log(),
    neyman: lambda r: (1 - r) ** 2 / (2 * r),
}


def density(x, mean, std, t):
    """Of a Gaussian's noised samples."""
    variance = (1 - t) ** 2 * std**2 + t**2
    return (-0.5 * (x - (1 - t) * mean) ** 2 / variance).exp() / (2 * torch.pi * variance) ** 0.5


@pytest.mark.parametrize("t", [0.3, 0.7])
@pytest.mark.parametrize("h", DIVERGENCES)
def test_a_weight_makes_the_direction_that_of_its_divergence(h, t):
    """Of `integral q f(p / q)` over the noised student's density q, by quadrature, with the exact ratio as logit."""
    fake, real = gaussian([0.4], [0.5]), gaussian([0.2], [0.55])
    nodes, shares = (torch.from_numpy(value) for value in np.polynomial.hermite_e.hermegauss(40))
    z, e = (axis.reshape(-1, 1) for axis in torch.meshgrid(nodes, nodes, indexing="ij"))
    shares = torch.outer(shares, shares).reshape(-1, 1) / (2 * torch.pi)
    mean, std = (torch.tensor(value, dtype=DOUBLE, requires_grad=True) for value in (0.4, 0.5))
    plain = noised(real, mean + std * z, e, t)
    ratio = (density(plain.x_t, 0.2, 0.55, t) / density(plain.x_t, 0.4, 0.5, t)).detach()
    sample = Noised(plain.x_0, plain.x_t, plain.t, plain.cond, Probe(plain.probe.velocity, [ratio.log()[:, None]]))
    weight = DivergenceWeight(TellApart(real, AsItIs(), game=Softplus()), h, least=1e-9, most=1e9)
    torch.testing.assert_close(weight(sample).mean(), torch.tensor(1.0))

    direction = unnormalized(DMD(fake, sample_weight=weight), sample, real) * h(ratio).mean()
    scale = (1 - t) ** 2 / t**2
    estimate = torch.autograd.grad((shares * scale * direction * sample.x_0).sum(), [mean, std])
    x = torch.linspace(-12, 12, 4001, dtype=DOUBLE)
    q, p = density(x, mean, std, t), density(x, 0.2, 0.55, t)
    seen = p > 1e-14  # beyond, the ratio is that of two roundings
    divergence = torch.trapezoid((q * DIVERGENCES[h](p / q))[seen], x[seen])
    for mine, truth in zip(estimate, torch.autograd.grad(divergence, [mean, std]), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-5)


def test_the_weights_by_hand():
    """exp(mean logit), held within [0.1, 20], divided by the mean."""
    real = gaussian([0.0], [1.0])
    logits = torch.tensor([[-9.0, -9.0], [0.5, -0.5], [1.0, 2.0], [9.0, 5.0]])
    sample = noised(real, torch.zeros(4, 1, dtype=DOUBLE), torch.ones(4, 1, dtype=DOUBLE), 0.5)
    sample = Noised(sample.x_0, sample.x_t, sample.t, sample.cond, Probe(sample.probe.velocity, [logits[:, None]]))
    critic = TellApart(real, AsItIs(), game=Softplus())
    ratios = torch.tensor([0.1, 1.0, 1.5, 20.0])
    ratios[2] = ratios[2].exp()
    torch.testing.assert_close(DivergenceWeight(critic, forward_kl)(sample), ratios / ratios.mean())
    expected = ratios / (1 + ratios)
    torch.testing.assert_close(DivergenceWeight(critic, jensen_shannon)(sample), expected / expected.mean())
    torch.testing.assert_close(DivergenceWeight(critic, reverse_kl)(sample), torch.ones(4))
