from dataclasses import replace

import pytest
import torch
from known_maps import COND, bent, mixture, order, sample, short_training

from hidistill import sampling
from hidistill.objectives.regression import Paired, Regression, Solved, stored
from hidistill.teachers.mixture import ExactFlowMap
from hidistill.teachers.mlp import MLP
from hidistill.types import Batch


@pytest.mark.parametrize(("solver", "expected"), [(sampling.euler, 1), (sampling.heun, 2)])
def test_the_exact_flow_map_misses_by_the_solvers_error_alone(solver, expected):
    teacher, (batch, _) = mixture(), sample()

    def misses(student, steps):
        torch.manual_seed(3)
        return Regression(student, Solved(teacher, steps, solver))(batch).value.mean().sqrt().detach()

    exact = [misses(ExactFlowMap(teacher, 32), steps) for steps in (24, 48)]
    wrong = [misses(bent(0.3), steps) for steps in (24, 48)]
    assert order(exact) == pytest.approx(expected, abs=0.1)
    assert abs(order(wrong)) < 0.2
    assert wrong[-1] > 5 * exact[-1]


def test_the_gradient_vanishes_at_the_exact_flow_map_alone():
    teacher, (batch, _) = mixture(), sample()
    gradients = []
    for bend in (0.0, 0.1):
        torch.manual_seed(3)
        student = bent(bend)
        Regression(student, Solved(teacher, 60))(batch).value.sum().backward()
        gradients.append(student.bend.grad)
    assert gradients[0].norm() < 1e-2 * gradients[1].norm()


def test_stored_pairs_are_those_of_the_batch():
    """The end is the batch's x, the noise its own; both by hand, and after the loop has set the step."""
    student, (batch, noise) = bent(0.2), sample()
    pairs = replace(Paired(batch.x, COND, noise=noise), step=7)
    zero, one = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    expected = (noise - student.mean_velocity(noise, t=one, r=zero, cond=COND) - batch.x).square().mean(1)
    torch.testing.assert_close(Regression(student, stored)(pairs).value, expected.float())
    swapped = Regression(student, stored)(Paired(noise, COND, noise=batch.x)).value
    assert not torch.allclose(swapped, expected.float())


def test_solved_pairs_are_stored_pairs():
    teacher, student, (batch, _) = mixture(), bent(0.2), sample()
    torch.manual_seed(3)
    solved = Regression(student, Solved(teacher, 8))(batch).value
    torch.manual_seed(3)
    noise = torch.randn_like(batch.x)
    ends = sampling.heun(teacher, noise, cond=COND, steps=8)
    assert torch.equal(Regression(student, stored)(Paired(ends, COND, noise=noise)).value, solved)


def test_no_data_takes_part_in_solved_pairs():
    teacher, student, (batch, _) = mixture(), bent(0.2), sample()
    values = []
    for x in (batch.x, batch.x + 5):
        torch.manual_seed(3)
        values.append(Regression(student, Solved(teacher, 4))(Batch(x, COND)).value)
    assert torch.equal(*values)


def test_another_distance_and_the_gradients_way():
    """It judges the end; the gradient passes through the student's jump and not through the teacher's trajectory."""
    teacher = MLP(dim=2, classes=2, width=8, depth=1).double()
    student = teacher.student()
    torch.nn.init.normal_(student.net.leave.weight)
    batch, _ = sample()
    loss = Regression(student, Solved(teacher, 3), lambda a, b: (a - b).abs().sum(1).float())(batch)
    torch.manual_seed(0)
    loss.value.sum().backward()
    assert student.net.leave.weight.grad.abs().max() > 0
    assert all(weight.grad is None for weight in teacher.parameters())


def test_what_cannot_be_is_refused():
    batch, _ = sample()
    with pytest.raises(TypeError, match=r"Paired\(x=ends"):
        Regression(bent(0), stored)(batch)
    with pytest.raises(ValueError, match="0 steps"):
        Solved(mixture(), 0)


def test_a_short_training_brings_ends_nearer_to_the_teachers():
    before, after = short_training(lambda teacher, student: Regression(student, Solved(teacher, 3)), steps=40)
    assert after < 0.4 * before
