from dataclasses import dataclass, field

import pytest
import torch
from known_maps import COND, T, bent, mixture, sample, short_training

from hidistill.derivative import Forward
from hidistill.objectives.improved_meanflow import ImprovedMeanFlow
from hidistill.objectives.meanflow import MeanFlow
from hidistill.path import interpolate
from hidistill.teachers.mlp import MLP
from hidistill.types import Batch

R = torch.tensor([0.0, 0.3, 0.0, 0.6, 0.1, 0.0], dtype=torch.float64)


@dataclass(frozen=True)
class Counting:
    """Forward mode that notes how many rows it was asked for."""

    rows: list[int] = field(default_factory=list)

    def __call__(self, student, x_t, *, t, r, cond, direction):
        self.rows.append(len(x_t))
        return Forward()(student, x_t, t=t, r=r, cond=cond, direction=direction)


def randomized(module):
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return module.double()


def parts():
    teacher = randomized(MLP(dim=2, classes=2, width=16, depth=2))
    return teacher, randomized(teacher.student())


def row_gradients(objective_of, field, bend, count):
    """Each row's gradient with respect to its own bend, for `count` draws of data and noise at fixed times."""
    torch.manual_seed(1)
    batch, noise = sample(count)
    student = bent(bend, rows=len(noise), steps=8)
    objective = objective_of(field, student, Forward(), power=0.0)
    objective.at(batch, t=T.repeat(count), r=R.repeat(count), noise=noise).value.sum().backward()
    return student.bend.grad


def test_the_exact_flow_map_meets_the_field_and_others_do_not():
    teacher, (batch, noise) = mixture(), sample()
    exact, wrong = (
        ImprovedMeanFlow(teacher, bent(bend), Forward(), power=0.0).at(batch, t=T, r=R, noise=noise).value
        for bend in (0.0, 0.3)
    )
    assert exact.max() < 1e-8
    assert wrong.min() > 1e-2


def test_the_composed_velocity_by_finite_differences():
    """V = u + (t - r) d/dt u along the student's own velocity, which is not the field's here."""
    teacher, student = parts()
    batch, noise = sample()
    x_t, h = interpolate(batch.x, noise, T), 1e-5
    own = student.mean_velocity(x_t, t=T, r=T, cond=COND)
    near = [student.mean_velocity(x_t + k * own, t=T + k, r=R, cond=COND) for k in (h, -h)]
    u = student.mean_velocity(x_t, t=T, r=R, cond=COND)
    composed = u + (T - R)[:, None] * (near[0] - near[1]) / (2 * h)
    target = teacher.velocity(x_t, t=T, cond=COND)
    value = ImprovedMeanFlow(teacher, student, Forward(), power=0.0).at(batch, t=T, r=R, noise=noise).value
    torch.testing.assert_close(value, (composed - target).square().sum(1).float())
    other = MeanFlow(teacher, student, Forward(), power=0.0).at(batch, t=T, r=R, noise=noise).value
    assert not torch.allclose(value, other, rtol=0.05)  # whose derivative is along the field
    data = ImprovedMeanFlow(None, student, Forward(), power=0.0).at(batch, t=T, r=R, noise=noise).value
    torch.testing.assert_close(data, (composed - (noise - batch.x)).square().sum(1).float())


def test_the_gradient_is_that_of_u_alone():
    """Nothing flows through the derivative, the student's own velocity or the field."""
    teacher, student = parts()
    batch, noise = sample()
    objective, x_t = ImprovedMeanFlow(teacher, student, Forward(), power=0.0), interpolate(batch.x, noise, T)
    objective.at(batch, t=T, r=R, noise=noise).value.sum().backward()
    rest = objective.rest(x_t, batch, t=T, r=R, first=0)
    constant = objective.target(x_t, batch, t=T, noise=noise) - rest
    error = student.mean_velocity(x_t, t=T, r=R, cond=COND) - constant
    expected = torch.autograd.grad(error.square().sum(), list(student.parameters()))
    for weight, gradient in zip(student.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)
    assert rest.norm(dim=1).min() > 1e-2
    assert all(weight.grad is None for weight in teacher.parameters())


def test_from_data_the_gradient_is_the_fields_in_expectation():
    """Of 600 draws at each of six times: their mean differs by chance alone, and vanishes at the exact flow map."""
    teacher, count = mixture(), 600
    for bend in (0.0, 0.3):
        data = row_gradients(ImprovedMeanFlow, None, bend, count).reshape(count, -1)
        field = row_gradients(ImprovedMeanFlow, teacher, bend, count).reshape(count, -1)
        error = (data - field).std(0) / count**0.5
        assert ((data - field).mean(0).abs() < 4 * error).all()
        if bend:
            assert (field.mean(0).abs() > 8 * error).sum() >= 4  # what chance could not hide
        else:
            assert (field.mean(0).abs() < 0.1 * error).all()


def test_from_data_the_targets_noise_is_not_multiplied_by_the_flow():
    """MeanFlow's is, by dx_r/dx_t, so that a flow that contracts makes the scatter of iMF the larger one."""
    improved, plain = (row_gradients(kind, None, 0.0, 300).reshape(300, -1) for kind in (ImprovedMeanFlow, MeanFlow))
    ratio = improved.std(0) / plain.std(0)
    assert ratio[[2, 4, 5]].max() > 1.3
    assert ratio[3] == pytest.approx(1, abs=0.3)  # over [0.6, 0.7] hardly anything moves


@pytest.mark.parametrize(("share", "rows"), [(0.5, [3]), (0.0, [6]), (1.0, [])])
def test_only_rows_with_an_interval_pay_for_a_derivative(share, rows):
    teacher, student = parts()
    counting, batch = Counting(), Batch(torch.randn(6, 2), COND)
    ImprovedMeanFlow(teacher.float(), student.float(), counting, instantaneous=share)(batch)
    assert counting.rows == rows


def test_leaving_out_the_derivative_where_r_is_t_changes_nothing():
    teacher, student = parts()
    batch, noise = sample()
    r = torch.cat([T[:4], 0.5 * T[4:]])
    objective = ImprovedMeanFlow(teacher, student, Forward())
    every, some, none = (objective.at(batch, t=T, r=r, noise=noise, first=first).value for first in (0, 4, 6))
    torch.testing.assert_close(some, every)
    assert not torch.allclose(none[4:], every[4:])


@pytest.mark.parametrize(("power", "offset"), [(0.5, 1.0), (1.0, 1e-2)])
def test_the_adaptive_weight_by_hand(power, offset):
    teacher, student = parts()
    batch, noise = sample()
    point = {"t": T, "r": R, "noise": noise}
    e = ImprovedMeanFlow(teacher, student, Forward(), power=0.0).at(batch, **point).value
    weighted = ImprovedMeanFlow(teacher, student, Forward(), power=power, offset=offset).at(batch, **point).value
    weight = 1 / (e.detach() + offset) ** power
    torch.testing.assert_close(weighted, weight * e)
    weights = list(student.parameters())[:1]
    (mine,) = torch.autograd.grad(weighted.sum(), weights)
    (expected,) = torch.autograd.grad((weight * e).sum(), weights)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", [{"instantaneous": -0.1}, {"instantaneous": 1.1}, {"power": -1.0}, {"offset": 0.0}])
def test_impossible_numbers_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ImprovedMeanFlow(mixture(), bent(0), Forward(), **change)


@pytest.mark.slow
@pytest.mark.parametrize("data", [False, True])
def test_a_short_training_brings_ends_nearer_to_the_teachers(data):
    def build(teacher, student):
        return ImprovedMeanFlow(None if data else teacher, student, Forward(), power=0.5)

    before, after = short_training(build, steps=200)
    assert after < 0.6 * before
