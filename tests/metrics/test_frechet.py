from dataclasses import dataclass

import pytest
import torch

from hidistill.metrics.frechet import FrechetDistance, Moments, frechet_distance, moments
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
