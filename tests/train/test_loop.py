"""The loop, its stages and averages, against arithmetic by hand."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from hidistill.train.ema import Average
from hidistill.train.loop import NonFinite, quickest, steps
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Batch, Loss

FREE = float("inf")


class Numbers(nn.Module):
    """Parameters without a network around them."""

    def __init__(self, *values):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(values))


@dataclass(frozen=True)
class Slope:
    """A linear loss: `weights . value`, whose gradient is `weights`."""

    terms: tuple

    def __call__(self, batch):
        total = sum((torch.tensor(weights) * numbers.value).sum() for weights, numbers in self.terms)
        return Loss(total.expand(len(batch.x)), {"total": total})


@dataclass(frozen=True)
class Root:
    """`sqrt(value)`: at 0 its loss is finite and its gradient is not."""

    numbers: Numbers

    def __call__(self, batch):
        return Loss(self.numbers.value.sqrt().sum().expand(len(batch.x)))


@dataclass(frozen=True)
class Bad:
    """Finite but in the third row of one step."""

    numbers: Numbers
    at: int

    def __call__(self, batch):
        value = self.numbers.value.sum().repeat(len(batch.x))
        value[2] = value[2] + (float("nan") if batch.step == self.at else 0.0)
        return Loss(value)


def batch_at(step):
    return Batch(torch.full((4, 2), float(step)), torch.zeros(4, dtype=torch.int64))


def descent(*modules):
    return torch.optim.SGD([parameter for module in modules for parameter in module.parameters()], lr=0.5)


def carry_out(stage, start=0):
    return list(steps(stage, batch_at, seed=0, start=start))


def test_schedule_multiplies_the_learning_rate():
    factors = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    schedule = WarmupDecay(10, warmup=2, decay=4)
    assert [schedule(step) for step in range(10)] == factors
    numbers = Numbers(0.0)
    update = Update(Slope((((1.0,), numbers),)), descent(numbers), max_norm=FREE, schedule=schedule)
    path = []
    for _ in steps(Stage("s", {"u": update}, 10), batch_at, seed=0):
        path.append(-numbers.value.item())
    np.testing.assert_allclose(path, 0.5 * np.cumsum(factors), rtol=1e-6)


@pytest.mark.parametrize("arguments", [{"warmup": 6, "decay": 5}, {"warmup": -1}, {"decay": 11}])
def test_ramps_that_do_not_fit(arguments):
    with pytest.raises(ValueError, match="do not fit into 10 steps"):
        WarmupDecay(10, **arguments)


def test_norm_is_limited_in_each_group_by_itself():
    large, small = Numbers(0.0, 0.0), Numbers(0.0, 0.0)
    groups = [{"params": [large.value], "lr": 1.0}, {"params": [small.value], "lr": 0.1}]
    update = Update(Slope((((3.0, 4.0), large), ((0.3, 0.4), small))), torch.optim.SGD(groups), max_norm=1.0)
    (report,) = carry_out(Stage("s", {"u": update}, 1))
    np.testing.assert_allclose(large.value.numpy(), [-0.6, -0.8], rtol=1e-5)
    np.testing.assert_allclose(small.value.numpy(), [-0.03, -0.04], rtol=1e-5)
    assert report.metrics["u/gradient"] == pytest.approx(5.0)


def test_an_update_runs_on_each_kth_step():
    numbers = Numbers(0.0)
    update = Update(Slope((((1.0,), numbers),)), descent(numbers), every=3, max_norm=FREE)
    reports = carry_out(Stage("s", {"u": update}, 8))
    assert [report.step for report in reports if report.metrics] == [2, 5]
    assert numbers.value.item() == -1.0


def test_only_what_the_optimizer_holds_moves_whatever_the_gradient_passes():
    first, second, third = Numbers(0.0), Numbers(0.0), Numbers(0.0)
    updates = {
        "first": Update(Slope((((1.0,), first), ((100.0,), second), ((1.0,), third))), descent(first), max_norm=FREE),
        "second": Update(Slope((((1.0,), second), ((100.0,), first))), descent(second), max_norm=FREE),
    }
    carry_out(Stage("s", updates, 1))
    assert first.value.item() == second.value.item() == -0.5  # no gradient of the other update is left over
    assert third.value.item() == 0.0
    assert not first.value.requires_grad
    assert first.value.grad is second.value.grad is None


def test_a_parameter_without_gradient_is_an_error():
    used, forgotten = Numbers(0.0), Numbers(0.0, 0.0)
    update = Update(Slope((((1.0,), used),)), descent(used, forgotten))
    with pytest.raises(RuntimeError, match=r"stage 's', step 0, update 'u': a parameter of shape \(2,\) got no"):
        carry_out(Stage("s", {"u": update}, 1))
    assert used.value.item() == 0.0


def test_two_updates_cannot_share_a_parameter():
    shared, other = Numbers(0.0, 0.0), Numbers(0.0)
    objective = Slope((((1.0, 1.0), shared),))
    updates = {"a": Update(objective, descent(other, shared)), "b": Update(objective, descent(shared))}
    with pytest.raises(ValueError, match=r"updates 'a' and 'b' share a parameter of shape \(2,\); give it to one"):
        Stage("s", updates, 1)


@pytest.mark.parametrize(("field", "value"), [("every", 0), ("max_norm", 0.0)])
def test_updates_out_of_range(field, value):
    numbers = Numbers(0.0)
    with pytest.raises(ValueError, match=field):
        Update(Slope((((1.0,), numbers),)), descent(numbers), **{field: value})


def test_a_loss_that_is_not_finite_stops_before_anything_moves():
    numbers = Numbers(0.0)
    stage = Stage("sketch", {"student": Update(Bad(numbers, at=3), descent(numbers), max_norm=FREE)}, 9)
    with pytest.raises(NonFinite, match=r"'sketch', step 3, update 'student': the loss of Bad is nan \(rows \[2\]\)"):
        carry_out(stage)
    assert numbers.value.item() == -1.5


def test_a_gradient_that_is_not_finite_stops_before_anything_moves():
    numbers = Numbers(0.0, 1.0)
    stage = Stage("sketch", {"student": Update(Root(numbers), descent(numbers))}, 9)
    with pytest.raises(NonFinite, match=r"step 0, update 'student': the gradient's norm is inf though"):
        carry_out(stage)
    assert numbers.value.tolist() == [0.0, 1.0]


def test_average_by_hand():
    source = nn.BatchNorm1d(2)
    average, generator = Average(source, 0.3), np.random.default_rng(0)
    expected = np.ones(2)
    for n in range(12):
        weight = generator.normal(size=2)
        source.weight.data.copy_(torch.from_numpy(weight))
        source.running_mean.fill_(float(n))
        average.update()
        factor = min(0.3, (1 + n) / (10 + n))
        expected = factor * expected + (1 - factor) * weight
        np.testing.assert_allclose(average.module.weight.numpy(), expected, atol=1e-6)
        assert average.module.running_mean.tolist() == [n, n]
    average.install()
    np.testing.assert_allclose(source.weight.detach().numpy(), expected, atol=1e-6)


def test_average_follows_only_the_updates_of_its_module_and_starts_with_the_stage():
    one, two = Numbers(0.0), Numbers(0.0)
    averages = {"one": Average(one, 0.999), "two": Average(two, 0.999)}
    one.value.data.fill_(8.0)
    updates = {
        "one": Update(Slope((((1.0,), one),)), descent(one), every=2),
        "two": Update(Slope((((1.0,), two),)), descent(two)),
    }
    carry_out(Stage("s", updates, 3, averages))
    assert (averages["one"].updates, averages["two"].updates) == (1, 3)
    assert averages["one"].module.value.item() == pytest.approx(0.1 * 8.0 + 0.9 * 7.5)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="decay must be in"):
        Average(Numbers(0.0), decay)


def test_a_step_draws_the_same_whatever_was_drawn_before():
    @dataclass(frozen=True)
    class Noisy:
        numbers: Numbers

        def __call__(self, batch):
            noise = torch.randn(len(batch.x))
            return Loss(self.numbers.value.sum() + noise, {"noise": noise.sum()})

    def draws(start):
        numbers = Numbers(0.0)
        return carry_out(Stage("s", {"u": Update(Noisy(numbers), descent(numbers))}, 6), start)

    whole = [report.metrics["u/noise"] for report in draws(0)]
    torch.manual_seed(99)
    assert [report.metrics["u/noise"] for report in draws(4)] == whole[4:]
    assert len(set(whole)) == 6


def test_unknown_precision():
    numbers = Numbers(0.0)
    stage = Stage("s", {"u": Update(Slope((((1.0,), numbers),)), descent(numbers))}, 1)
    with pytest.raises(ValueError, match="precision 'half' is unknown; use 'float32' or 'bfloat16'"):
        list(steps(stage, batch_at, seed=0, precision="half"))


def test_autocast_leaves_weights_and_loss_in_float32():
    seen = []

    @dataclass(frozen=True)
    class Watch:
        net: nn.Linear

        def __call__(self, batch):
            y = self.net(batch.x)
            seen.append(y.dtype)
            return Loss(y.float().square().mean(1))

    net = nn.Linear(2, 2)
    list(steps(Stage("s", {"u": Update(Watch(net), descent(net))}, 1), batch_at, seed=0, precision="bfloat16"))
    assert seen == [torch.bfloat16]
    assert net.weight.dtype == torch.float32


def test_the_quickest_precision_is_the_quicker_one_of_a_matrix_product():
    """At most three times as slow as the other: without instructions for it, bfloat16 is a hundred times slower."""

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.randn(512, 512).to(dtype), torch.randn(512, 512).to(dtype)
        taken = []
        for _ in range(7):
            begin = time.perf_counter()
            a @ b
            taken.append(time.perf_counter() - begin)
        return min(taken)

    taken = {"bfloat16": seconds(torch.bfloat16), "float32": seconds(torch.float32)}
    assert taken[quickest()] < 3 * min(taken.values())
