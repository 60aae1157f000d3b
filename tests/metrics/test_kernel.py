from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hidistill.metrics.kernel import KernelDistance, squared_mmd
from hidistill.types import Gallery, Samples


@dataclass(frozen=True)
class Flat:
    name: str = "flat"

    def __call__(self, images):
        return images.flatten(1)


def gallery(rows):
    return Gallery(rows.float()[:, None, None], torch.zeros(len(rows), dtype=torch.int64))


def test_by_hand_with_numpy():
    x, y = np.random.default_rng(0).normal(size=(2, 7, 4))
    y = y[:5]
    xx, yy, xy = ((a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    expected = (xx.sum() - np.trace(xx)) / 42 + (yy.sum() - np.trace(yy)) / 20 - 2 * xy.mean()
    assert squared_mmd(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-12)


def test_it_is_unbiased_where_both_laws_are_one():
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    values = [squared_mmd(a, b) for a, b in zip(x[:2000].split(20), x[2000:].split(20), strict=True)]
    mean, error = np.mean(values), np.std(values, ddof=1) / 10
    assert abs(mean) < 3 * error


def test_few_images_are_halved_so_that_subsets_differ():
    real, generated = torch.randn(60, 3), torch.randn(60, 3) + 1
    found = KernelDistance(Flat(), subsets=200)(Samples(gallery(generated), gallery(real)))
    assert found["kid_std/flat"] > 0
    assert abs(found["kid/flat"] - squared_mmd(real, generated)) < 4 * found["kid_std/flat"] / 200**0.5
    with pytest.raises(ValueError, match="1 real and 1 generated"):
        KernelDistance(Flat())(Samples(gallery(generated[:2]), gallery(real[:2])))


def test_subsets_are_the_same_for_every_row_and_smaller_ones_spread():
    real, generated = torch.randn(60, 3), torch.randn(60, 3) + 1
    metric = KernelDistance(Flat(), subsets=20, size=20)
    first = metric(Samples(gallery(generated), gallery(real)))
    assert first == metric(Samples(gallery(generated), gallery(real)))
    assert first["kid_std/flat"] > 0
    assert abs(first["kid/flat"] - squared_mmd(real, generated)) < first["kid_std/flat"]


def test_refuses_one_image_and_one_subset():
    with pytest.raises(ValueError, match="1 real and 3 generated"):
        squared_mmd(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="error bars need 2 subsets"):
        KernelDistance(Flat(), subsets=1)
