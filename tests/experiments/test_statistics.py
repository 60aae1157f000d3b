"""Means, spreads, paired differences, and how often their intervals hold what they say they hold."""

import math

import numpy as np
import pytest

from hidistill.experiments.statistics import Spread, expanded, paired, resampled_means, student_quantile


@pytest.mark.parametrize(
    ("degrees", "published"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)]
)
def test_students_quantiles_are_the_published_ones(degrees, published):
    assert student_quantile(0.975, degrees) == pytest.approx(published, abs=6e-4)


def test_a_spread_is_mean_and_sample_deviation():
    found = Spread.of([1.0, 2.0, 6.0])
    assert (found.mean, found.n) == (3.0, 3)
    assert found.std == pytest.approx(math.sqrt(7))
    assert Spread.of([4.0]).std == 0.0


def test_all_resamples_are_made_where_they_are_few():
    means = resampled_means(np.array([0.0, 1.0]))
    assert sorted(means) == [0.0, 0.5, 0.5, 1.0]
    many = resampled_means(np.arange(12.0))
    assert len(many) == 50_000
    assert many.mean() == pytest.approx(5.5, abs=0.05)


def test_pairs_cancel_what_seeds_have_in_common():
    hard, easy = 100.0, 1.0
    values = [hard + 0.5, easy + 0.4, hard + 0.6, easy + 0.5, hard + 0.5]
    found = paired(values, [hard, easy, hard, easy, hard])
    assert found.mean == pytest.approx(0.5)
    assert 0.35 < found.low < found.high < 0.65
    assert found.resolved


def test_few_seeds_resolve_nothing():
    assert not paired([2.0, 2.1, 2.2, 2.1], [1.0, 1.0, 1.0, 1.0]).resolved
    one = paired([2.0], [1.0])
    assert (one.mean, one.low, one.high) == (1.0, -math.inf, math.inf)
    assert not one.resolved


def test_zero_inside_resolves_nothing():
    found = paired([1.0, -1.0, 2.0, -2.0, 0.5], [0.0] * 5)
    assert found.low < 0 < found.high
    assert not found.resolved


@pytest.mark.parametrize("n", [5, 8])
def test_intervals_cover_what_they_say_for_few_normal_values(n):
    """95 % are promised. Plain percentile intervals of five values cover about 82 %."""
    random, hits, plain, rounds = np.random.default_rng(0), 0, 0, 600
    for _ in range(rounds):
        values = random.normal(1.0, 2.0, n)
        found = paired(values.tolist(), [0.0] * n)
        hits += found.low <= 1.0 <= found.high
        low, high = np.quantile(resampled_means(values), [0.025, 0.975])
        plain += low <= 1.0 <= high
    assert 0.91 <= hits / rounds <= 0.985
    assert hits > plain


def test_the_expanded_quantile_is_smaller_than_the_plain_one_and_tends_to_it():
    assert expanded(5) < 0.002
    assert expanded(5) < expanded(10) < expanded(100) < 0.025
    assert expanded(2000) == pytest.approx(0.025, abs=5e-4)


@pytest.mark.parametrize(("values", "reference"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_is_no_pairs_is_refused(values, reference):
    with pytest.raises(ValueError, match="pairs need equally many"):
        paired(values, reference)
