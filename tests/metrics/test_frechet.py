from dataclasses import dataclass

import pytest
import torch

from hidistill.metrics.frechet import (
    BLOCK,
    FrechetDistance,
    FrechetLimit,
    Moments,
    Running,
    distance_of_few,
    frechet_distance,
    moments,
    too_few,
)  # fmt: skip
from hidistill.types import Gallery, Samples


@dataclass
class Flat:
    """Pixels as features; counts its passes."""

    name: str = "flat"
    passes: int = 0

    __hash__ = object.__hash__

    def __call__(self, images):
        self.passes += 1
        return images.flatten(1)


def gallery(rows):
    return Gallery(rows.float()[:, None, None], torch.zeros(len(rows), dtype=torch.int64))


def random_covariance(d, seed):
    x = torch.randn(d, 2 * d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x @ x.T / d


def test_commuting_covariances_have_a_closed_form():
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    a, b = torch.rand(2, 6, dtype=torch.float64)
    m, n = torch.randn(2, 6, dtype=torch.float64)
    expected = (m - n).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    got = frechet_distance(Moments(m, (q * a) @ q.T), Moments(n, (q * b) @ q.T))
    assert got == pytest.approx(expected.item(), rel=1e-12)


def test_two_by_two_covariances_have_a_closed_form():
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for 2 x 2, and M has trace and determinant of A B
    a, b, zero = random_covariance(2, 1), random_covariance(2, 2), torch.zeros(2, dtype=torch.float64)
    product = a @ b
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = a.trace() + b.trace() - 2 * root
    assert frechet_distance(Moments(zero, a), Moments(zero, b)) == pytest.approx(expected.item(), rel=1e-12)


def test_agrees_with_the_eigenvalues_of_the_plain_product():
    a, b, zero = random_covariance(12, 3), random_covariance(12, 4), torch.zeros(12, dtype=torch.float64)
    root = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    expected = (a.trace() + b.trace() - 2 * root).item()
    assert frechet_distance(Moments(zero, a), Moments(zero, b)) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(Moments(zero, b), Moments(zero, a)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [4, 200], ids=["fewer images than features", "more"])
def test_a_shift_alone_costs_its_square(n):
    x = torch.randn(n, 30)
    shift = torch.linspace(-1, 1, 30)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(moments(x), moments(x + shift)) == pytest.approx(shift.square().sum().item(), rel=1e-5)


def test_rank_deficient_sets_in_orthogonal_directions_share_nothing():
    x, y = torch.zeros(2, 5, 40)
    x[:, 3], y[:, 30] = torch.arange(5.0), 2 * torch.arange(5.0)
    # variances 2.5 and 10, means 2 and 4 along their axes
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(2.5 + 10 + 4 + 16, rel=1e-9)


def test_moments_are_those_of_the_unbiased_estimate():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]])
    got = moments(x)
    torch.testing.assert_close(got.mean, torch.tensor([1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(got.covariance, torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64))


def test_metric_names_its_space_and_looks_at_real_images_once():
    space, real = Flat(), gallery(torch.randn(50, 3))
    metric = FrechetDistance(space)
    first = metric(Samples(gallery(real.images[:, 0, 0] + 1), real))
    assert set(first) == {"fd/flat"}
    assert first["fd/flat"] == pytest.approx(3, rel=1e-5)
    metric(Samples(gallery(torch.randn(50, 3)), real))
    assert space.passes == 3


def test_refuses_one_image_and_features_that_are_not_finite():
    with pytest.raises(ValueError, match="at least 2"):
        moments(torch.zeros(1, 3))
    broken = torch.zeros(4, 3)
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        moments(broken)
    with pytest.raises(ValueError, match=r"images \[2\] are not finite"):
        FrechetDistance(Flat())(Samples(gallery(broken), gallery(torch.randn(4, 3))))


@pytest.mark.parametrize(("n", "m"), [(5, 7), (40, 12), (60, 80)], ids=["few", "in between", "many"])
def test_few_images_give_the_same_distance_by_singular_values(n, m):
    x, y = torch.randn(n, 20), torch.rand(m, 20)
    assert distance_of_few(x, y) == pytest.approx(frechet_distance(moments(x), moments(y)), rel=1e-8)


def test_few_images_with_a_known_distance():
    # one direction each: variances 2.5 and 10, orthogonal; means 2 and 4 along their axes
    x, y = torch.zeros(2, 5, 40)
    x[:, 3], y[:, 30] = torch.arange(5.0), 2 * torch.arange(5.0)
    assert distance_of_few(x, y) == pytest.approx(2.5 + 10 + 4 + 16, rel=1e-12)
    assert distance_of_few(x, x) == pytest.approx(0, abs=1e-12)
    assert distance_of_few(x, x.flip(0) + 1) == pytest.approx(40, rel=1e-12)


def test_constant_features_have_the_distance_of_their_means():
    x, y = torch.zeros(6, 9), torch.full((4, 9), 2.0)
    assert frechet_distance(moments(x), moments(y)) == distance_of_few(x, y) == pytest.approx(36)


def test_statistics_that_stream_are_those_of_all_rows_whatever_the_batches():
    x = 3 + torch.randn(2 * BLOCK + 77, 5) * torch.tensor([1.0, 10, 100, 0, 1e-3])
    batch = x.double()
    expected = Moments(batch.mean(0), torch.cov(batch.T))
    whole = moments(x)
    torch.testing.assert_close(whole.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.covariance, expected.covariance, rtol=1e-10, atol=1e-12)
    for size in (1, 313, BLOCK, 3000):
        running = Running()
        for part in x[: 400 if size == 1 else None].split(size):
            running.add(part)
        against = moments(x[:400]) if size == 1 else whole
        assert torch.equal(running.moments().mean, against.mean)
        assert torch.equal(running.moments().covariance, against.covariance)


def test_processes_that_share_the_rows_get_the_same_statistics():
    x = torch.randn(4 * BLOCK, 3)
    parts = [Running(), Running()]
    for running, rows in zip(parts, x.split(2 * BLOCK), strict=True):
        running.add(rows)
    first, second = parts
    first.join(second.count, second.mean, second.scatter)
    torch.testing.assert_close(first.moments().covariance, moments(x).covariance, rtol=1e-12, atol=1e-14)


def test_streams_refuse_what_does_not_belong():
    running = Running()
    with pytest.raises(ValueError, match="a covariance of 0 images"):
        running.moments()
    running.add(torch.randn(3, 4))
    with pytest.raises(ValueError, match="width 5 came after some of width 4"):
        running.add(torch.randn(3, 5))
    with pytest.raises(ValueError, match="not finite"):
        running.add(torch.full((1, 4), torch.inf))
    with pytest.raises(ValueError, match="statistics of 4 and 5 features"):
        frechet_distance(moments(torch.randn(9, 4)), moments(torch.randn(9, 5)))


def test_the_limit_is_nearer_to_the_truth_than_the_distance():
    # both are draws from one law, so the distance that infinitely many images would have is the real set's own bias
    generator = torch.Generator().manual_seed(0)
    space, real = Flat(), gallery(torch.randn(20_000, 30, generator=generator))
    samples = Samples(gallery(torch.randn(400, 30, generator=generator)), real)
    plain = FrechetDistance(space)(samples)["fd/flat"]
    limit = FrechetLimit(space)(samples)["fd_limit/flat"]
    assert plain > 0.5
    assert abs(limit) < plain / 4
    assert FrechetLimit(space)(Samples(gallery(torch.randn(299, 30)), real)) == {}
    with pytest.raises(ValueError, match="10 images came; 6 points of a line need at least 12"):
        FrechetLimit(space)(Samples(gallery(torch.randn(10, 1)), gallery(torch.randn(50, 1))))


def test_warnings_where_images_are_few_for_the_dimension():
    assert "singular" in (too_few(500, 1280, "space") or "")
    assert "biased upwards" in (too_few(5000, 1280, "space") or "")
    assert too_few(50_000, 2048, "space") is None


def test_parts_of_a_gallery_keep_what_is_known_of_them():
    space = Flat()
    whole = gallery(torch.randn(6, 3))
    whole.features(space)
    part = whole.rows(torch.tensor([4, 1]))
    assert torch.equal(part.features(space), whole.images[[4, 1], 0, 0])
    assert space.passes == 1
