import math

import pytest
import torch

from hidistill.times import Arcsine, LogitNormal, Uniform, sample_pair

LIKE = torch.zeros(20_000, 1)


def test_uniform_fills_its_interval_evenly():
    t = Uniform(0.2, 0.6).sample(LIKE)
    assert t.shape == (20_000,)
    assert t.dtype == torch.float32
    assert t.min() >= 0.2
    assert t.max() <= 0.6
    shares = torch.histc(t, 4, 0.2, 0.6) / len(t)
    assert (shares - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / len(t))


def test_logit_normal_has_a_normal_logit():
    t = LogitNormal(-0.4, 1.3).sample(LIKE).double()
    assert ((t > 0) & (t < 1)).all()
    logit = t.logit()
    assert abs(logit.mean() + 0.4) < 5 * 1.3 / math.sqrt(len(t))
    assert abs(logit.std() - 1.3) < 5 * 1.3 / math.sqrt(2 * len(t))


def test_times_are_float32_whatever_they_are_for():
    like = torch.zeros(3, 2, dtype=torch.bfloat16)
    assert Uniform().sample(like).dtype == LogitNormal().sample(like).dtype == torch.float32


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 5_000), (1.0, 20_000)])
def test_pairs_are_sorted_and_the_first_rows_instantaneous(share, count):
    t, r, first = sample_pair(Uniform(), LIKE, instantaneous=share)
    assert first == count
    assert (r <= t).all()
    assert torch.equal(t[:count], r[:count])
    assert (r[count:] < t[count:]).double().mean() > 0.999 or count == len(t)


def test_sorted_pair_of_uniform_times_has_the_means_of_order_statistics():
    t, r, _ = sample_pair(Uniform(), LIKE, instantaneous=0.0)
    assert abs(t.mean() - 2 / 3) < 0.01
    assert abs(r.mean() - 1 / 3) < 0.01


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.7, 0.3)])
def test_uniform_refuses_what_is_no_interval_of_times(low, high):
    with pytest.raises(ValueError, match=r"0 <= low < high <= 1"):
        Uniform(low, high)


def test_logit_normal_refuses_no_spread():
    with pytest.raises(ValueError, match="must be positive"):
        LogitNormal(0.0, 0.0)


def test_arcsine_is_often_near_the_ends():
    """The distribution function of sin^2(pi u / 2) is 2 / pi arcsin(sqrt t)."""
    t = Arcsine().sample(torch.zeros(20_000, 1)).double()
    for edge in (0.05, 0.25, 0.5, 0.95):
        expected = 2 / math.pi * math.asin(math.sqrt(edge))
        assert abs((t < edge).double().mean() - expected) < 0.015
