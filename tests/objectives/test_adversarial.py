import numpy as np
import pytest
import torch
from torch import nn

from hidistill.discriminators.adaptive import Adaptive
from hidistill.objectives.adversarial import (
    DivergenceWeight,
    Fool,
    Hinge,
    Softplus,
    TellApart,
    forward_kl,
    jensen_shannon,
)
from hidistill.path import interpolate
from hidistill.share import Share, holding
from hidistill.teachers.dit import DiT, Size
from hidistill.teachers.mixture import Mixture
from hidistill.times import Uniform
from hidistill.types import Noised, Probe, Rollout

GAMES = {
    Hinge(): (lambda d: np.maximum(0, 1 - d), lambda d: np.maximum(0, 1 + d), lambda d: -d),
    Softplus(): (lambda d: np.log1p(np.exp(-d)), lambda d: np.log1p(np.exp(d)), lambda d: np.log1p(np.exp(-d))),
}


class Along(nn.Module):
    """`D(x) = a . x` on a mixture's second feature, which is the noised point itself; and twice that."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, features, *, t, cond):
        verdict = features[1][:, 0] @ self.a
        return torch.stack([verdict, 2 * verdict], 1)


def points():
    """A teacher whose feature is x_t; its components do not matter."""
    return Mixture(torch.zeros(1, 2), torch.ones(1))


def rollout(n, shape=(2,)):
    return Rollout(torch.randn(n, *shape), torch.randn(n, *shape), torch.zeros(n, dtype=torch.long))


def network():
    teacher = DiT(image_size=4, channels=2, patch=2, classes=2, size=Size(16, 2, 2))
    for weight in teacher.parameters():
        nn.init.normal_(weight, std=0.3)
    return teacher, Adaptive(teacher.feature_channels, width=8)


@pytest.mark.parametrize("game", GAMES)
def test_the_games_in_numpy(game):
    logits = torch.linspace(-3, 3, 13)
    losses = (game.real(logits), game.generated(logits), game.fool(logits))
    for mine, expected in zip(losses, GAMES[game], strict=True):
        np.testing.assert_allclose(mine, expected(logits.numpy()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("game", GAMES)
def test_telling_apart_in_numpy(game):
    """Real and generated rows share t and not the noise; the mean is over the logits."""
    discriminator, samples = Along([1.5, -0.5]), rollout(6)
    t, noise = torch.linspace(0.1, 0.9, 6), torch.randn(12, 2)
    loss = TellApart(points(), discriminator, game=game).at(samples, t=t, noise=noise, direction=noise[:0])
    times, real_loss, generated_loss = t.numpy()[:, None], *GAMES[game][:2]
    real = ((1 - times) * samples.real.numpy() + times * noise[:6].numpy()) @ [1.5, -0.5]
    generated = ((1 - times) * samples.generated.numpy() + times * noise[6:].numpy()) @ [1.5, -0.5]
    expected = (real_loss(real) + real_loss(2 * real) + generated_loss(generated) + generated_loss(2 * generated)) / 2
    np.testing.assert_allclose(loss.value.detach(), expected, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["real_logit"], 1.5 * real.mean(), rtol=1e-4)
    np.testing.assert_allclose(loss.metrics["generated_logit"], 1.5 * generated.mean(), rtol=1e-4)
    right = ((real > 0).mean() + (generated < 0).mean()) / 2
    np.testing.assert_allclose(loss.metrics["accuracy"], right, rtol=1e-6)


@pytest.mark.parametrize("game", GAMES)
def test_fooling_in_numpy(game):
    x_t, t = torch.randn(6, 2), torch.full((6,), 0.5)
    teacher, cond = points(), torch.zeros(6, dtype=torch.long)
    noised = Noised(x_t, x_t, t, cond, teacher.probe(x_t, t=t, cond=cond))
    loss = Fool(Along([1.5, -0.5]), game)(noised)
    logit, pays = x_t.numpy() @ [1.5, -0.5], GAMES[game][2]
    np.testing.assert_allclose(loss.value.detach(), (pays(logit) + pays(2 * logit)) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss.metrics["fool_logit"], 1.5 * logit.mean(), rtol=1e-4)


def test_accuracy_goes_from_blind_to_perfect():
    apart = Rollout(torch.full((8, 2), 5.0), torch.full((8, 2), -5.0), torch.zeros(8, dtype=torch.long))
    swapped = Rollout(apart.generated, apart.real, apart.cond)
    for samples, share in ((apart, 1.0), (swapped, 0.0)):
        objective = TellApart(points(), Along([1.0, 1.0]), times=Uniform(0.0, 0.1))
        assert objective(samples).metrics["accuracy"] == share


def test_the_penalty_is_the_squared_slope():
    """For D(x) = a . x it is (a . n)^2 per paying row, |a|^2 on average; four times that for the logit 2 D."""
    a, n = [1.5, -0.5], 6
    samples, t, noise, direction = rollout(n), torch.full((n,), 0.5), torch.randn(2 * n, 2), torch.randn(3, 2)
    free = TellApart(points(), Along(a)).at(samples, t=t, noise=noise, direction=noise[:0])
    paid = TellApart(points(), Along(a), penalty=0.7).at(samples, t=t, noise=noise, direction=direction)
    squares = 2.5 * (direction.numpy() @ a) ** 2
    np.testing.assert_allclose((paid.value - free.value).detach()[:3], 0.7 * squares * n / 3, rtol=5e-3)
    assert torch.equal(paid.value[3:], free.value[3:])
    np.testing.assert_allclose(paid.metrics["slope"], squares.mean(), rtol=5e-3)

    many = TellApart(points(), Along(a), penalty=1.0)(rollout(20_000)).metrics["slope"]
    assert abs(many / (2.5 * 2.5) - 1) < 5 * (2 / 5_000) ** 0.5


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_penalty_of_all_shares_is_that_of_the_batch(count):
    """4 of 18 rows pay it, which no number of shares divides; of six shares the last two have none."""
    samples = rollout(18)
    objective = TellApart(points(), Along([1.5, -0.5]), penalty=0.7, penalty_share=4 / 18)

    def loss(share):
        mine = Rollout(share.of(samples.real), share.of(samples.generated), share.of(samples.cond))
        torch.manual_seed(3)
        with holding(share):
            return objective(mine)

    whole, shares = loss(Share()), [loss(Share(index, count)) for index in range(count)]
    values = torch.stack([each.value for each in shares], 1).flatten(0, 1)
    torch.testing.assert_close(values, whole.value)
    torch.testing.assert_close(torch.stack([each.metrics["slope"] for each in shares]).mean(), whole.metrics["slope"])


def test_a_spectral_norm_in_training_is_no_slope():
    """The same point twice has no slope, though the norms' estimates move in every pass."""
    teacher, discriminator = network()
    objective, samples = TellApart(teacher, discriminator.train(), penalty=1.0), rollout(4, (2, 4, 4))
    noise, direction = torch.randn(8, 2, 4, 4), torch.zeros(4, 2, 4, 4)
    slope = objective.at(samples, t=torch.full((4,), 0.5), noise=noise, direction=direction).metrics["slope"]
    assert slope < 1e-6


def test_telling_apart_moves_the_discriminator_alone():
    """While the teacher rests, as the loop has it."""
    teacher, discriminator = network()
    teacher.requires_grad_(False)
    samples = rollout(4, (2, 4, 4))
    samples.generated.requires_grad_()
    TellApart(teacher, discriminator, penalty=1.0)(samples).value.mean().backward()
    assert all(weight.grad is not None for weight in discriminator.parameters())
    assert samples.generated.grad is None
    assert all(weight.grad is None for weight in teacher.parameters())


def test_fooling_moves_the_sample_up_the_logit():
    """While the discriminator and the teacher rest, as the loop has it."""
    teacher, discriminator = network()
    discriminator.eval().requires_grad_(False)
    teacher.requires_grad_(False)
    x_0, t, cond = torch.randn(4, 2, 4, 4, requires_grad=True), torch.full((4,), 0.3), torch.tensor([0, 1, 2, 0])
    noise = torch.randn(4, 2, 4, 4)

    def logit(x):
        x_t = interpolate(x, noise, t)
        loss = Fool(discriminator)(Noised(x, x_t, t, cond, Probe(x_t, teacher.features(x_t, t=t, cond=cond))))
        return loss.value, loss.metrics["fool_logit"]

    value, before = logit(x_0)
    value.mean().backward()
    assert logit(x_0.detach() - 1e-2 * x_0.grad / x_0.grad.norm())[1] > before


@pytest.mark.parametrize(
    "change", [{"penalty": -1.0}, {"penalty_step": 0.0}, {"penalty_share": 0.0}, {"penalty_share": 1.1}]
)
def test_impossible_penalties_are_refused(change):
    with pytest.raises(ValueError, match="must not be negative"):
        TellApart(points(), Along([1.0, 1.0]), **change)


class Parabola(nn.Module):
    """`D(x) = a x + b x^2 + c` on the noised point."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(3))

    def forward(self, features, *, t, cond):
        x = features[1][:, 0]
        return torch.cat([x, x**2, torch.ones_like(x)], 1) @ self.weights[:, None]


def test_the_logistic_game_ends_at_the_ratio_of_densities():
    """Of two noised Gaussians, whose log-ratio is a parabola: within the spread of 20,000 samples."""
    n, t, discriminator = 20_000, 0.4, Parabola()
    samples = Rollout(0.8 * torch.randn(n, 1) - 0.3, 0.5 * torch.randn(n, 1) + 0.6, torch.zeros(n, dtype=torch.long))
    teacher = Mixture(torch.zeros(1, 1), torch.ones(1))
    objective = TellApart(teacher, discriminator, game=Softplus())
    point = {"t": torch.full((n,), t), "noise": torch.randn(2 * n, 1), "direction": torch.zeros(0, 1)}
    optimizer = torch.optim.LBFGS(discriminator.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = objective.at(samples, **point).value.mean()
        value.backward()
        return value

    optimizer.step(loss)
    (mean, var), (other, spread) = (((1 - t) * m, (1 - t) ** 2 * s**2 + t**2) for m, s in ((-0.3, 0.8), (0.6, 0.5)))
    constant = 0.5 * np.log(spread / var) - mean**2 / (2 * var) + other**2 / (2 * spread)
    expected = torch.tensor([mean / var - other / spread, 0.5 / spread - 0.5 / var, constant]).float()
    torch.testing.assert_close(discriminator.weights.detach(), expected, rtol=0, atol=0.1)

    x_t = torch.tensor([[-0.5], [0.0], [0.7]])
    noised = Noised(x_t, x_t, torch.full((3,), t), torch.zeros(3, dtype=torch.long), Probe(x_t, [x_t, x_t[:, None]]))
    exact = (expected[0] * x_t + expected[1] * x_t**2 + expected[2]).exp()[:, 0]
    weight = DivergenceWeight(objective, forward_kl)(noised)
    torch.testing.assert_close(weight, exact / exact.mean(), rtol=0.1, atol=0)


def test_logits_of_another_game_are_no_ratios():
    with pytest.raises(ValueError, match="trained by Hinge, whose logits are no ratios"):
        DivergenceWeight(TellApart(points(), Along([1.0, 1.0]), game=Hinge()), jensen_shannon)
    for bounds in ({"least": 0.0}, {"least": 2.0, "most": 2.0}):
        with pytest.raises(ValueError, match="ratios must have"):
            DivergenceWeight(TellApart(points(), Along([1.0, 1.0]), game=Softplus()), jensen_shannon, **bounds)


def test_features_that_learn_get_their_gradient_from_the_game():
    """The fake score's blocks up to its last tapped one, by differences; what comes after them has no part in it."""
    fake, discriminator = network()
    discriminator.eval()
    samples = rollout(4, (2, 4, 4))
    objective, point = TellApart(fake, discriminator, game=Softplus()), {
        "t": torch.linspace(0.2, 0.8, 4), "noise": torch.randn(8, 2, 4, 4), "direction": torch.zeros(0, 2, 4, 4)
    }  # fmt: skip
    objective.at(samples, **point).value.mean().backward()
    assert fake.unpatchify.weight.grad is None
    for weight in (fake.patchify.weight, fake.blocks[1].qkv.weight):
        direction, h = weight.grad / weight.grad.norm(), 1e-2
        ends = []
        for step in (h, -h):
            with torch.no_grad():
                weight += step * direction
                ends.append(objective.at(samples, **point).value.mean())
                weight -= step * direction
        torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), weight.grad.norm(), rtol=2e-2, atol=1e-5)
