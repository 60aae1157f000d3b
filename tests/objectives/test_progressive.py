from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from known_maps import COND, T, bent, mixture, sample, short_training

from hidistill import sampling
from hidistill.objectives.progressive import EulerMap, Progressive, rounds
from hidistill.path import interpolate
from hidistill.teachers.mixture import ExactFlowMap
from hidistill.teachers.mlp import MLP
from hidistill.types import Batch, Student


@dataclass(frozen=True)
class Perfect:
    """A student that answers its round's target."""

    previous: Student

    def mean_velocity(self, x_t, *, t, r, cond):
        return Progressive(self.previous, bent(0), 1).target(x_t, t=t, r=r, cond=cond)


def chain(teacher, steps):
    """The last map of perfect rounds."""
    student = EulerMap(teacher)
    for _ in rounds(steps):
        student = Perfect(student)
    return student


def ends():
    return torch.ones_like(T), torch.zeros_like(T)


@pytest.mark.parametrize(("steps", "expected"), [(2, (1,)), (8, (4, 2, 1)), (64, (32, 16, 8, 4, 2, 1))])
def test_rounds_halve_down_to_one_step(steps, expected):
    assert rounds(steps) == expected


@pytest.mark.parametrize("steps", [0, 1, 3, 12, -4])
def test_steps_that_cannot_be_halved_are_refused(steps):
    with pytest.raises(ValueError, match="power of two"):
        rounds(steps)


def test_after_perfect_rounds_one_step_is_the_mean_of_the_teachers_answers_along_euler():
    """And so it lands where Euler's method lands, to rounding."""
    teacher, (_, noise) = mixture(), sample()
    t, r = ends()
    u = chain(teacher, 64).mean_velocity(noise, t=t, r=r, cond=COND)
    x, answers = noise, []
    for i in range(64):
        answers.append(teacher.velocity(x, t=torch.full_like(t, 1 - i / 64), cond=COND))
        x = x - answers[-1] / 64
    torch.testing.assert_close(u, torch.stack(answers).mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(noise - u, sampling.euler(teacher, noise, cond=COND, steps=64), rtol=0, atol=1e-12)


def test_finer_grids_approach_the_mean_velocity_at_first_order():
    teacher, (_, noise) = mixture(), sample()
    t, r = ends()
    exact = ExactFlowMap(teacher, 40).mean_velocity(noise, t=t, r=r, cond=COND)
    errors = [
        float((chain(teacher, steps).mean_velocity(noise, t=t, r=r, cond=COND) - exact).norm()) for steps in (64, 128)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.05)
    assert errors[1] > 1e-3  # far above rounding


def test_the_loss_is_zero_for_a_perfect_round_alone():
    """Two exact steps are one: a true flow map is its own halving. A single Euler step is not two."""
    teacher, (batch, noise) = mixture(), sample()
    point = {"t": T, "r": T / 2, "noise": noise}
    exact, previous = ExactFlowMap(teacher, 30), ExactFlowMap(teacher, 24)
    assert Progressive(previous, exact, 2).at(batch, **point).value.max() < 1e-12
    assert Progressive(EulerMap(teacher), Perfect(EulerMap(teacher)), 2).at(batch, **point).value.max() == 0
    assert Progressive(previous, bent(0.1), 2).at(batch, **point).value.min() > 1e-5
    assert Progressive(EulerMap(teacher), EulerMap(teacher), 2).at(batch, **point).value.min() > 1e-5


def test_the_target_is_the_papers():
    """Its denoised sample, (z'' - s''/s z) / (a'' - s''/s a) with a = 1 - t and s = t, is x_t - t target."""
    teacher, (batch, noise) = mixture(), sample()
    r, x_t = T / 4, interpolate(batch.x, noise, T)
    target = Progressive(EulerMap(teacher), bent(0), 2).target(x_t, t=T, r=r, cond=COND)
    middle, x_r = (T + r) / 2, x_t
    for t, h in ((T, T - middle), (middle, middle - r)):
        x_r = x_r - h[:, None] * teacher.velocity(x_r, t=t, cond=COND)
    ratio = r / T
    papers = (x_r - ratio[:, None] * x_t) / (1 - r - ratio * (1 - T))[:, None]
    torch.testing.assert_close(x_t - T[:, None] * target, papers)


def test_the_steps_of_the_grid_are_drawn_each_as_often():
    seen = []

    class Noting(MLP):
        def velocity(self, x_t, *, t, cond):
            seen.append(t)
            return super().velocity(x_t, t=t, cond=cond)

    torch.manual_seed(0)
    teacher = Noting(dim=2, classes=2, width=8, depth=1)
    student = MLP(dim=2, classes=2, width=8, depth=1).student()
    Progressive(EulerMap(teacher), student, 4)(Batch(torch.randn(4000, 2), COND[:1].expand(4000)))
    first, second = seen
    times, counts = first.unique(return_counts=True)
    torch.testing.assert_close(times, torch.tensor([0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(second, first - 0.125)
    assert ((counts - 1000).abs() < 140).all()  # five standard deviations


def test_weight_and_routing():
    """The weight multiplies; nothing flows into the map of the round before."""
    student = MLP(dim=2, classes=2, width=8, depth=1).student().double()
    previous = deepcopy(student)
    torch.nn.init.normal_(previous.net.leave.weight)
    batch, noise = sample()
    point = {"t": T, "r": T / 2, "noise": noise}
    plain = Progressive(previous, student, 2).at(batch, **point).value
    weighted = Progressive(previous, student, 2, weight=lambda t: t**2).at(batch, **point).value
    torch.testing.assert_close(weighted, (T**2 * plain).float())
    weighted.sum().backward()
    assert all(weight.grad is not None for weight in student.net.parameters())
    assert all(weight.grad is None for weight in previous.parameters())


def test_a_round_needs_steps_and_another_map():
    student = bent(0)
    with pytest.raises(ValueError, match="0 steps"):
        Progressive(EulerMap(mixture()), student, 0)
    with pytest.raises(ValueError, match=r"deepcopy\(student\)"):
        Progressive(student, student, 1)


@pytest.mark.slow
def test_three_short_rounds_bring_ends_nearer_to_the_teachers():
    distances, student = [], MLP(dim=2, classes=2, width=32, depth=2).student()
    for index, steps in enumerate(rounds(8)):
        previous = deepcopy(student)

        def build(teacher, student, previous=previous, steps=steps, index=index):
            return Progressive(previous if index else EulerMap(teacher), student, steps)

        distances += short_training(build, steps=200, student=student)
    assert distances[-1] < 0.4 * distances[0]
