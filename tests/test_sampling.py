import pytest
import torch

from hidistill.sampling import euler, grid, heun, jump, renoise
from hidistill.teachers.mixture import ExactFlowMap, Mixture
from hidistill.teachers.mlp import MLP

LABELS = torch.tensor([0, 1, 2, 0])


def mixture():
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]], dtype=torch.float64)
    return Mixture(means, torch.tensor([0.4, 0.6, 0.5], dtype=torch.float64), classes=[[0], [1, 2]])


def test_grid_falls_evenly_from_1_to_0():
    assert grid(1) == (1.0, 0.0)
    assert grid(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert grid(49)[-1] == 0.0


def test_jumps_of_an_exact_flow_map_compose():
    """One jump, three jumps and uneven jumps land on the same data."""
    student, noise = ExactFlowMap(mixture(), 60), torch.randn(4, 2, dtype=torch.float64)
    once = jump(student, noise, cond=LABELS)
    for times in (grid(3), (1.0, 0.9, 0.05, 0.0)):
        torch.testing.assert_close(jump(student, noise, cond=LABELS, times=times), once, rtol=0, atol=1e-6)


def test_a_jump_may_start_and_end_anywhere():
    student, noise = ExactFlowMap(mixture(), 60), torch.randn(4, 2, dtype=torch.float64)
    middle = jump(student, noise, cond=LABELS, times=(1.0, 0.4))
    end = jump(student, middle, cond=LABELS, times=(0.4, 0.0))
    torch.testing.assert_close(end, jump(student, noise, cond=LABELS), rtol=0, atol=1e-6)


def test_jump_lets_gradient_through_and_integrators_do_not():
    net, noise = MLP(dim=2, classes=3, width=8, depth=1), torch.randn(4, 2, requires_grad=True)
    student = net.student()
    sample = jump(student, noise, cond=LABELS, times=(1.0, 0.5, 0.0))
    (gradient,) = torch.autograd.grad(sample.square().sum(), noise)
    h, direction = 1e-2, torch.randn_like(noise)
    with torch.no_grad():
        up, down = (
            jump(student, noise + s * h * direction, cond=LABELS, times=(1.0, 0.5, 0.0)).square().sum() for s in (1, -1)
        )
    torch.testing.assert_close((gradient * direction).sum(), (up - down) / (2 * h), rtol=1e-3, atol=1e-3)
    for integrate in (euler, heun):
        assert not integrate(net, noise, cond=LABELS, steps=2).requires_grad


def test_times_reach_a_bfloat16_student_unrounded():
    seen = []

    class Recorder:
        def mean_velocity(self, x_t, *, t, r, cond):
            seen.append((t, r))
            return torch.zeros_like(x_t)

    sample = jump(Recorder(), torch.zeros(1, 2, dtype=torch.bfloat16), cond=LABELS[:1], times=(0.9985, 0.3337))
    assert sample.dtype == torch.bfloat16
    assert [float(time) for time in seen[0]] == pytest.approx([0.9985, 0.3337], abs=1e-7)


def test_renoise_by_hand():
    student, noise = ExactFlowMap(mixture(), 50), torch.randn(4, 2, dtype=torch.float64)
    fresh = torch.randn(4, 2, dtype=torch.float64)
    first = jump(student, noise, cond=LABELS)
    expected = jump(student, 0.6 * first + 0.4 * fresh, cond=LABELS, times=(0.4, 0.0))
    actual = renoise(student, noise, cond=LABELS, times=(1.0, 0.4, 0.0), fresh=[fresh])
    torch.testing.assert_close(actual, expected)
    once = renoise(student, noise, cond=LABELS, times=(1.0, 0.0), fresh=[])
    torch.testing.assert_close(once, first)


def test_renoise_keeps_the_distribution_of_an_exact_flow_map():
    one = Mixture(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 1.5]]))
    noise, *fresh = torch.randn(3, 4000, 2)
    cond = torch.zeros(4000, dtype=torch.long)
    sample = renoise(ExactFlowMap(one, 20), noise, cond=cond, times=(1.0, 0.7, 0.3, 0.0), fresh=fresh)
    torch.testing.assert_close(sample.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.12)
    torch.testing.assert_close(sample.std(0), torch.tensor([0.5, 1.5]), rtol=0.05, atol=0)


BAD_TIMES = [(1.0,), (0.0, 1.0), (1.0, 1.0, 0.0), (1.1, 0.0), (1.0, -0.1), (float("nan"), 0.0)]


@pytest.mark.parametrize("times", BAD_TIMES)
def test_times_that_do_not_fall_within_the_unit_interval_are_refused(times):
    student, noise = ExactFlowMap(mixture(), 1), torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"each below the one before"):
        jump(student, noise, cond=LABELS, times=times)
    with pytest.raises(ValueError, match=r"each below the one before"):
        renoise(student, noise, cond=LABELS, times=times, fresh=[])


def test_renoise_takes_the_same_noise_twice_where_it_is_given_twice():
    """A fixed noise at every step is a usual call: the second one must noise the sample, not replace it."""
    student, noise = ExactFlowMap(mixture(), 10), torch.randn(4, 2, dtype=torch.float64)
    twice, copied = (
        renoise(student, noise, cond=LABELS, times=(1.0, 0.5, 0.0), fresh=[fresh]) for fresh in (noise, noise.clone())
    )
    assert torch.equal(twice, copied)


def test_renoise_counts_its_noise_and_ends_at_data():
    student, noise = ExactFlowMap(mixture(), 1), torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"2 fresh noises came.*1 are needed"):
        renoise(student, noise, cond=LABELS, times=(1.0, 0.5, 0.0), fresh=[noise, noise])
    with pytest.raises(ValueError, match=r"append 0\.0"):
        renoise(student, noise, cond=LABELS, times=(1.0, 0.5), fresh=[])


@pytest.mark.parametrize("integrate", [euler, heun])
def test_integrators_take_any_falling_times(integrate):
    """Equal times are equal steps, a path may stop halfway and go on, and its order does not need equal steps."""
    noise = torch.randn(4, 2, dtype=torch.float64)
    start = integrate(mixture(), noise, cond=LABELS, times=(1.0, 0.7, 0.4))
    whole = integrate(mixture(), noise, cond=LABELS, times=(1.0, 0.7, 0.4, 0.1, 0.0))
    assert torch.equal(integrate(mixture(), start, cond=LABELS, times=(0.4, 0.1, 0.0)), whole)
    equal = integrate(mixture(), noise, cond=LABELS, steps=5)
    assert torch.equal(integrate(mixture(), noise, cond=LABELS, times=grid(5)), equal)


@pytest.mark.parametrize(("integrate", "order"), [(euler, 1), (heun, 2)])
def test_integrators_keep_their_order_on_uneven_times(integrate, order):
    noise = torch.randn(4, 2, dtype=torch.float64)
    exact = heun(mixture(), noise, cond=LABELS, steps=600)
    errors = [
        (integrate(mixture(), noise, cond=LABELS, times=[t**1.5 for t in grid(n)]) - exact).norm() for n in (40, 80)
    ]
    assert 0.8 * 2**order < errors[0] / errors[1] < 1.25 * 2**order


@pytest.mark.parametrize("integrate", [euler, heun])
def test_integrators_take_either_steps_or_times_that_fall(integrate):
    noise = torch.randn(4, 2, dtype=torch.float64)
    for both in ({}, {"steps": 2, "times": (1.0, 0.5, 0.0)}):
        with pytest.raises(ValueError, match="exactly one of both is needed"):
            integrate(mixture(), noise, cond=LABELS, **both)
    for times in BAD_TIMES:
        with pytest.raises(ValueError, match=r"each below the one before"):
            integrate(mixture(), noise, cond=LABELS, times=times)


@pytest.mark.parametrize("steps", [0, -3])
def test_samplers_need_a_step(steps):
    noise = torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="use 1 or more"):
        grid(steps)
    for integrate in (euler, heun):
        with pytest.raises(ValueError, match="use 1 or more"):
            integrate(mixture(), noise, cond=LABELS, steps=steps)
