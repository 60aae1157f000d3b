from copy import deepcopy
from dataclasses import dataclass, field

import pytest
import torch
from known_maps import COND, T, bent, mixture, order, sample, short_training

from hidistill import sampling
from hidistill.objectives.consistency import Consistency, PseudoHuber, edm_grid, end, euler_step, heun_step, squared
from hidistill.teachers.mixture import ExactFlowMap
from hidistill.teachers.mlp import MLP
from hidistill.types import Batch

H = (0.08, 0.04, 0.02)


@dataclass(frozen=True)
class Noting:
    """Heun's step that notes its times."""

    seen: list = field(default_factory=list)

    def __call__(self, field, x_t, *, t, s, cond):
        self.seen.append((t, s))
        return heun_step(field, x_t, t=t, s=s, cond=cond)


def randomized(module):
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return module.double()


def parts():
    teacher = randomized(MLP(dim=2, classes=2, width=16, depth=2))
    return teacher, randomized(teacher.student())


@pytest.mark.parametrize(("solver", "expected"), [(euler_step, 2), (heun_step, 3)])
def test_the_exact_flow_map_is_consistent_up_to_the_solvers_error(solver, expected):
    """The gap between its ends is the local error of one step; that of a wrong map falls like the step itself."""
    teacher, (batch, noise) = mixture(), sample()
    exact, wrong = ExactFlowMap(teacher, 32), bent(0.3)
    gaps = {
        student: [
            Consistency(teacher, student, student, solver=solver).at(batch, t=T, s=T - h, noise=noise).metrics["gap"]
            for h in H
        ]
        for student in (exact, wrong)
    }
    assert order(gaps[exact]) == pytest.approx(expected, abs=0.1)
    assert order(gaps[wrong]) == pytest.approx(1, abs=0.1)
    assert gaps[wrong][-1] > 10 * gaps[exact][-1]


def test_the_gradient_vanishes_at_the_exact_flow_map_alone():
    teacher, (batch, noise) = mixture(), sample()
    gradients = []
    for bend in (0.0, 0.1):
        student = bent(bend, steps=32)
        Consistency(teacher, student, student).at(batch, t=T, s=T - 0.02, noise=noise).value.sum().backward()
        gradients.append(student.bend.grad)
    assert gradients[0].norm() < 2e-3 * gradients[1].norm()


def test_at_time_0_the_end_is_the_point_itself_whatever_the_network():
    teacher, student = parts()
    batch, noise = sample()
    zero = torch.zeros_like(T)
    assert torch.equal(end(student, noise, t=zero, cond=COND), noise)
    losses = [
        Consistency(teacher, student, target).at(batch, t=T, s=zero, noise=noise).value for target in (student, bent(9))
    ]
    assert torch.equal(*losses)
    further = Consistency(teacher, student, bent(9)).at(batch, t=T, s=T / 2, noise=noise).value
    assert not torch.allclose(further, losses[0])


def test_the_gradient_reaches_the_student_through_its_answer_alone():
    teacher, student = parts()
    target = deepcopy(student)
    batch, noise = sample()
    point = {"t": T, "s": T - 0.1, "noise": noise}
    weights = list(student.parameters())
    same = torch.autograd.grad(Consistency(teacher, student, student).at(batch, **point).value.sum(), weights)
    Consistency(teacher, student, target).at(batch, **point).value.sum().backward()
    for weight, gradient in zip(weights, same, strict=True):
        assert torch.equal(weight.grad, gradient)
    assert all(weight.grad is None for weight in (*target.parameters(), *teacher.parameters()))


def test_distances_by_hand():
    answer, target = torch.tensor([[3.0, 1.0], [0.0, 1e-4]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(squared(answer, target), torch.tensor([4.5, 5e-9]))
    huber = PseudoHuber(0.01)(answer, target)
    torch.testing.assert_close(huber[0], torch.tensor(4.5).sqrt() - 0.01, rtol=1e-4, atol=0)  # far away a line
    torch.testing.assert_close(huber[1], torch.tensor(5e-9 / 0.02), rtol=0.05, atol=0)  # near 0 a parabola


def test_distance_and_weight_are_used():
    teacher, student = parts()
    batch, noise = sample()
    point = {"t": T, "s": T - 0.1, "noise": noise}
    e = Consistency(teacher, student, student).at(batch, **point).value
    huber = Consistency(teacher, student, student, distance=PseudoHuber(0.1)).at(batch, **point).value
    torch.testing.assert_close(huber, (e + 0.01).sqrt() - 0.1)
    weighted = Consistency(teacher, student, student, weight=lambda t: 1 / t).at(batch, **point).value
    torch.testing.assert_close(weighted, (e / T).float())


@pytest.mark.parametrize("grid", [sampling.grid, edm_grid])
def test_neighbors_on_the_grid_are_drawn_each_as_often(grid):
    teacher, student = parts()
    noting = Noting()
    objective = Consistency(teacher.float(), student.float(), student, steps=5, grid=grid, solver=noting)
    objective(Batch(torch.randn(4000, 2), COND[:1].expand(4000)))
    (drawn,) = [torch.stack(pair, 1) for pair in noting.seen]
    pairs, counts = drawn.unique(dim=0, return_counts=True)
    times = torch.tensor(grid(5))
    torch.testing.assert_close(pairs, torch.stack([times[:-1], times[1:]], 1).flip(0))
    assert ((counts - 800).abs() < 120).all()  # five standard deviations


def test_the_grid_of_edm():
    """From its own formula, in sigma = t / (1 - t); its first and last time are the path's ends."""
    times = torch.tensor(edm_grid(18), dtype=torch.float64)
    i = torch.arange(18, dtype=torch.float64)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close((times / (1 - times))[1:-1], sigma[1:])
    assert len(times) == 19
    assert (times[0], times[-1]) == (1, 0)
    assert (times.diff() < 0).all()
    assert edm_grid(1) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "0 steps"),
        ({"grid": lambda n: (1.0, 0.5, 0.1), "steps": 2}, "0.1"),
        ({"grid": lambda n: (1.0, 0.5, 0.0), "steps": 3}, "steps=3"),
        ({"grid": lambda n: (0.0, 1.0), "steps": 1}, "each below the one before"),
    ],
)
def test_impossible_grids_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Consistency(mixture(), bent(0), bent(0), **change)


@pytest.mark.parametrize("c", [0.0, -1.0, float("nan"), float("inf")])
def test_a_corner_is_refused(c):
    with pytest.raises(ValueError, match="c must be positive"):
        PseudoHuber(c)


@pytest.mark.slow
def test_a_short_training_brings_ends_nearer_to_the_teachers():
    def build(teacher, student):
        return Consistency(teacher, student, student, steps=4)

    before, after = short_training(build, steps=400)
    assert after < 0.4 * before
