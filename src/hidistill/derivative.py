"""The total derivative of a student along a trajectory: `du/dt` with dx_t/dt = direction, dt/dt = 1, dr/dt = 0.

`Forward` is exact and works in bfloat16; `Central` needs nothing but two forwards, in float32.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel

from hidistill.duals import DualRules, Rule
from hidistill.path import per_row, rows_of
from hidistill.share import anywhere
from hidistill.types import Cond, Derivative, Points, Student, Times


@dataclass(frozen=True)
class Forward:
    """Forward-mode differentiation, exact: about two forwards, no graph, any precision, any module as it is.

    Args:
        attention: the rule of attention, such as `duals.flash_rule()` on a GPU; None is `duals.attention`.

    Raises:
        ValueError: when called, if the student's answer depends on neither x_t nor t.
    """

    attention: Rule | None = None

    def __post_init__(self) -> None:
        """Have torch load its rules, which it does at the first dual number."""
        load_rules()

    @torch.no_grad()
    def __call__(self, student: Student, x_t: Points, *, t: Times, r: Times, cond: Cond, direction: Points) -> Points:
        """See `types.Derivative`."""
        # MATH is for attention inside torch's own composite functions, such as nn.MultiheadAttention's, which hide it
        # from DualRules.
        with dual_level(), DualRules(self.attention), sdpa_kernel(SDPBackend.MATH):
            x = make_dual(x_t.detach(), direction.detach().to(x_t.dtype))
            dual_t = make_dual(t.detach(), torch.ones_like(t))
            tangent = unpack_dual(student.mean_velocity(x, t=dual_t, r=r.detach(), cond=cond)).tangent
        if tangent is None:
            raise ValueError(
                f"the answer of {type(student).__name__}.mean_velocity carries no derivative; it must depend on x_t or "
                "t through differentiable operations: look for .detach(), .item(), .data or numpy on its way"
            )
        return tangent


@dataclass(frozen=True)
class Compiled:
    """Another derivative as one graph of torch.compile, with its own kernels in the place of a pass per operation.

    The function that takes the derivative is compiled, not the student: over a compiled module forward mode silently
    runs eager. A graph that would break is an error. The first call takes a minute or so, and so does the first of
    each further shape; batches should all be of one size.

    Args:
        derivative: `Forward`; `Central` looks at the times and cannot be traced.
        backend: of torch.compile; "aot_eager" makes no kernels, and tells in seconds whether a student can be traced.

    Raises:
        torch._dynamo.exc.Unsupported: when called, if the student cannot be one graph.
    """

    derivative: Derivative = field(default_factory=Forward)
    backend: str = "inductor"

    @cached_property
    def graph(self) -> Callable[..., Points]:
        """What is compiled."""
        return torch.compile(self.derivative.__call__, fullgraph=True, dynamic=False, backend=self.backend)

    def __call__(self, student: Student, x_t: Points, *, t: Times, r: Times, cond: Cond, direction: Points) -> Points:
        """See `types.Derivative`."""
        return self.graph(student, x_t, t=t, r=r, cond=cond, direction=direction)


@dataclass(frozen=True)
class Central:
    """Differences of two forwards, `(u(x + h d, r, t + h) - u(x - h d, r, t - h)) / 2h`, of second order in h.

    Where t + h > 1 or t - h < r, a row uses the one-sided formula of the same order on t, t + h, t + 2h (or downwards),
    which costs a third forward for those rows alone. Downwards it may pass below r, by at most 2 h, when r is within
    3 h of 1.

    Args:
        step: h. 5e-3 suits networks that embed t itself; those that embed 1000 t need 1e-4.

    Raises:
        ValueError: if the step is not in (0, 0.1]; when called, in less than float32.
    """

    step: float = 5e-3

    def __post_init__(self) -> None:
        """Refuse a step that cannot work."""
        if not 0 < self.step <= 0.1:
            raise ValueError(f"Central(step={self.step}): the step must be in (0, 0.1]; 5e-3 suits most networks")

    @torch.no_grad()
    def __call__(self, student: Student, x_t: Points, *, t: Times, r: Times, cond: Cond, direction: Points) -> Points:
        """See `types.Derivative`."""
        refuse_low_precision(x_t)
        h = torch.full_like(t, self.step)
        central, up = (t + h <= 1) & (t - h >= r), t + 2 * h <= 1
        first = torch.where(central | up, h, -h)
        second = torch.where(central, -h, 2 * first)

        def u_at(offset: Times) -> Points:
            moved = x_t + per_row(offset, x_t) * direction
            return student.mean_velocity(moved, t=t + offset, r=r, cond=cond)

        # Derivative at 0 of the parabola through 0, `first` and `second`; the weight of 0 vanishes on central rows.
        near, far = -second / (first * (first - second)), -first / (second * (second - first))
        du = per_row(near, x_t) * u_at(first) + per_row(far, x_t) * u_at(second)
        ends = (~central).nonzero()[:, 0]
        if anywhere(len(ends) > 0):
            ends = ends if len(ends) else ends.new_zeros(1)  # a central row, where the weight below vanishes
            here = student.mean_velocity(x_t[ends], t=t[ends], r=r[ends], cond=rows_of(cond, ends))
            du = du.index_add(0, ends, -per_row((near + far)[ends], here) * here)
        return du


def self_test(
    student: Student, x_t: Points, *, t: Times, r: Times, cond: Cond, direction: Points, step: float = 1e-3
) -> float:
    """Relative difference between `Forward`, as it would run, and central differences in float32, without autocast.

    Below 0.05 all is well. More means a student that is not a function (dropout in train mode), times that are rounded
    (cast to bfloat16), a derivative lost on the way (`detach`), or a student that embeds 1000 t, too rough for
    differences of this `step`; 1e-4 suits those. Use generic times: round ones may survive a cast that others do not.
    """
    exact = Forward()(student, x_t, t=t, r=r, cond=cond, direction=direction).float()
    if isinstance(student, nn.Module) and any(is_low_precision(weight) for weight in student.parameters()):
        student = deepcopy(student).float()
    with torch.autocast(x_t.device.type, enabled=False):
        single = {"t": t.float(), "r": r.float(), "cond": cond, "direction": direction.float()}
        difference = Central(step)(student, x_t.float(), **single)
    scale = torch.maximum(exact.norm(), difference.norm())
    return float((exact - difference).norm() / scale) if scale > 0 else 0.0


@cache
def load_rules() -> None:
    """Make one dual number, silently: torch compiles rules by its own deprecated `torch.jit.script` and warns of it."""
    with warnings.catch_warnings(), dual_level():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        make_dual(torch.zeros(1), torch.zeros(1))


def is_low_precision(x: Tensor) -> bool:
    """Whether `x` is in bfloat16 or float16."""
    return x.dtype in (torch.bfloat16, torch.float16)


def refuse_low_precision(x_t: Points) -> None:
    """Refuse differences below float32."""
    if x_t.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        raise ValueError(
            "Central came to a GPU whose products of float32 are made in TF32, of 10 bits; its differences need 23: "
            "leave --tf32 out, or use Forward()"
        )
    if is_low_precision(x_t) or torch.is_autocast_enabled(x_t.device.type):
        came = str(x_t.dtype) if is_low_precision(x_t) else f"autocast to {torch.get_autocast_dtype(x_t.device.type)}"
        raise ValueError(
            f"Central came to {came}, where differences are 11 to 40 % wrong from rounding; they need float32 without "
            "autocast: use Forward(), which is below 1 % in bfloat16"
        )
