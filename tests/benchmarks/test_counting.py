import pytest
import torch
import torch.nn.functional as F
from measuring.counting import flops, held, moving, peak, saved
from measuring.problems import refine_parts, roles, sketch_parts
from measuring.timing import Spread, in_turns, ratio
from torch import nn

from hidistill.derivative import Forward

FLOAT = 4


def test_products_of_a_linear_layer():
    layer, x = nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    assert flops(lambda: layer(x)) == 2 * 3 * 5 * 7
    assert flops(lambda: layer(x).sum().backward()) == 3 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_of_attention(device):
    q = torch.randn(2, 3, 10, 4, device=device)
    assert flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 3 * 10 * 10 * 4)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_saved_for_backward_are_inputs_of_layers_beside_their_weights(device):
    first, second = nn.Linear(5, 7, device=device), nn.Linear(7, 2, device=device)
    x = torch.randn(3, 5, device=device)
    weights = [*first.parameters(), *second.parameters()]
    assert saved(lambda: second(first(x)), weights) == FLOAT * (3 * 5 + 3 * 7)
    assert saved(lambda: second(first(x).sigmoid()), weights) == FLOAT * (3 * 5 + 3 * 7)  # its answer, which is saved


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fused_attention_saves_no_scores(device):
    q = torch.randn(1, 1, 256, 4, device=device, requires_grad=True)
    assert saved(lambda: F.scaled_dot_product_attention(q, q, q), []) < FLOAT * 256 * 256


def test_peak_counts_what_lives_at_one_time():
    x = torch.zeros(1000)

    def chain():
        y = x + 1
        y = y + 1  # two at a time here, one of them freed
        y = y + 1
        return y.sum()

    def kept():
        ys = [x + i for i in range(3)]
        return ys[0][1:].view(-1)  # views are nothing new

    assert FLOAT * 2000 <= peak(chain) <= FLOAT * 2002
    assert peak(kept) == FLOAT * 3000
    assert peak(lambda: x.add_(1)) == 0


def test_held_counts_a_storage_once():
    x = torch.zeros(10)
    assert held([x, x[1:], x.view(2, 5), torch.zeros(3)]) == FLOAT * 13


def test_moving_leaves_no_gradient_behind():
    weight = torch.ones(2, requires_grad=False)
    seen = []
    moving([weight], lambda: (seen.append(weight.requires_grad), weight.sum())[1])()
    assert seen == [True]
    assert weight.grad is None
    assert not weight.requires_grad


def test_meta_counts_what_real_tensors_count():
    counted = []
    for device in ("cpu", "meta"):
        made = roles("tiny", 4, device=device)
        parts = dict(sketch_parts(made, Forward())) | dict(refine_parts(made))
        counted.append({name: flops(call) for name, call in parts.items()})
    assert counted[0] == counted[1]


def test_turns_and_ratios():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    taken = in_turns(calls, rounds=3, warmup=0)
    assert "".join(order) == "abcbcacab"
    assert [len(values) for values in taken.values()] == [3, 3, 3]
    spread = ratio([1.0, 2.0, 6.0], [2.0, 2.0, 2.0])
    assert (spread.median, spread.low, spread.high, spread.count) == (1.0, 0.75, 2.0, 3)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)
    with pytest.raises(ValueError, match="one round or more"):
        Spread.of([])
