import pytest
import torch
from known_maps import COND, T, bent, mixture, sample, short_training

from hidistill.derivative import Forward
from hidistill.objectives.consistency import Consistency, euler_step
from hidistill.objectives.continuous import ContinuousConsistency, TimeWeight, trigflow
from hidistill.path import interpolate
from hidistill.teachers.mixture import ExactFlowMap
from hidistill.teachers.mlp import MLP
from hidistill.types import Batch

S = torch.atan2(T, 1 - T)
COS, SIN = S.cos()[:, None], S.sin()[:, None]


def randomized(module):
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return module.double()


def parts():
    teacher = randomized(MLP(dim=2, classes=2, width=16, depth=2))
    return teacher, randomized(teacher.student())


def linear_time(s):
    return s.sin() / (s.sin() + s.cos())


def test_trigflows_consistency_function_is_the_end_of_the_mean_velocity():
    """`cos s x_s - sin s F = x_t - t u`, with x_s = (cos s + sin s) x_t."""
    x_t, u = torch.randn(2, len(T), 2, dtype=torch.float64)
    f = COS * (COS + SIN) * x_t - SIN * trigflow(u, x_t, T)
    torch.testing.assert_close(f, x_t - T[:, None] * u, rtol=0, atol=1e-14)


def test_the_teachers_velocity_is_that_of_trigflows_trajectories():
    """Against central differences along exact trajectories, x_s = (cos s + sin s) x_t, at times inside (0, 1)."""
    teacher, h = mixture(), 1e-4
    x_t, cond = sample()[0].x[:5], COND[:5]
    t, exact = T[:5], ExactFlowMap(mixture(), 20)

    def trigflow_point(s):
        r = linear_time(s)
        x_r = x_t - (t - r)[:, None] * exact.mean_velocity(x_t, t=t, r=r, cond=cond)
        return (s.cos() + s.sin())[:, None] * x_r

    difference = (trigflow_point(S[:5] + h) - trigflow_point(S[:5] - h)) / (2 * h)
    answer = trigflow(teacher.velocity(x_t, t=t, cond=cond), x_t, t)
    torch.testing.assert_close(answer, difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("step", "steps", "ramp"), [(0, 0, 1.0), (0, 4, 0.25), (2, 4, 0.75), (9, 4, 1.0)])
def test_the_tangent_is_the_papers_with_a_finite_difference_of_f(step, steps, ramp):
    """`-cos^2 (F - dx/ds) - k cos sin (x_s + dF/ds)`, dF/ds along (dx_s, ds) in TrigFlow's own coordinates."""
    teacher, student = parts()
    batch, noise = sample()
    batch, x_t, zero, h = Batch(batch.x, COND, step), interpolate(batch.x, noise, T), torch.zeros_like(T), 1e-5
    u = student.mean_velocity(x_t, t=T, r=zero, cond=COND)
    x_s, dx = (COS + SIN) * x_t, trigflow(teacher.velocity(x_t, t=T, cond=COND), x_t, T)

    def f_at(offset):
        s = S + offset
        t, x = linear_time(s), (x_s + offset * dx) / (s.cos() + s.sin())[:, None]
        return trigflow(student.mean_velocity(x, t=t, r=zero, cond=COND), x, t)

    change = (f_at(h) - f_at(-h)) / (2 * h)
    expected = -(COS**2) * (trigflow(u, x_t, T) - dx) - ramp * COS * SIN * (x_s + change)
    objective = ContinuousConsistency(teacher, student, Forward(), warmup_steps=steps)
    g = objective.tangent(x_t, u.detach(), batch, t=T)
    torch.testing.assert_close(g, expected, rtol=1e-6, atol=1e-8)
    assert (ramp * COS * SIN * (x_s + change))[:5].norm(dim=1).min() > 1e-2  # the derivative matters here


def test_the_tangent_vanishes_at_the_exact_flow_map_alone():
    teacher, (batch, noise) = mixture(), sample()
    x_t, zero, norms = interpolate(batch.x, noise, T), torch.zeros_like(T), []
    for bend in (0.0, 0.1):
        student = bent(bend, steps=20)
        u = student.mean_velocity(x_t, t=T, r=zero, cond=COND).detach()
        g = ContinuousConsistency(teacher, student, Forward()).tangent(x_t, u, batch, t=T)
        norms.append(g.norm(dim=1))
    assert norms[0].max() < 1e-6
    assert norms[1][:5].min() > 1e-3
    assert norms[1][5] == 0  # cos s = 0 at pure noise


def test_the_gradient_is_the_limit_of_discrete_consistency():
    """`-2 g dF` against `2 df/dt df` over a small step, row by row: their ratio is (1 - t) (t^2 + (1 - t)^2) / t."""
    teacher, (batch, noise) = mixture(), sample()
    h, offset, gradients = 1e-4, 1e6, []
    for build in (
        lambda s: ContinuousConsistency(teacher, s, Forward(), offset=offset).at(batch, t=T, noise=noise),
        lambda s: Consistency(teacher, s, s, solver=euler_step).at(batch, t=T, s=T - h, noise=noise),
    ):
        student = bent(0.3)
        build(student).value.double().sum().backward()
        gradients.append(student.bend.grad)
    ratio = (1 - T) * (T**2 + (1 - T) ** 2) / T
    torch.testing.assert_close(gradients[0] * offset, ratio * gradients[1] / h, rtol=0.01, atol=1e-5)
    assert gradients[0][:5].abs().min() * offset > 1e-3


def test_loss_and_gradient_are_those_of_a_normalized_tangent():
    teacher, student = parts()
    batch, noise = sample()
    x_t, zero = interpolate(batch.x, noise, T), torch.zeros_like(T)
    objective = ContinuousConsistency(teacher, student, Forward(), offset=0.3)
    u = student.mean_velocity(x_t, t=T, r=zero, cond=COND)
    g = objective.tangent(x_t, u.detach(), batch, t=T)
    g = g / (g.square().mean(1, keepdim=True).sqrt() + 0.3)
    loss = objective.at(batch, t=T, noise=noise)
    torch.testing.assert_close(loss.value, g.square().mean(1).float())
    weights = list(student.parameters())
    expected = torch.autograd.grad(-(g * trigflow(u, x_t, T)).mean(1).sum() * 2, weights)
    for mine, theirs in zip(torch.autograd.grad(loss.value.sum(), weights), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_learned_weight_starts_as_none_and_settles_at_the_inverse_loss():
    teacher, student = parts()
    batch, noise = sample()
    plain = ContinuousConsistency(teacher, student, Forward()).at(batch, t=T, noise=noise).value.detach()
    weight = TimeWeight().double()
    weighted = ContinuousConsistency(teacher, student, Forward(), weight=weight)
    torch.testing.assert_close(weighted.at(batch, t=T, noise=noise).value, plain)
    slopes = []
    for shift in (-0.5, 0.0, 0.5):  # of w, from the logarithm of the inverse loss at one time
        torch.nn.init.constant_(weight.last.bias, shift - float(plain[0].log()))
        value = weighted.at(batch, t=T, noise=noise).value[0]
        torch.testing.assert_close(value, torch.tensor(shift).exp() + plain[0].log() - shift, rtol=1e-4, atol=1e-5)
        slopes.append(torch.autograd.grad(value, weight.last.bias)[0].item())
    torch.testing.assert_close(torch.tensor(slopes), torch.tensor([-0.5, 0.0, 0.5]).exp() - 1, rtol=1e-4, atol=1e-4)
    torch.nn.init.normal_(weight.last.weight)
    weighted.at(batch, t=T, noise=noise).value.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in weight.parameters())


@pytest.mark.parametrize("change", [{"offset": 0.0}, {"offset": float("nan")}, {"warmup_steps": -1}])
def test_impossible_numbers_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ContinuousConsistency(mixture(), bent(0), Forward(), **change)


@pytest.mark.slow
def test_a_short_training_brings_ends_nearer_to_the_teachers():
    def build(teacher, student):
        return ContinuousConsistency(teacher, student, Forward(), warmup_steps=200)

    before, after = short_training(build, steps=500)
    assert after < 0.3 * before
