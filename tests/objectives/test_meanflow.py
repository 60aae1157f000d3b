from dataclasses import dataclass, field

import pytest
import torch
from known_maps import T as KNOWN_T
from known_maps import bent
from known_maps import mixture as known_mixture
from known_maps import sample as known_sample

from hidistill.derivative import Central, Forward
from hidistill.guidance import Guided
from hidistill.objectives.meanflow import MeanFlow
from hidistill.path import interpolate
from hidistill.teachers.dit import DiT, Size
from hidistill.teachers.mixture import ExactFlowMap, Mixture
from hidistill.teachers.mlp import MLP
from hidistill.types import Batch

B = 6
T = torch.tensor([0.2, 0.4, 0.55, 0.7, 0.9, 1.0], dtype=torch.float64)
COND = torch.tensor([0, 1, 2, 0, 1, 2])


@dataclass(frozen=True)
class Counting:
    """Forward mode that notes how many rows it was asked for."""

    rows: list[int] = field(default_factory=list)

    def __call__(self, student, x_t, *, t, r, cond, direction):
        self.rows.append(len(x_t))
        return Forward()(student, x_t, t=t, r=r, cond=cond, direction=direction)


@dataclass(frozen=True)
class GaussianFlowMap:
    """Where the trajectories of one Gaussian go."""

    mean: torch.Tensor
    std: float

    def mean_velocity(self, x_t, *, t, r, cond):
        t, r = t[:, None], r[:, None]
        shrink = (((1 - r) ** 2 * self.std**2 + r**2) / ((1 - t) ** 2 * self.std**2 + t**2)).sqrt()
        x_r = (1 - r) * self.mean + shrink * (x_t - (1 - t) * self.mean)
        return (x_t - x_r) / (t - r)


def mixture():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.5]], dtype=torch.float64)
    stds = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)
    return Mixture(means, stds, classes=[[0], [1, 2]])


def randomized(module):
    """Weights that leave nothing at zero: a fresh DiT answers 0, and a fresh student ignores r."""
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return module.double()


def points():
    teacher = randomized(MLP(dim=2, classes=2, width=16, depth=2))
    return teacher, randomized(teacher.student()), (2,)


def pictures():
    teacher = randomized(DiT(image_size=4, channels=2, patch=2, classes=2, size=Size(16, 2, 2)))
    return teacher, randomized(teacher.student()), (2, 4, 4)


def sample(shape):
    return Batch(torch.randn(B, *shape, dtype=torch.float64), COND), torch.randn(B, *shape, dtype=torch.float64)


def test_the_exact_flow_map_of_a_gaussian_meets_its_own_target():
    """In closed form, `x_r - (1 - r) mean = sqrt(D_r / D_t) (x_t - (1 - t) mean)`, for every r <= t."""
    field = Mixture(torch.tensor([[0.7, -1.2]], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64))
    student, cond = GaussianFlowMap(field.means[0], 0.4), torch.zeros(B, dtype=torch.long)
    batch, noise = Batch(torch.randn(B, 2, dtype=torch.float64), cond), torch.randn(B, 2, dtype=torch.float64)
    x_t, objective = interpolate(batch.x, noise, T), MeanFlow(field, student, Forward())
    for share in (0.0, 0.3, 0.9):
        u = student.mean_velocity(x_t, t=T, r=share * T, cond=cond)
        target = objective.target(x_t, batch, t=T, r=share * T, first=0)
        torch.testing.assert_close(target, u, rtol=1e-9, atol=1e-9)
        assert objective.at(batch, t=T, r=share * T, noise=noise).value.max() < 1e-12
        assert (u - field.velocity(x_t, t=T, cond=cond)).norm(dim=1).min() > 1e-2 * (1 - share)


def test_the_exact_flow_map_of_a_guided_mixture_meets_its_own_target():
    """From r = 0 to r = t, along the guided field; while the velocity alone would be a wrong target."""
    field = Guided(mixture(), 2.0)
    student, r = ExactFlowMap(field, 12), torch.tensor([0.0, 0.0, 0.2, 0.0, 0.899, 1.0], dtype=torch.float64)
    batch, noise = sample((2,))
    x_t = interpolate(batch.x, noise, T)
    u, v = student.mean_velocity(x_t, t=T, r=r, cond=COND), field.velocity(x_t, t=T, cond=COND)
    target = MeanFlow(field, student, Forward()).target(x_t, batch, t=T, r=r, first=0)
    assert (target - u).abs().max() < 1e-3
    assert (u - v)[:4].norm(dim=1).min() > 0.05


@pytest.mark.parametrize("parts", [points, pictures])
def test_forward_and_central_give_the_same_loss(parts):
    teacher, student, shape = parts()
    batch, noise = sample(shape)
    point = {"t": T, "r": 0.2 * T, "noise": noise}
    exact = MeanFlow(teacher, student, Forward(), power=0.0).at(batch, **point).value
    near = MeanFlow(teacher, student, Central(1e-3), power=0.0).at(batch, **point).value
    torch.testing.assert_close(near, exact, rtol=2e-3, atol=0)
    plain = MeanFlow(teacher, student, Forward(), power=0.0).at(batch, t=T, r=T, noise=noise).value
    assert ((exact - plain).abs() > 0.02 * exact).all()  # the derivative matters here


@pytest.mark.parametrize(("share", "rows"), [(0.5, [3]), (0.0, [6]), (1.0, [])])
def test_only_rows_with_an_interval_pay_for_a_derivative(share, rows):
    teacher, student, shape = points()
    counting = Counting()
    MeanFlow(teacher.float(), student.float(), counting, instantaneous=share)(Batch(torch.randn(B, *shape), COND))
    assert counting.rows == rows


def test_leaving_out_the_derivative_where_r_is_t_changes_nothing():
    teacher, student, shape = pictures()
    batch, noise = sample(shape)
    r = torch.cat([T[:4], 0.5 * T[4:]])
    objective = MeanFlow(teacher, student, Forward())
    every, some = (objective.at(batch, t=T, r=r, noise=noise, first=first).value for first in (0, 4))
    torch.testing.assert_close(some, every)


def test_all_instantaneous_is_regression_onto_the_field():
    teacher, student, shape = pictures()
    batch, noise = sample(shape)
    objective = MeanFlow(teacher, student, Forward(), instantaneous=1.0, power=0.0)
    x_t = interpolate(batch.x, noise, T)
    u = student.mean_velocity(x_t, t=T, r=T, cond=COND)
    expected = (u - teacher.velocity(x_t, t=T, cond=COND)).square().flatten(1).sum(1)
    value = objective.at(batch, t=T, r=T, noise=noise, first=B).value
    torch.testing.assert_close(value, expected.float())


@pytest.mark.parametrize(("power", "offset"), [(0.0, 1e-2), (0.5, 1.0), (1.0, 1e-2), (1.0, 3.0)])
def test_the_adaptive_weight_by_hand(power, offset):
    """The value is e / (e + c)^p; its gradient is that of e over (e + c)^p, the weight being constant."""
    teacher, student, shape = points()
    batch, noise = sample(shape)
    e = MeanFlow(teacher, student, Forward(), power=0.0).at(batch, t=T, r=T, noise=noise).value
    weighted = MeanFlow(teacher, student, Forward(), power=power, offset=offset).at(batch, t=T, r=T, noise=noise).value
    weight = 1 / (e.detach() + offset) ** power
    torch.testing.assert_close(weighted, weight * e)
    weights = list(student.parameters())[:1]
    (mine,) = torch.autograd.grad(weighted.sum(), weights)
    (expected,) = torch.autograd.grad((weight * e).sum(), weights)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "steps", "share"), [(0, 4, 0.25), (2, 4, 0.75), (3, 4, 1.0), (900, 4, 1.0), (0, 0, 1.0)]
)
def test_warm_up_grows_the_derivatives_share(step, steps, share):
    """target - v is in proportion to the ramp (step + 1) / warmup_steps, at most 1."""
    teacher, student, shape = points()
    batch, noise = sample(shape)
    batch, x_t, r = Batch(batch.x, batch.cond, step), interpolate(batch.x, noise, T), 0.1 * T
    v = teacher.velocity(x_t, t=T, cond=COND)
    du = Forward()(student, x_t, t=T, r=r, cond=COND, direction=v)
    target = MeanFlow(teacher, student, Forward(), warmup_steps=steps).target(x_t, batch, t=T, r=r, first=0)
    torch.testing.assert_close(target, v - share * (T - r)[:, None] * du)


@pytest.mark.parametrize("parts", [points, pictures])
def test_the_gradient_is_that_of_plain_regression_onto_a_constant(parts):
    """Nothing flows through the target: neither through the derivative nor into the field."""
    teacher, student, shape = parts()
    batch, noise = sample(shape)
    r, x_t = 0.3 * T, interpolate(batch.x, noise, T)
    objective = MeanFlow(teacher, student, Forward(), power=0.0)
    objective.at(batch, t=T, r=r, noise=noise).value.sum().backward()
    target = objective.target(x_t, batch, t=T, r=r, first=0)
    error = student.mean_velocity(x_t, t=T, r=r, cond=COND) - target
    expected = torch.autograd.grad(error.square().sum(), list(student.parameters()))
    for weight, gradient in zip(student.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)
    assert all(weight.grad is None for weight in teacher.parameters())


def test_conditions_may_be_mappings():
    @dataclass(frozen=True)
    class Unpacked:
        student: object

        def velocity(self, x_t, *, t, cond):
            return self.student.velocity(x_t, t=t, cond=cond["label"])

        def mean_velocity(self, x_t, *, t, r, cond):
            return self.student.mean_velocity(x_t, t=t, r=r, cond=cond["label"])

    teacher, student, shape = points()
    batch, noise = sample(shape)
    plain = MeanFlow(teacher, student, Forward()).at(batch, t=T, r=0.5 * T, noise=noise).value
    named = Batch(batch.x, {"label": COND})
    value = MeanFlow(Unpacked(teacher), Unpacked(student), Forward()).at(named, t=T, r=0.5 * T, noise=noise).value
    torch.testing.assert_close(value, plain)


@pytest.mark.parametrize(
    "change", [{"instantaneous": -0.1}, {"instantaneous": 1.1}, {"power": -1.0}, {"offset": 0.0}, {"warmup_steps": -1}]
)
def test_impossible_numbers_are_refused(change):
    teacher, student, _ = points()
    with pytest.raises(ValueError, match=next(iter(change))):
        MeanFlow(teacher, student, Forward(), **change)


def test_without_a_field_the_velocity_is_that_of_data_and_noise():
    """As the target and as the direction of the derivative."""
    _, student, shape = points()
    batch, noise = sample(shape)
    x_t, r, v = interpolate(batch.x, noise, T), 0.3 * T, noise - batch.x
    du = Forward()(student, x_t, t=T, r=r, cond=COND, direction=v)
    error = student.mean_velocity(x_t, t=T, r=r, cond=COND) - (v - (T - r)[:, None] * du)
    objective = MeanFlow(None, student, Forward(), power=0.0)
    value = objective.at(batch, t=T, r=r, noise=noise).value
    torch.testing.assert_close(value, error.square().sum(1).float())
    with pytest.raises(ValueError, match="neither a field nor noise"):
        objective.target(x_t, batch, t=T, r=r, first=0)


@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_from_data_the_gradient_is_the_fields_in_expectation(bend):
    """Of 600 draws at each of six times: their mean differs by chance alone, and vanishes at the exact flow map."""
    count, field = 600, known_mixture()
    t, r = KNOWN_T.repeat(count), (0.2 * KNOWN_T).repeat(count)
    batch, noise = known_sample(count)
    gradients = []
    for source in (None, field):
        student = bent(bend, rows=len(noise), steps=8)
        loss = MeanFlow(source, student, Forward(), power=0.0).at(batch, t=t, r=r, noise=noise)
        loss.value.sum().backward()
        gradients.append(student.bend.grad.reshape(count, -1))
    data, marginal = gradients
    error = (data - marginal).std(0) / count**0.5
    assert ((data - marginal).mean(0).abs() < 4 * error).all()
    if bend:
        assert (marginal.mean(0).abs() > 5 * error).all()  # what chance could not hide
    else:
        assert (marginal.mean(0).abs() < 0.1 * error).all()
