"""The exact interval against closed forms, its own definition, and its coverage; the sign test by counting."""

import math

import pytest

from hidistill.view.preference import Preference, exact_interval, sentence, sign_test, tail


def test_all_of_n_has_the_closed_form():
    low, high = exact_interval(20, 20)
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 20), rel=1e-9)
    low, high = exact_interval(0, 7)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / 7), rel=1e-9)


@pytest.mark.parametrize(("k", "n"), [(1, 3), (7, 20), (60, 100), (501, 1000)])
def test_ends_leave_half_of_the_rest_on_each_side(k, n):
    low, high = exact_interval(k, n)
    assert tail(k, n, low) == pytest.approx(0.025, rel=1e-6)
    assert 1 - tail(k + 1, n, high) == pytest.approx(0.025, rel=1e-6)
    mirrored = exact_interval(n - k, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize("p", [0.03, 0.3, 0.5, 0.81])
def test_covers_at_least_as_often_as_it_says(p):
    n = 30
    law = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    covered = sum(law[k] for k in range(n + 1) if exact_interval(k, n)[0] <= p <= exact_interval(k, n)[1])
    assert covered >= 0.95


def test_sign_test_counts_outcomes():
    for first, second in [(9, 1), (5, 5), (0, 6), (12, 8)]:
        n, most = first + second, max(first, second)
        counted = 2 * sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n
        assert sign_test(first, second) == pytest.approx(min(1.0, counted))


def test_interval_and_test_agree():
    for n in range(1, 40):
        for k in range(n + 1):
            assert Preference(k, n - k).resolved == (sign_test(k, n - k) < 0.05)


def test_words():
    assert "No vote has decided" in sentence(Preference(0, 0, 2), "A", "B")
    assert "2 more saw no difference" in sentence(Preference(0, 0, 2), "A", "B")
    resolved = sentence(Preference(2, 18), "A", "B")
    assert "10.0%, 95 % interval 1.2% to 31.7%" in resolved
    assert "B is preferred to A" in resolved
    assert "does not resolve" in sentence(Preference(6, 5), "A", "B")


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="successes are 0 to n"):
        exact_interval(4, 3)
