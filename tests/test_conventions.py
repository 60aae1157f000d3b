"""A Gaussian mixture as a network of each convention, in closed form, against the velocity of the same mixture."""

import math

import pytest
import torch

from hidistill.conventions import ZERO, Convention, Diffusion, Flow, LogSigma, Sigma, Table
from hidistill.derivative import Forward
from hidistill.teachers.mixture import Mixture

MEANS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)
STDS = torch.tensor([[0.3, 0.4], [0.5, 0.5], [0.8, 0.2]], dtype=torch.float64)
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
KEPT = (1 - BETAS).cumprod(0)
# The square roots of what is kept, stretched so that nothing is left at the end (arXiv 2305.08891, algorithm 1).
ROOTS = KEPT.sqrt()
EMPTY = ((ROOTS - ROOTS[-1]) * ROOTS[0] / (ROOTS[0] - ROOTS[-1])).square()
LINEAR, TERMINAL = Table.of(KEPT), Table.of(EMPTY)
EXACT = torch.float64


def signal_over_noise(times, time):
    """At the network's own time: the inverse of what is tested, written from the definitions."""
    if isinstance(times, LogSigma):
        return times.data_std * (-4 * time).exp()
    if isinstance(times, Sigma):
        return 1 / time
    ratios = torch.tensor(times.log_ratios, dtype=EXACT)
    left = time.detach().floor().long().clamp(0, len(ratios) - 2)
    low, high = ratios[left], ratios[left + 1]
    line = (time - left) * torch.where(high.isinf(), 0.0, high - low)
    return (-low - line).exp() * torch.where(high.isinf(), 1 - (time - left), 1.0)


def regressions(x, alpha, sigma):
    """E[x_0 | x] and E[noise | x] for `x = alpha x_0 + sigma noise`, x_0 from the mixture."""
    alpha, sigma = alpha[:, None, None], sigma[:, None, None]
    variances = (alpha * STDS).square() + sigma.square()
    residuals = x[:, None] - alpha * MEANS
    posterior = (-0.5 * (residuals.square() / variances + variances.log()).sum(2)).softmax(1)[:, :, None]
    data = MEANS + alpha * STDS.square() / variances * residuals
    return (posterior * data).sum(1), (posterior * sigma / variances * residuals).sum(1)


def network(convention, x, time):
    """What a perfect network of this convention answers to its own input at its own time."""
    if isinstance(convention, Flow):
        t = time / convention.unit
        alpha, sigma = (t, 1 - t) if convention.reversed else (1 - t, t)
        data, noise = regressions(x, alpha, sigma)
        return data - noise if convention.reversed else noise - data
    ratio, s = signal_over_noise(convention.times, time), convention.data_std
    if convention.prediction == "score":
        return -regressions(x, torch.ones_like(ratio), 1 / ratio)[1] * ratio[:, None]
    sigma = 1 / (1 + ratio.square()).sqrt()
    alpha = ratio * sigma
    data, noise = regressions(x, alpha / s, sigma)
    alpha, sigma = alpha[:, None], sigma[:, None]
    velocity = alpha * noise - sigma * data / s
    return {"epsilon": noise, "sample": data / s, "v_prediction": velocity, "edm": -velocity}[convention.prediction]


class Field:
    """The network behind its convention; as a student, its mean velocity is the velocity."""

    def __init__(self, convention):
        self.convention = convention

    def velocity(self, x_t, *, t, cond=None):
        time, scale, skip, gain = self.convention.at(t)
        answer = network(self.convention, scale[:, None] * x_t, time)
        return skip[:, None] * x_t + gain[:, None] * answer

    def mean_velocity(self, x_t, *, t, r, cond):
        return self.velocity(x_t, t=t)


MIXTURE = Mixture(MEANS, STDS)
LABELS = torch.zeros(7, dtype=torch.long)
CONVENTIONS = {
    "flow": Flow(),
    "reversed flow": Flow(unit=1.0, reversed=True),
    "epsilon": Diffusion("epsilon", LINEAR),
    "v": Diffusion("v_prediction", LINEAR),
    "sample": Diffusion("sample", LINEAR),
    "v to pure noise": Diffusion("v_prediction", TERMINAL),
    "sample to pure noise": Diffusion("sample", TERMINAL),
    "edm": Diffusion("edm", LogSigma(0.002, 80.0, 0.5), 0.5),
    "edm with v": Diffusion("v_prediction", LogSigma(0.002, 80.0, 0.5), 0.5),
    "v at continuous times": Diffusion("v_prediction", LogSigma(0.002, 700.0, 1.0)),
    "exploding variance": Diffusion("score", Sigma(0.01, 1348.0)),
}
WHOLE = ("flow", "reversed flow", "v to pure noise", "sample to pure noise")
"""Those that know pure noise."""


@pytest.fixture(params=CONVENTIONS)
def convention(request):
    return CONVENTIONS[request.param]


def points(convention):
    """Times within the schedule, its last one included, and points there."""
    t = torch.tensor([0.0137, 0.1, 0.3333, 0.5, 0.7813, 0.93, convention.last], dtype=EXACT)
    return t.clamp(max=convention.last), torch.randn(7, 2, dtype=EXACT)


def test_the_velocity_is_the_mixture_s(convention):
    assert isinstance(convention, Convention)
    t, x_t = points(convention)
    velocity = Field(convention).velocity(x_t, t=t)
    torch.testing.assert_close(velocity, MIXTURE.velocity(x_t, t=t, cond=LABELS), rtol=1e-9, atol=1e-9)


def test_inputs_and_times_are_what_the_network_was_trained_on(convention):
    """Of x_0 with its own mean square, the input's is that of the network's path at the network's time."""
    t, _ = points(convention)
    time, scale, _, _ = convention.at(t)
    if isinstance(convention, Flow):
        share = (1 - t, t)
        torch.testing.assert_close(time, convention.unit * share[0 if convention.reversed else 1])
        assert (scale == 1).all()
        return
    ratio = signal_over_noise(convention.times, time)
    torch.testing.assert_close(ratio / convention.data_std, (1 - t) / t, rtol=1e-9, atol=0)
    signal, noise = scale * (1 - t) * convention.data_std, scale * t
    total = torch.ones_like(t) if convention.prediction != "score" else 1 + ratio.pow(-2)
    torch.testing.assert_close(signal.square() + noise.square(), total, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_at_pure_noise_the_velocity_leads_to_the_data_of_the_last_time(name):
    """Where the network knows pure noise that is the mixture's own velocity, else the first step of a DDIM sampler."""
    convention, x = CONVENTIONS[name], torch.randn(7, 2, dtype=EXACT)
    one = torch.ones(7, dtype=EXACT)
    velocity = Field(convention).velocity(x, t=one)
    assert convention.last == 1 if name in WHOLE else 0.98 < convention.last < 1
    if name in WHOLE:
        torch.testing.assert_close(velocity, MIXTURE.velocity(x, t=one, cond=LABELS), rtol=1e-9, atol=1e-9)
        return
    t = convention.last
    size = math.hypot((1 - t) * convention.data_std, t)
    alpha, sigma = (1 - t) / size * one, t / size * one
    torch.testing.assert_close(x - velocity, regressions(x, alpha, sigma)[0], rtol=1e-9, atol=1e-9)


def test_at_the_data_the_velocity_is_finite_and_ends_where_it_began(convention):
    """`x_0 + (1 - 0) velocity` is the noise that the network sees in clean data at its first time: close to nothing."""
    x = MIXTURE.sample(torch.zeros(7, dtype=torch.long))
    t = torch.tensor([0.0, 1e-9, 1e-6, 1e-4, 1e-3, 2e-3, 5e-3], dtype=EXACT)
    velocity = Field(convention).velocity(x, t=t)
    assert (velocity - MIXTURE.velocity(x, t=t, cond=LABELS)).abs().max() < 0.3
    if isinstance(convention, Flow):
        return
    first = convention.at(t[:1]).time
    ratio = float(signal_over_noise(convention.times, first)[0])
    assert math.isclose(-math.log(ratio), convention.times.ends[0], rel_tol=1e-9)


def test_no_jump_at_the_ends_of_the_schedule(convention):
    """Nor where the formula changes, at 1/2."""
    first = 0.01 if isinstance(convention, Flow) else math.exp(convention.times.ends[0]) * convention.data_std
    for place in (first / (1 + first), 0.5, convention.last):
        t = torch.tensor([place - 1e-9, min(place + 1e-9, 1.0)], dtype=EXACT)
        x = torch.tensor([[0.3, -0.8]], dtype=EXACT).expand(2, 2)
        velocity = Field(convention).velocity(x, t=t)
        # The last time of the exploding one is steep: its answer grows 1000 times from there on.
        assert (velocity[0] - velocity[1]).abs().max() < 1e-4


def test_the_derivative_along_t_equals_differences(convention):
    t, x = points(convention)
    t, direction, h = t.clamp(0.02, convention.last - 1e-4), torch.randn(7, 2, dtype=EXACT), 1e-7
    field = Field(convention)
    du = Forward()(field, x, t=t, r=t, cond=LABELS, direction=direction)
    ends = [field.velocity(x + s * direction, t=t + s) for s in (h, -h)]
    assert (du - (ends[0] - ends[1]) / (2 * h)).norm() < 1e-6 * du.norm()


@pytest.mark.parametrize("name", WHOLE)
def test_the_derivative_at_pure_noise_is_the_mixture_s(name):
    """At t = 1 itself, where students are asked and a logarithm of noise over signal has none."""

    class Own:
        def mean_velocity(self, x_t, *, t, r, cond):
            return MIXTURE.velocity(x_t, t=t, cond=cond)

    one, x, direction = torch.ones(7, dtype=EXACT), torch.randn(7, 2, dtype=EXACT), torch.randn(7, 2, dtype=EXACT)
    point = {"t": one, "r": one, "cond": LABELS, "direction": direction}
    du = Forward()(Field(CONVENTIONS[name]), x, **point)
    torch.testing.assert_close(du, Forward()(Own(), x, **point), rtol=1e-7, atol=1e-7)


def test_times_of_a_table_are_its_indices_and_lines_between():
    table = Table((-2.0, -1.0, 1.0))
    ratio = torch.tensor([-2.0, -1.5, -1.0, 0.0, 1.0], dtype=EXACT).exp()
    alpha, sigma = 1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt()
    torch.testing.assert_close(table(alpha, sigma), torch.tensor([0, 0.5, 1, 1.5, 2], dtype=EXACT))
    endless = Table((-2.0, -1.0, math.inf))
    share = torch.tensor([0.5, 0.25, 0.0], dtype=EXACT) * math.e
    torch.testing.assert_close(endless(share, torch.ones(3, dtype=EXACT)), torch.tensor([1.5, 1.75, 2], dtype=EXACT))


@pytest.mark.parametrize("ratios", [(), (0.0,), (0.0, 0.0), (1.0, 0.0), (0.0, math.inf), (-math.inf, 0.0, 1.0)])
def test_what_is_no_schedule_is_refused(ratios):
    with pytest.raises(ValueError, match="noise levels came that do not rise all the way"):
        Table(ratios)


def test_predictions_that_are_no_velocity_are_refused():
    with pytest.raises(ValueError, match="terminal signal-to-noise 0"):
        Diffusion("epsilon", TERMINAL)
    assert Diffusion("v_prediction", TERMINAL).last == 1.0 > Diffusion("epsilon", LINEAR).last + ZERO


def test_words_name_what_differs():
    assert "answer x_0 - noise, time 1 t" in CONVENTIONS["reversed flow"].words
    assert CONVENTIONS["epsilon"].words == "diffusion: answer epsilon, ends at t = 0.9937"
    assert "ends at pure noise" in CONVENTIONS["v to pure noise"].words
    assert "data scaled by 1 / 0.5" in CONVENTIONS["edm"].words
