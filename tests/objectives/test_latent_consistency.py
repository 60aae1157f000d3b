from copy import deepcopy
from dataclasses import dataclass, field

import pytest
import torch
from known_maps import COND, Bent, T, bent, mixture, order, sample, short_training

from hidistill.guidance import Guided
from hidistill.objectives.latent_consistency import GuidedByRow, LatentConsistency
from hidistill.path import interpolate, velocity_to_data, velocity_to_noise
from hidistill.teachers.mixture import ExactFlowMap, Mixture
from hidistill.teachers.mlp import MLP
from hidistill.types import Batch, Teacher

SCALE = torch.tensor([0.0, 1.0, 1.5, 2.0, 3.0, 4.0], dtype=torch.float64)


class Named(Mixture):
    """A mixture whose condition is a mapping, and which notes how many rows it was asked for."""

    def __init__(self):
        plain = mixture()
        super().__init__(plain.means, plain.stds[:, 0], classes=[[0], [1, 2]])
        self.rows = []

    def velocity(self, x_t, *, t, cond):
        self.rows.append(len(x_t))
        assert set(cond) == {"label"}  # the teacher is not told the scale
        return super().velocity(x_t, t=t, cond=cond["label"])

    def null(self, cond):
        return {"label": super().null(cond["label"])}


@dataclass(frozen=True)
class Told:
    """The exact flow map at the scale that its condition brings."""

    teacher: Teacher
    steps: int = 20

    def mean_velocity(self, x_t, *, t, r, cond):
        guided = GuidedByRow(self.teacher, cond["scale"])
        return ExactFlowMap(guided, self.steps).mean_velocity(x_t, t=t, r=r, cond={"label": cond["label"]})


@dataclass(frozen=True)
class Noting:
    """A student that notes what it is asked."""

    asked: list = field(default_factory=list)

    def mean_velocity(self, x_t, *, t, r, cond):
        assert not r.any()
        self.asked.append((t, cond))
        return torch.zeros_like(x_t)


def test_each_row_is_guided_at_its_own_scale_in_one_call():
    teacher, (batch, _) = Named(), sample()
    cond = {"label": COND}
    answer = GuidedByRow(teacher, SCALE).velocity(batch.x, t=T, cond=cond)
    assert teacher.rows == [12]
    for row, scale in enumerate(SCALE.tolist()):
        expected = Guided(mixture(), scale).velocity(batch.x, t=T, cond=COND)[row]
        torch.testing.assert_close(answer[row], expected)
    assert (answer[0] - answer.flip(0)[5]).norm() == 0
    assert (answer - GuidedByRow(teacher, SCALE.flip(0)).velocity(batch.x, t=T, cond=cond))[[0, 3]].norm() > 0.1


def test_a_step_of_ddim_is_one_of_eulers():
    """In its own variables, z_k = a_k x_0 + s_k noise, z_m = a_m x0_hat + s_m noise_hat at matched signal-to-noise."""
    teacher, (batch, noise) = mixture(), sample()
    angles_t, angles_s = torch.linspace(0.4, 1.5, 6).double(), torch.linspace(0.1, 1.2, 6).double()
    (a_t, s_t), (a_s, s_s) = [(angle.cos()[:, None], angle.sin()[:, None]) for angle in (angles_t, angles_s)]
    t, s = (s_t / (a_t + s_t))[:, 0], (s_s / (a_s + s_s))[:, 0]
    x_t = (a_t * batch.x + s_t * noise) / (a_t + s_t)
    velocity = teacher.velocity(x_t, t=t, cond=COND)
    ddim = a_s * velocity_to_data(velocity, x_t, t) + s_s * velocity_to_noise(velocity, x_t, t)
    torch.testing.assert_close(ddim / (a_s + s_s), x_t - (t - s)[:, None] * velocity)


@pytest.mark.parametrize("told", [False, True])
def test_the_exact_guided_flow_map_is_consistent_up_to_one_eulers_step(told):
    """Second order in the length of the skip, at one scale and at a scale for each row; first order for a wrong map."""
    batch, noise = sample()
    if told:
        teacher, scale, drawn = Named(), SCALE, (0.0, 4.0)
        batch = Batch(batch.x, {"label": COND})
        exact = Told(teacher)
    else:
        teacher, drawn = mixture(), 2.0
        scale = torch.full_like(T, drawn)
        exact = ExactFlowMap(Guided(teacher, drawn), 20)
    for student, expected in ((exact, 2), (Bent(exact, torch.full_like(T, 0.3)), 1)):
        objective = LatentConsistency(teacher, student, student, drawn)
        gaps = [objective.at(batch, t=T, s=T - h, scale=scale, noise=noise).metrics["gap"] for h in (0.04, 0.02, 0.01)]
        assert order(gaps) == pytest.approx(expected, abs=0.15)
    assert gaps[-1] > 2e-3


def test_the_gradient_vanishes_at_the_map_of_the_right_scale_alone():
    """A student built at another scale is pulled; that of the scale itself is not."""
    teacher, (batch, noise) = mixture(), sample()
    gradients = []
    for built_at in (2.0, 3.0):
        student = bent(0.0, field=Guided(teacher, built_at))
        objective = LatentConsistency(teacher, student, student, 2.0, huber=1.0)
        scale = torch.full_like(T, 2.0)
        objective.at(batch, t=T, s=T - 0.002, scale=scale, noise=noise).value.sum().backward()
        gradients.append(student.bend.grad)
    assert gradients[0].norm() < 0.1 * gradients[1].norm()


def test_the_huber_loss_and_the_weight_by_hand():
    batch, noise = sample()
    student, target = bent(0.3, steps=4), bent(-0.2, steps=4)
    point = {"t": T, "s": T / 2, "scale": torch.full_like(T, 3.0), "noise": noise}
    x_t = interpolate(batch.x, noise, T)
    x_s = x_t - (T / 2)[:, None] * Guided(mixture(), 3.0).velocity(x_t, t=T, cond=COND)
    zero = torch.zeros_like(T)
    answer = x_t - T[:, None] * student.mean_velocity(x_t, t=T, r=zero, cond=COND)
    goal = x_s - (T / 2)[:, None] * target.mean_velocity(x_s, t=T / 2, r=zero, cond=COND)
    expected = (((answer - goal).square() + 0.01).sqrt() - 0.1).mean(1)
    objective = LatentConsistency(mixture(), student, target, 3.0, huber=0.1)
    torch.testing.assert_close(objective.at(batch, **point).value, expected.float())
    weighted = LatentConsistency(mixture(), student, target, 3.0, huber=0.1, weight=lambda t: t)
    torch.testing.assert_close(weighted.at(batch, **point).value, (T * expected).float())


def test_at_time_0_the_end_is_the_point_itself_whatever_the_network():
    batch, noise = sample()
    zero, scale = torch.zeros_like(T), torch.full_like(T, 2.0)
    losses = [
        LatentConsistency(mixture(), bent(0.3), target, 2.0).at(batch, t=T, s=zero, scale=scale, noise=noise).value
        for target in (bent(0), bent(9))
    ]
    assert torch.equal(*losses)


def test_times_a_skip_apart_and_scales_within_the_interval_are_drawn():
    student, target, rows = Noting(), Noting(), 4000
    batch = Batch(torch.randn(rows, 2), {"label": COND[:1].expand(rows)})
    LatentConsistency(Named(), student, target, (1.5, 3.5), steps=10, skip=3)(batch)
    ((t, cond),), ((s, cond_s),) = student.asked, target.asked
    torch.testing.assert_close(t - s, torch.full_like(t, 0.3))
    times, counts = t.unique(return_counts=True)
    torch.testing.assert_close(times, torch.arange(3, 11) / 10)
    assert ((counts - 500).abs() < 105).all()  # five standard deviations
    scale = cond["scale"]
    assert torch.equal(cond_s["scale"], scale)
    assert 1.5 <= scale.min() < 1.52
    assert 3.48 < scale.max() <= 3.5
    assert abs(scale.mean() - 2.5) < 0.05
    assert abs(torch.corrcoef(torch.stack([scale, t]))[0, 1]) < 0.1


def test_a_fixed_scale_leaves_the_condition_alone():
    student = Noting()
    LatentConsistency(mixture(), student, student, 2.0)(sample()[0])
    assert all(cond is COND or torch.equal(cond, COND) for _, cond in student.asked)


def test_the_gradient_reaches_the_student_through_its_answer_alone():
    teacher = MLP(dim=2, classes=2, width=8, depth=1).double()
    student = teacher.student()
    torch.nn.init.normal_(student.net.leave.weight)
    target = deepcopy(student)
    batch, noise = sample()
    point = {"t": T, "s": T - 0.1, "scale": torch.full_like(T, 2.0), "noise": noise}
    weights = list(student.net.parameters())
    same = torch.autograd.grad(
        LatentConsistency(teacher, student, student, 2.0).at(batch, **point).value.sum(), weights
    )
    LatentConsistency(teacher, student, target, 2.0).at(batch, **point).value.sum().backward()
    for weight, gradient in zip(weights, same, strict=True):
        assert torch.equal(weight.grad, gradient)
    assert all(weight.grad is None for weight in (*target.parameters(), *teacher.parameters()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": -1.0}, "scale=-1.0"),
        ({"scale": (3.0, 2.0)}, "low <= high"),
        ({"scale": float("inf")}, "finite"),
        ({"skip": 0}, "skip=0"),
        ({"skip": 1001}, "skip from 1 to 1000"),
        ({"steps": 0}, "0 steps"),
        ({"grid": lambda n: (1.0, 0.5, 0.1), "steps": 2, "skip": 1}, "3 times from 1 to 0"),
        ({"huber": 0.0}, "huber"),
    ],
)
def test_impossible_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LatentConsistency(mixture(), bent(0), bent(0), **{"scale": 2.0} | change)


def test_a_teacher_that_cannot_be_guided_here_is_refused():
    class FieldAlone:
        def velocity(self, x_t, *, t, cond):
            return x_t

    for teacher in (Guided(mixture(), 2.0), FieldAlone()):
        # Without shape checks the constructor itself refuses a field that is no teacher; with them they may come first.
        with pytest.raises(TypeError, match=type(teacher).__name__):
            LatentConsistency(teacher, bent(0), bent(0), 2.0)


def test_a_scale_that_cannot_be_told_is_refused():
    batch, noise = sample()
    point = {"t": T, "s": T / 2, "scale": SCALE, "noise": noise}
    with pytest.raises(TypeError, match="only a mapping"):
        LatentConsistency(mixture(), bent(0), bent(0), (1.0, 4.0)).at(batch, **point)
    named = Batch(batch.x, {"label": COND, "scale": SCALE})
    with pytest.raises(ValueError, match="another key"):
        LatentConsistency(Named(), bent(0), bent(0), (1.0, 4.0)).at(named, **point)


@pytest.mark.slow
def test_a_short_training_brings_ends_nearer_to_the_teachers():
    def build(teacher, student):
        return LatentConsistency(teacher, student, student, 1.0, steps=40, skip=4)

    before, after = short_training(build, steps=500)
    assert after < 0.5 * before
