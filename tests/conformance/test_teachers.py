"""Every teacher, and the student it gives, through the same checks. A new family adds one line to `FAMILIES`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import small_originals
import small_transformers
import small_unets
import torch
from randomized import randomized
from torch import nn

from hidistill.derivative import Forward
from hidistill.guidance import Guided
from hidistill.path import (
    data_to_velocity,
    interpolate,
    noise_to_velocity,
    rows_of,
    score_to_velocity,
    velocity_to_data,
    velocity_to_noise,
)
from hidistill.sampling import heun
from hidistill.teachers.dit import DiT
from hidistill.teachers.mixture import ExactFlowMap, Mixture
from hidistill.teachers.mlp import MLP
from hidistill.teachers.video import VideoDiT
from hidistill.types import Student, Teacher

MEANS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)
STDS = torch.tensor([[0.3, 0.4], [0.5, 0.5], [0.8, 0.2]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
CLASSES = [[0], [1, 2]]


def mixture():
    return Mixture(MEANS, STDS, classes=CLASSES, weights=WEIGHTS)


def dit(classes=2, **options):
    return randomized(DiT(image_size=4, channels=2, patch=2, classes=classes, size="mini", taps=(0, 3), **options))


def video(classes=2):
    sizes = {"frames": 3, "image_size": 4, "channels": 2, "patch": 2, "dim": 32, "depth": 2, "heads": 2}
    return randomized(VideoDiT(classes=classes, taps=(0, 1), **sizes))


def labels():
    return torch.tensor([0, 1, 0, 1, 1])


@dataclass(frozen=True)
class Family:
    """`cond` gives the conditions of five rows, of which rows 0 and 2, and rows 1, 3 and 4, are alike."""

    teacher: Callable[[], Any]
    shape: tuple[int, ...]
    student: Callable[[Any], Student] | None = lambda teacher: teacher.student()
    conditional: bool = True
    cond: Callable[[], Any] = labels


FAMILIES = {
    "mixture": Family(mixture, (2,), student=lambda teacher: teacher.student(10)),
    "mixture without classes": Family(
        lambda: Mixture(MEANS, STDS), (2,), student=lambda teacher: teacher.student(10), conditional=False
    ),
    "mlp": Family(lambda: randomized(MLP(dim=2, classes=2, width=16, depth=2)), (2,)),
    "mlp without classes": Family(
        lambda: randomized(MLP(dim=2, classes=0, width=16, depth=2)), (2,), conditional=False
    ),
    "dit": Family(dit, (2, 4, 4)),
    "dit with pixel layers": Family(lambda: dit(activation="silu", pixel_channels=6), (2, 4, 4)),
    "video dit": Family(video, (3, 2, 4, 4)),
    "video dit without classes": Family(lambda: video(classes=0), (3, 2, 4, 4), conditional=False),
    "guided dit": Family(lambda: Guided(dit(), 2.0, 0.0, 0.8), (2, 4, 4), student=None),
}
SHELVES = (small_transformers, small_unets, small_originals)
FOREIGN = {name: Family(**given) for shelf in SHELVES for name, given in shelf.FAMILIES.items()}
FAMILIES |= FOREIGN
B = 5
T = torch.tensor([0.0213, 0.2137, 0.5541, 0.7813, 1.0], dtype=torch.float64)


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def query(family, dtype=torch.float64):
    cond = family.cond() if family.conditional else torch.zeros(B, dtype=torch.long)
    if not isinstance(cond, torch.Tensor):
        cond = {key: value.to(dtype) if value.is_floating_point() else value for key, value in cond.items()}
    teacher = family.teacher()
    inner = teacher.teacher if isinstance(teacher, Guided) else teacher
    inner.to(dtype)
    return teacher, torch.randn(B, *family.shape, dtype=torch.float64).to(dtype), {"t": T.to(dtype), "cond": cond}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_velocity_keeps_shape_and_dtype(family, dtype):
    teacher, x_t, point = query(family, dtype)
    assert isinstance(teacher, Teacher)
    velocity = teacher.velocity(x_t, **point)
    assert velocity.shape == x_t.shape
    assert velocity.dtype == dtype
    assert velocity.isfinite().all()


def test_velocity_keeps_dtype_under_autocast(family):
    teacher, x_t, point = query(family, torch.float32)
    exact = teacher.velocity(x_t, **point)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = teacher.velocity(x_t, **point)
    assert velocity.dtype == torch.float32
    assert (velocity - exact).norm() < 0.05 * exact.norm()


def test_features_have_the_promised_channels(family):
    teacher, x_t, point = query(family)
    features = teacher.features(x_t, **point)
    assert [layer.shape[2] for layer in features] == list(teacher.feature_channels)
    assert all(layer.ndim == 3 and len(layer) == B for layer in features)


def test_probe_is_velocity_and_features(family):
    teacher, x_t, point = query(family)
    velocity, features = teacher.probe(x_t, **point)
    torch.testing.assert_close(velocity, teacher.velocity(x_t, **point))
    for layer, own in zip(features, teacher.features(x_t, **point), strict=True):
        torch.testing.assert_close(layer, own)


def test_features_depend_differentiably_on_the_sample(family):
    teacher, x_t, point = query(family)
    x_t.requires_grad_()
    for layer in teacher.probe(x_t, **point).features:
        (gradient,) = torch.autograd.grad(layer.square().sum(), x_t, retain_graph=True)
        assert gradient.norm() > 1e-3


def test_null_matters_iff_the_condition_does(family):
    teacher, x_t, point = query(family)
    null = teacher.null(point["cond"])
    again = teacher.null(null)
    if isinstance(null, torch.Tensor):
        assert torch.equal(again, null)
    else:
        assert all(torch.equal(again[key], null[key]) for key in null | again)
    change = (teacher.velocity(x_t, t=point["t"], cond=null) - teacher.velocity(x_t, **point)).flatten(1).norm(dim=1)
    # Near data a point may leave no doubt about its component, and then the class says nothing more.
    assert change.max() > 1e-2 if family.conditional else (change == 0).all()


def test_time_matters(family):
    teacher, x_t, point = query(family)
    later = teacher.velocity(x_t, t=(point["t"] - 0.01).clamp(0, 1), cond=point["cond"])
    assert ((later - teacher.velocity(x_t, **point)).flatten(1).norm(dim=1) > 1e-6).all()


def test_rows_are_independent(family):
    teacher, x_t, point = query(family)
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = teacher.probe(x_t[order], t=point["t"][order], cond=rows_of(point["cond"], order))
    probe = teacher.probe(x_t, **point)
    torch.testing.assert_close(moved.velocity, probe.velocity[order])
    for layer, own in zip(moved.features, probe.features, strict=True):
        torch.testing.assert_close(layer, own[order])
    alone = teacher.velocity(x_t[2:3], t=point["t"][2:3], cond=rows_of(point["cond"], slice(2, 3)))
    torch.testing.assert_close(alone, probe.velocity[2:3])


STUDENTS = [name for name, family in FAMILIES.items() if family.student]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_begins_as_its_teacher_at_r_equal_t(name):
    teacher, x_t, point = query(FAMILIES[name])
    student = FAMILIES[name].student(teacher)
    assert isinstance(student, Student)
    u = student.mean_velocity(x_t, r=point["t"], **point)
    assert u.dtype == x_t.dtype
    torch.testing.assert_close(u, teacher.velocity(x_t, **point), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "dit", "video dit"])
def test_a_student_is_its_own_copy_and_can_learn_the_interval(name):
    """The last layer of the interval's embedding starts at zero, with a gradient that does not vanish."""
    teacher, x_t, point = query(FAMILIES[name])
    student = FAMILIES[name].student(teacher)
    assert not {id(weight) for weight in student.parameters()} & {id(weight) for weight in teacher.parameters()}
    last = student.interval.layers[2].weight.requires_grad_()
    assert last.count_nonzero() == 0
    student.mean_velocity(x_t, r=point["t"] / 2, **point).square().sum().backward()
    assert last.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["mlp", "dit", "video dit"])
def test_a_network_is_rebuilt_from_its_configuration(name):
    teacher, x_t, point = query(FAMILIES[name])
    twin = type(teacher).from_config(teacher.config).double()
    twin.load_state_dict(teacher.state_dict())
    torch.testing.assert_close(twin.velocity(x_t, **point), teacher.velocity(x_t, **point))


@pytest.mark.parametrize("name", STUDENTS)
def test_derivative_of_a_student_equals_differences(name):
    teacher, x_t, point = query(FAMILIES[name])
    student, t, cond = FAMILIES[name].student(teacher), point["t"].clamp(0.1, 0.9), point["cond"]
    if isinstance(student, nn.Module):
        randomized(student)
    r, direction, h = 0.3 * t, torch.randn_like(x_t), 1e-6
    du = Forward()(student, x_t, t=t, r=r, cond=cond, direction=direction)
    ends = [student.mean_velocity(x_t + s * direction, t=t + s, r=r, cond=cond) for s in (h, -h)]
    difference = (ends[0] - ends[1]) / (2 * h)
    assert (du - difference).norm() < 1e-5 * du.norm()


@pytest.mark.parametrize("name", ["mixture", "mlp", "dit", "video dit"])
def test_a_condition_of_another_kind_is_refused(name):
    teacher, x_t, point = query(FAMILIES[name])
    with pytest.raises(TypeError, match="conditioned by a tensor of labels; a dict came"):
        teacher.velocity(x_t, t=point["t"], cond={"label": point["cond"]})


def test_velocity_of_one_gaussian_in_numpy():
    """Regression of noise - x_0 on x_t, both jointly Gaussian with it, from their covariances alone."""
    mean, std = np.array([0.7, -1.2]), np.array([0.6, 1.7])
    one = Mixture(torch.from_numpy(mean)[None], torch.from_numpy(std)[None])
    x_t = torch.randn(B, 2, dtype=torch.float64)
    velocity = one.velocity(x_t, t=T, cond=torch.zeros(B, dtype=torch.long)).numpy()
    for row, t in enumerate(T.numpy()):
        covariance, variance = t - (1 - t) * std**2, (1 - t) ** 2 * std**2 + t**2
        expected = -mean + covariance / variance * (x_t[row].numpy() - (1 - t) * mean)
        np.testing.assert_allclose(velocity[row], expected, rtol=1e-12, atol=1e-12)


def test_velocity_of_a_mixture_is_the_regression_of_noise_minus_data():
    """Importance-weighted mean of noise - x_0 over drawn data, without the formula for the posterior."""
    torch.manual_seed(1)
    x_0 = mixture().sample(torch.full((400_000,), 2))
    t, x_t = torch.tensor([0.6, 0.9], dtype=torch.float64), torch.tensor([[0.3, 0.2], [-0.5, 0.8]], dtype=torch.float64)
    velocity = mixture().velocity(x_t, t=t, cond=torch.tensor([2, 2]))
    for row in range(2):
        noise = (x_t[row] - (1 - t[row]) * x_0) / t[row]
        weights = (-noise.square().sum(1) / 2).softmax(0)
        estimate = (weights[:, None] * (noise - x_0)).sum(0)
        torch.testing.assert_close(velocity[row], estimate, rtol=0, atol=0.02)


def test_score_of_a_mixture_is_the_gradient_of_its_density_and_agrees_with_the_velocity():
    teacher, x_t = mixture(), torch.randn(B, 2, dtype=torch.float64, requires_grad=True)
    cond = torch.tensor([0, 1, 2, 1, 2])
    members = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)[cond]
    t = T[:, None, None]
    stds = ((1 - t).square() * STDS.square() + t.square()).sqrt()
    log_density = torch.distributions.Normal((1 - t) * MEANS, stds).log_prob(x_t[:, None]).sum(2)
    total = (log_density + WEIGHTS.log().where(members, -torch.inf)).logsumexp(1)
    (expected,) = torch.autograd.grad(total.sum(), x_t)
    x_t = x_t.detach()
    torch.testing.assert_close(teacher.score(x_t, t=T, cond=cond), expected)
    early = slice(0, 4)  # at t = 1 the score says nothing about the data
    velocity = score_to_velocity(expected[early], x_t[early], T[early])
    torch.testing.assert_close(teacher.velocity(x_t, t=T, cond=cond)[early], velocity)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_integrating_the_velocity_from_noise_gives_the_data(label):
    """Time direction, sign and scale: any of them wrong, and the moments are."""
    torch.manual_seed(2)
    noise = torch.randn(8_000, 2, dtype=torch.float64)
    sample = heun(mixture(), noise, cond=torch.full((8_000,), label), steps=40)
    members = [*CLASSES, [0, 1, 2]][label]
    weights, means, stds = WEIGHTS[members] / WEIGHTS[members].sum(), MEANS[members], STDS[members]
    mean = weights @ means
    variance = weights @ (stds.square() + means.square()) - mean.square()
    torch.testing.assert_close(sample.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(sample.var(0), variance, rtol=0.06, atol=0)


def test_samples_of_a_mixture_have_its_moments():
    sample = mixture().sample(torch.full((20_000,), 1), generator=torch.Generator().manual_seed(0))
    mean = 0.4 * MEANS[1] + 0.6 * MEANS[2]
    variance = 0.4 * (STDS[1] ** 2 + MEANS[1] ** 2) + 0.6 * (STDS[2] ** 2 + MEANS[2] ** 2) - mean**2
    torch.testing.assert_close(sample.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(sample.var(0), variance, rtol=0.05, atol=0)


@pytest.mark.parametrize("low", [0.0, 0.2])
def test_exact_flow_map_satisfies_the_meanflow_identity(low):
    """`u = v - (t - r) du/dt` along v, while u and v differ by far more than the residual."""
    teacher, x_t = mixture(), torch.randn(4, 2, dtype=torch.float64)
    t, cond = torch.tensor([0.3, 0.5541, 0.8, 1.0], dtype=torch.float64), torch.tensor([0, 1, 2, 2])
    r, student = torch.full_like(t, low), ExactFlowMap(teacher, 40)
    v = teacher.velocity(x_t, t=t, cond=cond)
    u = student.mean_velocity(x_t, t=t, r=r, cond=cond)
    du = Forward()(student, x_t, t=t, r=r, cond=cond, direction=v)
    assert (u - (v - (t - r)[:, None] * du)).abs().max() < 1e-5
    assert (u - v).norm(dim=1).min() > 0.05


def test_integration_of_the_flow_map_is_of_fourth_order():
    x_t, r = torch.randn(4, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    point = {"t": torch.ones_like(r), "r": r, "cond": torch.full((4,), 2)}
    exact = ExactFlowMap(mixture(), 320).mean_velocity(x_t, **point)
    errors = [(ExactFlowMap(mixture(), n).mean_velocity(x_t, **point) - exact).norm() for n in (40, 80)]
    assert 11 < errors[0] / errors[1] < 22


def test_other_schedules_and_predictions_are_the_same_field():
    """Variance-preserving paths with noise prediction, variance-exploding ones with data prediction (any t < 1).

    Both networks' answers are computed from the conditional Gaussians on their own path, at the time of equal
    signal-to-noise; `x_tau = x / (alpha + sigma)`, `tau = sigma / (alpha + sigma)`.
    """
    teacher, cond = mixture(), torch.tensor([0, 1, 2, 2])
    t, x_t = T[:4], torch.randn(4, 2, dtype=torch.float64)
    velocity = teacher.velocity(x_t, t=t, cond=cond)
    ratio = t / (1 - t)
    for alpha in (1 / (1 + ratio**2).sqrt(), torch.ones_like(t)):
        sigma = alpha * ratio
        x = x_t * (alpha + sigma)[:, None]
        data, noise = predictions(x, alpha, sigma, cond)
        torch.testing.assert_close(data_to_velocity(data, x_t, t), velocity, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(noise_to_velocity(noise, x_t, t), velocity, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(velocity_to_data(velocity, x_t, t), data, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(velocity_to_noise(velocity, x_t, t), noise, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(interpolate(data, noise, t), x_t, rtol=1e-9, atol=1e-9)


def predictions(x, alpha, sigma, cond):
    """E[x_0 | x] and E[noise | x] for `x = alpha x_0 + sigma noise`, x_0 from the mixture."""
    members = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)[cond]
    alpha, sigma = alpha[:, None, None], sigma[:, None, None]
    stds = (alpha.square() * STDS.square() + sigma.square()).sqrt()
    log_density = torch.distributions.Normal(alpha * MEANS, stds).log_prob(x[:, None]).sum(2)
    posterior = (log_density + WEIGHTS.log().where(members, -torch.inf)).softmax(1)[:, :, None]
    data = MEANS + alpha * STDS.square() / stds.square() * (x[:, None] - alpha * MEANS)
    return (posterior * data).sum(1), (posterior * sigma / stds.square() * (x[:, None] - alpha * MEANS)).sum(1)


BAD_MIXTURES = [
    ({"stds": STDS[:2]}, "must be"),
    ({"stds": 0 * STDS}, "must be positive"),
    ({"weights": torch.tensor([1.0, 0.0, 1.0])}, "must be positive"),
    ({"weights": torch.ones(2)}, "must be"),
    ({"classes": [[0], [3]]}, "class 1 has components"),
    ({"classes": [[]]}, "class 0 has components"),
]


@pytest.mark.parametrize(("change", "message"), BAD_MIXTURES)
def test_impossible_mixtures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Mixture(**({"means": MEANS, "stds": STDS} | change))


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="1 or more"):
        MLP(dim=0, classes=2)
    with pytest.raises(ValueError, match="build it with dim"):
        MLP(dim=3, classes=2).velocity(torch.zeros(1, 2), t=torch.zeros(1), cond=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="1 step or more"):
        ExactFlowMap(mixture(), 0)
    with pytest.raises(ValueError, match=r"use one of \[1, 3, 9\]"):
        DiT(image_size=9, channels=1, classes=0, patch=2)
    with pytest.raises(ValueError, match=r"this DiT takes \(2, 4, 4\)"):
        dit().velocity(torch.zeros(1, 2, 4, 8), t=torch.zeros(1), cond=torch.zeros(1, dtype=torch.long))
