"""What the adapter promises beyond the conformance suite."""

from copy import deepcopy

import pytest
import torch
from randomized import randomized
from small_transformers import dit
from torch import nn

from hidistill.foreign.network import Network
from hidistill.recomputing import Again, recomputed


def question(rows=3):
    return torch.randn(rows, 4, 4, 4), {"t": torch.linspace(0.2, 0.9, rows), "cond": torch.tensor([0, 1, 1][:rows])}


def gradients(student, x_t, point):
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    student.mean_velocity(x_t, r=point["t"] / 3, **point).square().mean().backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


@pytest.mark.parametrize("degree", [None, 6])
def test_gradient_checkpointing_changes_no_gradient(degree):
    """A block that is run again in the backward pass sees the same times and the same interval."""
    plain = randomized(dit().student(degree=degree))
    again, ours = deepcopy(plain), deepcopy(plain)
    again.network.net.enable_gradient_checkpointing()
    x_t, point = question()
    expected, theirs = gradients(plain, x_t, point), gradients(again, x_t, point)
    with recomputed([ours]):
        assert any(isinstance(vars(part).get("forward"), Again) for part in ours.modules())
        found = gradients(ours, x_t, point)
    assert expected.keys() == found.keys() == theirs.keys()
    for name, gradient in expected.items():
        for other in (theirs, found):
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_every_parameter_of_a_student_with_smooth_times_gets_a_gradient():
    student = randomized(dit().student(degree=6))
    assert all(gradient is not None for gradient in gradients(student, *question()).values())


def test_smooth_times_begin_near_the_teacher_where_its_embedding_is_smooth():
    """An embedding that a polynomial of this degree can follow is followed; one of 1000 t is not, which is said."""
    teacher = dit()
    rough = teacher.student(degree=12)
    for place in teacher.places:
        nn.init.zeros_(place.embedding.linear_1.weight)
        # Of the sinusoids, whose first half are cosines of falling frequencies, the slow ones alone.
        place.embedding.linear_1.weight.data[:, 100:128] = torch.randn(16, 28)
    smooth = teacher.student(degree=12)
    assert smooth.curve.residual < 1e-3
    assert rough.curve.residual > 0.1
    x_t, point = question()
    own = teacher.velocity(x_t, **point)
    change = smooth.mean_velocity(x_t, r=point["t"], **point) - own
    assert change.norm() < 1e-2 * own.norm()


def test_features_stop_behind_the_last_tap():
    teacher = Network(dit().net, dit().family, dit().convention, taps=(0, 1))
    calls = []
    teacher.net.transformer_blocks[2].register_forward_hook(lambda *_: calls.append(2))
    x_t, point = question()
    assert len(teacher.features(x_t, **point)) == 2
    assert calls == []
    teacher.velocity(x_t, **point)
    assert calls == [2]


def test_hooks_do_not_outlive_a_call_that_fails():
    teacher = dit()
    with pytest.raises(TypeError, match="conditioned by a tensor of labels"):
        teacher.velocity(torch.randn(2, 4, 4, 4), t=torch.rand(2), cond={"text": torch.zeros(2, 1, 1)})
    left = [module for module in teacher.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert left == []


def test_taps_that_are_no_blocks_and_foreign_null_conditions_are_refused():
    with pytest.raises(ValueError, match="blocks are 0 to 3"):
        Network(dit().net, dit().family, dit().convention, taps=(4,))
    with pytest.raises(ValueError, match="needs none, each of one row"):
        Network(dit().net, dit().family, dit().convention, null={"text": torch.zeros(1, 2, 3)})
