"""Shares of a batch: their rows and their random numbers, put together again, are those of the whole."""

import pytest
import torch
import torch.nn.functional as F

from hidistill.objectives.alignment import OneTime, SlicedWasserstein
from hidistill.objectives.combine import GradientSize
from hidistill.share import WHOLE, Drawn, Share, current, everywhere, holding, in_turn, leading
from hidistill.times import Uniform, sample_pair
from hidistill.types import Batch

ROWS = 12

DRAWS = {
    "rand": lambda n: torch.rand(n),
    "rand of a tuple": lambda n: torch.rand((n, 2)),
    "randn": lambda n: torch.randn(n, 3, dtype=torch.float64),
    "randn by size": lambda n: torch.randn(size=(n, 3)),
    "randint": lambda n: torch.randint(7, (n,)),
    "randint from low": lambda n: torch.randint(3, 9, (n, 2)),
    "randint by size": lambda n: torch.randint(9, size=(n,)),
    "rand_like": lambda n: torch.rand_like(torch.zeros(n, 2)),
    "randn_like": lambda n: torch.randn_like(torch.zeros(n, 2, 2)),
    "randn_like in another type": lambda n: torch.randn_like(torch.zeros(n), dtype=torch.float64),
    "randint_like": lambda n: torch.randint_like(torch.zeros(n), 5),
    "normal_": lambda n: torch.empty(n, 2).normal_(1.0, 2.0),
    "uniform_": lambda n: torch.empty(n).uniform_(-1.0, 1.0),
    "two after each other": lambda n: torch.randn(n) + torch.rand(n),
}


def of_share(draw, index, count):
    torch.manual_seed(5)
    with holding(Share(index, count)):
        return draw(ROWS // count)


def together(shares):
    """Rows of all shares in the order of the batch."""
    return torch.stack(shares, 1).flatten(0, 1)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_draws_of_all_shares_are_the_draw_of_the_whole(name, count):
    torch.manual_seed(5)
    whole = DRAWS[name](ROWS)
    assert torch.equal(together([of_share(DRAWS[name], index, count) for index in range(count)]), whole)


def test_two_batches_put_together_stay_with_their_partners():
    def draw(n):
        return torch.randn_like(torch.cat([torch.zeros(n, 2), torch.zeros(n, 2)]))

    torch.manual_seed(5)
    first, second = draw(ROWS).chunk(2)
    for index in range(3):
        mine = of_share(draw, index, 3).chunk(2)
        assert torch.equal(mine[0], first[index::3])
        assert torch.equal(mine[1], second[index::3])


def test_chance_of_bernoulli_and_dropout_differs_from_share_to_share_and_has_its_law():
    p = torch.full((3000, 2), 0.3)
    for draw in (lambda n: torch.bernoulli(p[:n]), lambda n: (F.dropout(torch.ones(n, 2), 0.7) > 0).float()):
        mine = []
        for index in range(2):
            torch.manual_seed(5)
            with holding(Share(index, 2)):
                mine.append(draw(3000))
        assert not torch.equal(*mine)
        assert torch.cat(mine).mean().item() == pytest.approx(0.3, abs=0.02)
    with holding(Share(1, 2)):
        kept = F.dropout(torch.ones(4000), 0.25)
        assert set(kept.tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
        assert torch.equal(F.dropout(p, 0.5, training=False), p)


def test_what_is_no_row_and_what_has_its_own_generator_is_left_alone():
    own = torch.Generator().manual_seed(1)
    expected = torch.randn(4, generator=torch.Generator().manual_seed(1))
    with holding(Share(1, 2)):
        assert torch.equal(torch.randn(4, generator=own), expected)
        torch.manual_seed(5)
        with holding(WHOLE):
            inside = torch.randn(4)
        assert torch.rand(()).ndim == 0
    torch.manual_seed(5)
    assert torch.equal(inside, torch.randn(4))
    assert current() == WHOLE


@pytest.mark.parametrize("part", [0.0, 0.1, 0.25, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12])
def test_leading_rows_of_all_shares_are_those_of_the_batch(part, count):
    first = round(ROWS * part)
    numbers = []
    for index in range(count):
        share = Share(index, count)
        with holding(share):
            numbers += list(share.numbers(ROWS // count))[: leading(ROWS // count, part)]
    assert sorted(numbers) == list(range(first))


def test_pairs_of_times_of_all_shares_are_those_of_the_batch():
    def draw(n):
        return torch.stack(sample_pair(Uniform(), torch.zeros(n, 2), instantaneous=0.5)[:2], 1)

    torch.manual_seed(5)
    whole = draw(ROWS)
    assert torch.equal(together([of_share(draw, index, 3) for index in range(3)]), whole)


def test_values_in_turn_and_one_time_for_all():
    for index in range(2):
        with holding(Share(index, 2)):
            assert in_turn((1.0, 0.5, 0.2), 4) == [(1.0, 0.5, 0.2)[(2 * i + index) % 3] for i in range(4)]
    shared = [of_share(lambda n: OneTime(Uniform()).sample(torch.zeros(n)), index, 2)[0] for index in range(2)]
    assert shared[0] == shared[1]
    sets = torch.randn(6, 1, 4), torch.randn(6, 1, 4)
    distances = [of_share(lambda n: SlicedWasserstein(8)(*sets), index, 2) for index in range(2)]
    assert torch.equal(*distances)


def test_the_size_of_a_gradient_is_that_of_all_processes():
    """Two processes, one after the other: the reduction knows what both would bring."""
    gradient = torch.randn(8, 3)
    x = torch.zeros(8, 3, requires_grad=True)
    (GradientSize.apply(x, 0.3) * gradient).sum(1).mean().backward()
    parts = [gradient[0::2], gradient[1::2]]
    largest = max(part.abs().max() for part in parts) / 4
    total = sum((part / 4 / largest).square().sum() for part in parts)
    for index, part in enumerate(parts):
        mine = torch.zeros(4, 3, requires_grad=True)
        reduce = lambda value, how: largest if how == "max" else total  # noqa: E731
        with holding(Share(index, 2, 2, reduce)):
            (GradientSize.apply(mine, 0.3) * part).sum(1).mean().backward()
        torch.testing.assert_close(mine.grad / 2, x.grad[index::2])


def test_reductions_alone_do_nothing():
    x = torch.randn(3)
    assert everywhere(x) is x
    drawn = Drawn(lambda step: torch.arange(4) + step, lambda rows, step: Batch(rows.float()[:, None], rows, step))
    assert drawn(3).cond.tolist() == [3, 4, 5, 6]
    assert drawn(3).step == 3
