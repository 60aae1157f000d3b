"""Compiled passes answer as they were written to, tangents included."""

from copy import deepcopy

import pytest
import torch
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel

from hidistill.derivative import Compiled, Forward, load_rules
from hidistill.duals import DualRules
from hidistill.guidance import Guided
from hidistill.recipes.stages import refine
from hidistill.teachers.dit import DiT, Size
from hidistill.train.compiling import compile_passes
from hidistill.train.experiment import Experiment
from hidistill.train.loop import steps
from hidistill.types import Batch

pytestmark = pytest.mark.compile


def experiment():
    torch.manual_seed(0)
    teacher = DiT(image_size=8, channels=1, classes=3, patch=4, size=Size(16, 2, 2))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    teacher.eval().requires_grad_(False)
    student, fake = teacher.student(), deepcopy(teacher)
    stage = refine(student, Guided(teacher, 1.5), fake, None, steps=4)
    data = torch.randn(4, 6, 1, 8, 8)
    return Experiment(
        [stage],
        {"student": student, "fake": fake},
        lambda step: Batch(data[step], torch.arange(6) % 3),
        seed=0,
        frozen={"teacher": teacher},
    )


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_run_to_rounding_and_keeps_its_weights_names():
    plain, fast = experiment(), experiment()
    of_field = ("velocity", "probe", "features")
    expected = [f"teacher.{pass_}" for pass_ in of_field] + ["student.mean_velocity"]
    assert compile_passes(fast) == expected + [f"fake.{pass_}" for pass_ in of_field]
    assert compile_passes(fast) == []
    reports = [list(steps(each.stages[0], each.batch_at, seed=0)) for each in (plain, fast)]
    for a, b in zip(*reports, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-4)
    for role, module in plain.modules.items():
        theirs = fast.modules[role].state_dict()
        for name, value in module.state_dict().items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=2e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_a_tangent_passes_through_a_compiled_pass():
    run = experiment()
    teacher = run.frozen["teacher"]
    x, direction, t, cond = *torch.randn(2, 2, 1, 8, 8), torch.tensor([0.3, 0.8]), torch.tensor([0, 1])

    def tangent():
        with torch.no_grad(), dual_level(), DualRules(), sdpa_kernel(SDPBackend.MATH):
            dual = make_dual(x, direction)
            return unpack_dual(teacher.velocity(dual, t=make_dual(t, torch.ones_like(t)), cond=cond)).tangent

    load_rules()
    before = tangent()
    compile_passes(run)
    with torch.no_grad():
        teacher.velocity(x, t=t, cond=cond)
    after = tangent()
    assert before.abs().max() > 0.01
    assert torch.equal(before, after)


def test_a_copy_of_a_compiled_network_passes_through_its_own_weights():
    run = experiment()
    fake, x, t, cond = run.modules["fake"], torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.8]), torch.tensor([0, 1])
    compile_passes(run)
    copy = deepcopy(fake)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for weight in copy.parameters():
            weight.mul_(2)
        before, other = fake.velocity(x, t=t, cond=cond), copy.velocity(x, t=t, cond=cond)
        plain = experiment().modules["fake"]
        torch.testing.assert_close(before, plain.velocity(x, t=t, cond=cond))
        for weight in plain.parameters():
            weight.mul_(2)
        torch.testing.assert_close(other, plain.velocity(x, t=t, cond=cond))
    assert not torch.allclose(before, other)


@pytest.mark.parametrize("derivative", [Forward(), Compiled(backend="aot_eager")], ids=["eager", "compiled"])
def test_the_derivative_of_a_compiled_student_is_that_of_the_student(derivative):
    run = experiment()
    student, at = run.modules["student"], {"t": torch.tensor([0.3, 0.8]), "r": torch.tensor([0.1, 0.2])}
    x, direction = torch.randn(2, 2, 1, 8, 8)
    at |= {"cond": torch.tensor([0, 1]), "direction": direction}
    expected = Forward()(student, x, **at)
    compile_passes(run)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(derivative(student, x, **at), expected, rtol=1e-4, atol=1e-5)
