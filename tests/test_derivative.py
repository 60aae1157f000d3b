import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from hidistill.derivative import Central, Forward, self_test
from hidistill.duals import QUERIES, DualRules, attention, flash_rule, kernel_takes
from hidistill.teachers.dit import DiT
from hidistill.teachers.mixture import ExactFlowMap, Mixture
from hidistill.teachers.mlp import MLP
from hidistill.types import Derivative

Forward()  # has torch load its rules for dual numbers, which the tests of attention make themselves
T, R, LABELS = torch.tensor([0.9137, 0.5541, 0.3127]), torch.tensor([0.0213, 0.3313, 0.3127]), torch.arange(3)


def randomized(module):
    """Weights of the size of their fan-in, none of them zero."""
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return module.eval()


class Stack(nn.Module):
    """Layers that a user's student may be made of, around a time embedding that all of them share."""

    def __init__(self, dim=8, tokens=4, heads=2, causal=False, window=False):
        super().__init__()
        self.heads, self.causal, self.window, self.shape = heads, causal, window, (tokens, dim)
        self.enter, self.time = nn.Linear(2, tokens * dim), nn.Linear(2, dim)
        self.block = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True, activation="gelu")
        self.words = nn.Parameter(torch.randn(3, dim))
        self.mix, self.leave = nn.Conv1d(tokens, tokens, 3, padding=1), nn.Linear(tokens * dim, 2)

    def mean_velocity(self, x_t, *, t, r, cond):
        x = self.enter(x_t).unflatten(1, self.shape) + self.time(torch.stack([t, t - r], 1))[:, None]
        x = x + self.mix(self.block(x))
        x = x + self.cross(x, self.words.expand(len(x), -1, -1))
        return self.leave(self.cross(x, x).flatten(1))

    def cross(self, x, context):
        """Attention to a constant context, and to itself with whatever masks there are."""
        q, k = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (x, context))
        itself = context is x
        mask = torch.ones(q.shape[2], q.shape[2]).tril(1).triu(-1).bool() if self.window and itself else None
        y = F.scaled_dot_product_attention(q, k, k, mask, is_causal=self.causal and itself, scale=0.7)
        return y.transpose(1, 2).flatten(2)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ConvTranspose2d(8, 1, 2, stride=2)
        self.norm = nn.GroupNorm(2, 8)

    def mean_velocity(self, x_t, *, t, r, cond):
        times = torch.stack([t, r], 1)[:, :, None, None].expand(-1, -1, *x_t.shape[2:])
        return self.last(F.silu(self.norm(self.first(torch.cat([x_t, times], 1)))))


MEANS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)
STUDENTS = {
    "dit": (lambda: DiT(image_size=8, channels=2, classes=3, patch=2, size="mini").student(), (2, 8, 8)),
    "mlp": (lambda: MLP(dim=2, classes=3, width=32).student(), (2,)),
    "transformer": (Stack, (2,)),
    "causal": (lambda: Stack(causal=True), (2,)),
    "masked": (lambda: Stack(window=True), (2,)),
    "convolutions": (Convolutions, (1, 8, 8)),
}


def problem(name, dtype):
    build, shape = STUDENTS[name]
    student = randomized(build()).to(dtype).requires_grad_(False)
    x_t, direction = torch.randn(2, 3, *shape, dtype=torch.float64).to(dtype)
    return student, x_t, {"t": T.to(dtype), "r": R.to(dtype), "cond": LABELS, "direction": direction}


def differences(student, x_t, *, t, r, cond, direction, h=1e-3):
    """Fourth-order central differences, written apart from `Central`."""

    def u(s):
        return student.mean_velocity(x_t + s * direction, t=t + s, r=r, cond=cond)

    return (8 * (u(h) - u(-h)) - (u(2 * h) - u(-2 * h))) / (12 * h)


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", STUDENTS)
def test_forward_equals_differences_in_float64(name):
    student, x_t, point = problem(name, torch.float64)
    assert relative(Forward()(student, x_t, **point), differences(student, x_t, **point)) < 1e-6


@pytest.mark.parametrize("name", STUDENTS)
def test_forward_in_float32_equals_differences_in_float64(name):
    student, x_t, point = problem(name, torch.float32)
    single = Forward()(student, x_t, **point)
    assert single.dtype == torch.float32
    double = {key: value if key == "cond" else value.double() for key, value in point.items()}
    assert relative(single, differences(student.double(), x_t.double(), **double)) < 1e-4


@pytest.mark.parametrize("name", ["dit", "mlp", "transformer", "masked"])
def test_forward_works_under_bfloat16_autocast(name):
    student, x_t, point = problem(name, torch.float32)
    exact = Forward()(student, x_t, **point)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(Forward()(student, x_t, **point).float(), exact) < 0.05


def test_forward_through_an_integrator():
    student = ExactFlowMap(
        Mixture(MEANS, torch.tensor([0.5, 0.4, 0.6], dtype=torch.float64), classes=[[0], [1], [2]]), 20
    )
    x_t, direction = torch.randn(2, 3, 2, dtype=torch.float64)
    point = {"t": T.double(), "r": R.double(), "cond": LABELS, "direction": direction}
    assert relative(Forward()(student, x_t, **point), differences(student, x_t, **point)) < 1e-6


def test_forward_leaves_no_graph_and_no_gradients():
    student, x_t, point = problem("dit", torch.float32)
    student.requires_grad_(True)
    point["direction"].requires_grad_()
    assert not Forward()(student, x_t.requires_grad_(), **point).requires_grad
    assert not Central()(student, x_t, **point).requires_grad
    assert all(weight.grad is None for weight in student.parameters())


def test_a_student_without_derivative_is_reported():
    class Detached(nn.Module):
        def mean_velocity(self, x_t, *, t, r, cond):
            return torch.from_numpy(x_t.detach().numpy().copy()).cos()

    x_t, direction = torch.randn(2, 3, 2)
    with pytest.raises(ValueError, match=r"Detached.*carries no derivative.*look for \.detach"):
        Forward()(Detached(), x_t, t=T, r=R, cond=LABELS, direction=direction)


@pytest.mark.parametrize("tangents", ["qkv", "q", "kv", "k", "v"])
@pytest.mark.parametrize(("queries", "keys"), [(QUERIES + 44, QUERIES + 44), (2 * QUERIES, 5), (7, 600)])
def test_chunks_of_attention_equal_unfused_attention(tangents, queries, keys):
    sizes = {"q": queries, "k": keys, "v": keys}
    primals = {name: torch.randn(2, 2, n, 4, dtype=torch.float64) for name, n in sizes.items()}
    moves = {name: torch.randn_like(primals[name]) for name in tangents}

    def attend():
        duals = [make_dual(x, moves[name]) if name in moves else x for name, x in primals.items()]
        return unpack_dual(F.scaled_dot_product_attention(*duals))

    with torch.no_grad(), dual_level():
        with DualRules():
            out, tangent = attend()
        with sdpa_kernel(SDPBackend.MATH):
            expected_out, expected_tangent = attend()
        torch.testing.assert_close(out, expected_out)
        torch.testing.assert_close(tangent, expected_tangent)


def test_attention_never_holds_all_scores():
    tokens, largest = 4 * QUERIES, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.append(max((y.numel() for y in [out] if isinstance(y, torch.Tensor)), default=0))
            return out

    q, dq = torch.randn(2, 1, 1, tokens, 4)
    with torch.no_grad(), dual_level(), DualRules(), Watch():
        dual = make_dual(q, dq)
        F.scaled_dot_product_attention(dual, dual, dual)
    assert max(largest) == QUERIES * tokens


@pytest.mark.parametrize(("dim", "sizes"), [(2, (3, -1)), (-1, (2, 6)), (0, (1, 2))])
def test_unflatten_is_torchs(dim, sizes):
    x, moved = torch.randn(2, 5, 2, 12).transpose(1, 2)
    with dual_level(), DualRules():
        found = unpack_dual(make_dual(x, moved).unflatten(dim, sizes))
    assert torch.equal(found.primal, x.unflatten(dim, sizes))
    assert torch.equal(found.tangent, moved.unflatten(dim, sizes))


def test_kernels_for_gpus_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "jvp_flash_attention.jvp_attention", None)
    with pytest.raises(ImportError, match="pip install --no-deps jvp-flash-attention"):
        Forward(flash_rule())


def test_a_rule_of_attention_can_be_chosen():
    student, x_t, point = problem("dit", torch.float64)
    calls = []

    def counted(*args, **kwargs):
        calls.append(kernel_takes(*args, **kwargs))
        return attention(*args, **kwargs)

    assert torch.equal(Forward(counted)(student, x_t, **point), Forward()(student, x_t, **point))
    assert calls == [False] * 4  # a layer each, and no kernel takes them on a CPU


@pytest.mark.gpu
def test_kernels_for_gpus_give_the_tangents_of_unfused_attention():
    rule = flash_rule()
    q, dq, k, dk, v, dv = torch.randn(6, 2, 3, 64, 32, device="cuda")
    with torch.no_grad(), dual_level():
        duals = [make_dual(*pair) for pair in ((q, dq), (k, dk), (v, dv))]
        assert kernel_takes(*duals)
        assert not kernel_takes(*duals, is_causal=True)
        found, expected = unpack_dual(rule(*duals)), unpack_dual(attention(*duals))
    assert relative(found.primal, expected.primal) < 1e-2
    assert relative(found.tangent, expected.tangent) < 1e-2


NORMS = {
    "layer": lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-3),
    "layer of two": lambda x, w, b: F.layer_norm(x, (4, 6), w, b),
    "layer, plain": lambda x, w, b: F.layer_norm(x, (6,)),
    "group": lambda x, w, b: F.group_norm(x, 2, w, b, 1e-3),
    "group, plain": lambda x, w, b: F.group_norm(x, 2),
    "group, turned": lambda x, w, b: F.group_norm(x.transpose(1, 2), 3, w, b),
}
NORMALIZED = {"layer of two": (4, 6), "group": (4,), "group, turned": (6,)}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("moving_weights", [False, True])
def test_normalizations_have_the_tangents_of_torch(name, moving_weights):
    x, dx = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    shape = NORMALIZED.get(name, (6,))
    w, b, dw = torch.randn(3, *shape, dtype=torch.float64)

    def normalized():
        weight = make_dual(w, dw) if moving_weights else w
        return unpack_dual(NORMS[name](make_dual(x, dx), weight, b))

    with torch.no_grad(), dual_level():
        with DualRules():
            out, tangent = normalized()
        if name == "group, turned":  # torch's own rule cannot view what is not contiguous
            expected = unpack_dual(F.group_norm(make_dual(x.mT.contiguous(), dx.mT.contiguous()), 3, w, b))
            if moving_weights:
                return
        else:
            expected = normalized()
        torch.testing.assert_close(out, expected.primal)
        torch.testing.assert_close(tangent, expected.tangent)


SUMS = {
    "x + c": lambda x, c: x + c,
    "c + x": lambda x, c: c + x,
    "x - c": lambda x, c: x - c,
    "c - x": lambda x, c: c - x,
    "x c": lambda x, c: x * c,
    "c x": lambda x, c: c * x,
    "-x": lambda x, c: -x,
    "x + 2 c": lambda x, c: x.add(c, alpha=2),
    "x / c": lambda x, c: x / c,
    "x + x": lambda x, c: x + x,
    "x x": lambda x, c: x * x,
}
CONSTANTS = {
    "number": 3.0,
    "row": torch.linspace(1, 2, 4),
    "larger": torch.linspace(1, 2, 24).reshape(2, 3, 4),
    "float64": torch.linspace(1, 2, 4, dtype=torch.float64),
    "bfloat16": torch.tensor([1.5, 2, 3, 4], dtype=torch.bfloat16),
    "integers": torch.tensor([1, 2, 3, 4]),
}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("name", SUMS)
def test_sums_and_products_with_constants_have_the_tangents_of_torch(name, constant, kind):
    x, dx = torch.linspace(-1, 1, 24, dtype=kind).reshape(2, 3, 4)
    c = CONSTANTS[constant]
    with torch.no_grad(), dual_level():
        with DualRules():
            found = unpack_dual(SUMS[name](make_dual(x, dx), c))
        expected = unpack_dual(SUMS[name](make_dual(x, dx), c))
        assert found.tangent.shape == found.primal.shape
        assert found.primal.dtype == found.tangent.dtype == expected.primal.dtype
        torch.testing.assert_close(found.primal, expected.primal, rtol=0, atol=0)
        torch.testing.assert_close(found.tangent, expected.tangent.to(found.tangent.dtype))


def test_what_a_sum_is_changed_to_does_not_reach_its_operand():
    x, dx = torch.randn(2, 3, 4)
    with torch.no_grad(), dual_level(), DualRules():
        dual = make_dual(x.clone(), dx.clone())
        (dual + 1).mul_(2)
        (dual - torch.ones(4)).zero_()
        torch.testing.assert_close(unpack_dual(dual).primal, x)
        torch.testing.assert_close(unpack_dual(dual).tangent, dx)


def test_a_sum_with_a_number_asks_nobody_for_shapes():
    """torch makes a tangent of zeros for the number, whose shape it takes from a decomposition in Python."""
    from torch.profiler import ProfilerActivity, profile

    x = torch.randn(2, 3)
    with torch.no_grad(), dual_level():
        dual = make_dual(x, x)
        with profile(activities=[ProfilerActivity.CPU]) as plain:
            dual + 1
        with profile(activities=[ProfilerActivity.CPU]) as ours, DualRules():
            dual + 1
    decomposed = [any(event.name.startswith("prims::") for event in seen.events()) for seen in (plain, ours)]
    if not decomposed[0]:
        pytest.skip("this torch does not ask Python either")
    assert not decomposed[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalizations_of_low_precision_with_weights_in_float32(dtype):
    """torch's own rule for group norm answers a bfloat16 primal with a float32 tangent here."""
    x, dx = torch.randn(2, 3, 4, 6)
    w = torch.randn(4)
    with torch.no_grad(), dual_level(), DualRules(), torch.autocast("cpu", torch.bfloat16):
        out, tangent = unpack_dual(F.group_norm(make_dual(x.to(dtype), dx.to(dtype)), 2, w, w))
        assert tangent.dtype == out.dtype
    with torch.no_grad(), dual_level():
        expected = unpack_dual(F.group_norm(make_dual(x, dx), 2, w, w)).tangent
    assert relative(tangent.float(), expected) < 0.02


class Parabola(nn.Module):
    """Second-order formulas are exact on it: `du/dt = 2 a t - 3 direction` along any line."""

    def __init__(self):
        super().__init__()
        self.times = []

    def mean_velocity(self, x_t, *, t, r, cond):
        self.times.append(t)
        return t[:, None] ** 2 * cond[:, None] - 3 * x_t + r[:, None]


def test_central_keeps_second_order_and_times_in_range_at_the_ends():
    t = torch.tensor([1.0, 0.0, 0.998, 0.002, 0.5, 0.5, 0.5, 1.0], dtype=torch.float64)
    r = torch.tensor([0.0, 0.0, 0.1, 0.001, 0.5, 0.497, 0.1, 1.0], dtype=torch.float64)
    a, (x_t, direction) = torch.randn_like(t), torch.randn(2, 8, 2, dtype=torch.float64)
    student = Parabola()
    du = Central(5e-3)(student, x_t, t=t, r=r, cond=a, direction=direction)
    torch.testing.assert_close(du, 2 * (a * t)[:, None] - 3 * direction, rtol=1e-9, atol=1e-9)
    times = torch.cat(student.times)
    assert times.max() <= 1
    assert times.min() >= 0
    assert [len(calls) for calls in student.times] == [8, 8, 7]
    for calls in student.times[:2]:
        assert (calls >= r - 1e-12)[:-1].all()


def test_central_makes_two_forwards_away_from_the_ends():
    student = Parabola()
    x_t, direction = torch.randn(2, 2, 2)
    Central()(student, x_t, t=T[:2], r=R[:2], cond=T[:2], direction=direction)
    assert len(student.times) == 2


@pytest.mark.parametrize("ends", [False, True])
def test_error_of_central_falls_four_times_when_the_step_halves(ends):
    student, x_t, point = problem("mlp", torch.float64)
    if ends:
        point |= {"t": torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), "r": torch.zeros(3, dtype=torch.float64)}
    exact = Forward()(student, x_t, **point)
    errors = [relative(Central(h)(student, x_t, **point), exact) for h in (4e-3, 2e-3, 1e-3)]
    assert 3.6 < errors[0] / errors[1] < 4.4
    assert 3.6 < errors[1] / errors[2] < 4.4


def test_forward_and_central_agree_in_float32():
    student, x_t, point = problem("mlp", torch.float32)
    assert relative(Central()(student, x_t, **point), Forward()(student, x_t, **point)) < 1e-2


def test_central_refuses_low_precision():
    student, x_t, point = problem("mlp", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match=r"autocast.*11 to 40 %.*Forward"):
        Central()(student, x_t, **point)
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*11 to 40 %.*Forward"):
        Central()(student, x_t.bfloat16(), **(point | {"direction": point["direction"].bfloat16()}))


@pytest.mark.parametrize("step", [0.0, -1e-3, 0.2])
def test_central_refuses_steps_that_cannot_work(step):
    with pytest.raises(ValueError, match=r"must be in \(0, 0\.1\]"):
        Central(step)


def test_both_are_derivatives():
    assert isinstance(Forward(), Derivative)
    assert isinstance(Central(), Derivative)


@pytest.mark.parametrize("name", STUDENTS)
def test_self_test_passes_sound_students(name):
    student, x_t, point = problem(name, torch.float32)
    assert self_test(student, x_t, **point) < 0.01


def test_self_test_passes_bfloat16():
    student, x_t, point = problem("mlp", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert self_test(student, x_t, **point) < 0.05
    low = {key: value if key == "cond" else value.bfloat16() for key, value in point.items()}
    assert self_test(student.bfloat16(), x_t.bfloat16(), **low) < 0.2


class Broken(nn.Module):
    """An MLP with one of the faults that silently spoil derivatives."""

    def __init__(self, fault):
        super().__init__()
        self.net, self.fault = randomized(MLP(dim=2, classes=3, width=32).student()), fault

    def mean_velocity(self, x_t, *, t, r, cond):
        if self.fault == "rounded":
            t = t.bfloat16().to(x_t.dtype)
        if self.fault == "detached":
            t = t.detach()
        if self.fault == "dropout":
            x_t = F.dropout(x_t, 0.3)
        return self.net.mean_velocity(x_t, t=t, r=r, cond=cond)


@pytest.mark.parametrize("fault", ["rounded", "detached", "dropout"])
def test_self_test_finds_what_spoils_a_derivative(fault):
    x_t, direction = torch.randn(2, 3, 2)
    assert self_test(Broken(fault), x_t, t=T, r=R, cond=LABELS, direction=direction) > 0.1
    assert self_test(Broken("none"), x_t, t=T, r=R, cond=LABELS, direction=direction) < 0.01
