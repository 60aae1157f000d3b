import pytest
import torch

from hidistill.metrics.endpoint import EndDistance
from hidistill.types import Gallery, Samples


def distance(images, ends):
    gallery = Gallery(images, torch.zeros(len(images), dtype=torch.int64))
    return dict(EndDistance()(Samples(gallery, gallery, ends)))


def test_is_the_root_of_the_mean_square():
    ends = torch.rand(4, 1, 3, 3) / 2
    assert distance(ends, ends) == {"end_distance": 0}
    assert distance(ends + 0.125, ends) == {"end_distance": pytest.approx(0.125, rel=1e-6)}
    images, ends = torch.tensor([[0.1, 0.5]])[:, None, None], torch.tensor([[0.4, 0.1]])[:, None, None]
    assert distance(images, ends) == {"end_distance": pytest.approx(0.125**0.5)}


def test_says_nothing_without_ends():
    assert distance(torch.rand(2, 1, 2, 2), None) == {}


def test_refuses_ends_of_other_images():
    with pytest.raises(ValueError, match="pair them up"):
        distance(torch.rand(2, 1, 2, 2), torch.rand(1, 1, 2, 2))
