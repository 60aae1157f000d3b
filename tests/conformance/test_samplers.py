"""Samplers against the exact flow of a Gaussian mixture."""

from itertools import pairwise

import pytest
import torch

from hidistill.sampling import euler, grid, heun, jump, renoise
from hidistill.seeds import normal
from hidistill.teachers.dit import DiT
from hidistill.teachers.mixture import ExactFlowMap, Mixture

LABELS = torch.tensor([0, 1, 2, 2])


def mixture():
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]], dtype=torch.float64)
    return Mixture(means, torch.tensor([0.4, 0.6, 0.5], dtype=torch.float64), classes=[[0], [1, 2]])


@pytest.mark.parametrize(("integrate", "factor"), [(euler, 2), (heun, 4)])
def test_error_falls_with_the_order_when_steps_double(integrate, factor):
    noise = torch.randn(4, 2, dtype=torch.float64)
    exact = jump(ExactFlowMap(mixture(), 100), noise, cond=LABELS)
    errors = [(integrate(mixture(), noise, cond=LABELS, steps=n) - exact).norm() for n in (60, 120, 240)]
    assert errors[2] < errors[0] < 0.1
    for coarse, fine in pairwise(errors):
        assert 0.9 * factor < coarse / fine < 1.1 * factor


def test_one_jump_of_the_exact_flow_map_equals_many_steps_of_heun():
    noise = torch.randn(4, 2, dtype=torch.float64)
    sample = jump(ExactFlowMap(mixture(), 100), noise, cond=LABELS)
    torch.testing.assert_close(sample, heun(mixture(), noise, cond=LABELS, steps=600), rtol=0, atol=1e-4)


def test_all_jumps_of_a_student_that_is_its_teacher_are_euler():
    net = DiT(image_size=4, channels=1, classes=3, patch=2, size="mini")
    torch.nn.init.normal_(net.unpatchify.weight, std=0.2)
    noise = torch.randn(4, 1, 4, 4)
    with torch.no_grad():
        few = jump(net.student(), noise, cond=LABELS, times=grid(3))
    torch.testing.assert_close(few, euler(net, noise, cond=LABELS, steps=3))


@pytest.mark.parametrize("name", ["jump", "renoise", "euler", "heun"])
def test_an_image_does_not_depend_on_its_batch(name):
    net = DiT(image_size=4, channels=1, classes=3, patch=2, size="mini").double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    student, cond = net.student(), torch.arange(6) % 4

    def sample(rows):
        noise, labels = normal(rows, (1, 4, 4)).double(), cond[rows]
        fresh = normal([100 + row for row in rows], (1, 4, 4)).double()
        return {
            "jump": lambda: jump(student, noise, cond=labels, times=(1.0, 0.5, 0.0)),
            "renoise": lambda: renoise(student, noise, cond=labels, times=(1.0, 0.5, 0.0), fresh=[fresh]),
            "euler": lambda: euler(net, noise, cond=labels, steps=2),
            "heun": lambda: heun(net, noise, cond=labels, steps=2),
        }[name]()

    with torch.no_grad():
        together = sample([0, 1, 2, 3, 4, 5])
        parts = torch.cat([sample([0, 1, 2, 3]), sample([4]), sample([5])])
    assert together.std() > 0.1
    torch.testing.assert_close(parts, together)
