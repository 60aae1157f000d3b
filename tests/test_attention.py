"""Attention in bfloat16: its numbers, its type, and that it is not slow."""

import time

import pytest
import torch
import torch.nn.functional as F

from hidistill.attention import FEW, attend
from hidistill.derivative import Forward


def heads(tokens, kind, *, grad=False):
    torch.manual_seed(0)
    return [torch.randn(8, 4, tokens, 16).to(kind).requires_grad_(grad) for _ in range(3)]


@pytest.mark.parametrize("tokens", [5, FEW, FEW + 1])
def test_it_is_torchs_own_to_rounding(tokens):
    single, half = (heads(tokens, kind, grad=True) for kind in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(attend(*single), F.scaled_dot_product_attention(*single), rtol=0, atol=0)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = attend(*half)
        assert found.dtype is torch.bfloat16
        torch.testing.assert_close(found.float(), attend(*single), rtol=0, atol=2e-2)
        ours, theirs = (
            torch.autograd.grad(y.float().square().sum(), x) for y, x in ((found, half), (attend(*single), single))
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=0, atol=0.05 * float(other.abs().max()))


def test_the_derivative_passes_through_it():
    """Under autocast, where queries come in bfloat16."""

    class Map(torch.nn.Module):
        def mean_velocity(self, x_t, *, t, r, cond):
            del r, cond
            half = (x_t * t[:, None, None, None]).to(torch.bfloat16)
            return attend(half, half, half).float()

    x, t = heads(6, torch.float32)[0], torch.linspace(0.2, 0.9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        tangent = Forward()(Map(), x, t=t, r=t / 2, cond=torch.zeros(8), direction=torch.ones_like(x))
    with torch.no_grad():
        step = 1e-2
        ahead, behind = (
            F.scaled_dot_product_attention(*[(x + s) * (t + s)[:, None, None, None]] * 3) for s in (step, -step)
        )
    expected = (ahead - behind) / (2 * step)
    assert float((tangent - expected).norm() / expected.norm()) < 0.05


def test_it_is_quicker_than_torchs_kernel_of_bfloat16():
    """With few tokens, forth and back; several times on the machine where it was measured."""
    half = [x.detach().requires_grad_() for x in heads(16, torch.bfloat16)]

    def seconds(function):
        taken = []
        for _ in range(7):
            begin = time.process_time()
            torch.autograd.grad(function(*half).float().sum(), half)
            taken.append(time.process_time() - begin)
        return sorted(taken)[3]

    assert seconds(attend) < seconds(F.scaled_dot_product_attention)
