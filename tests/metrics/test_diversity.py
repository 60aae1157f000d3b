import pytest
import torch

from hidistill.metrics.diversity import BLOCK, IntraClassDiversity, mean_pairwise_distance
from hidistill.types import Gallery, Samples


def diversity(generated, real):
    return IntraClassDiversity()(Samples(generated, real))["diversity"]


def line(values, labels):
    return Gallery(torch.tensor(values)[:, None, None, None], torch.tensor(labels))


def test_of_real_images_against_themselves_is_one():
    real = Gallery(torch.rand(30, 1, 4, 4), torch.arange(30) % 3)
    assert diversity(real, real) == pytest.approx(1)


def test_of_one_image_per_class_is_zero():
    real = Gallery(torch.rand(60, 1, 4, 4), torch.arange(60) % 2)
    collapsed = Gallery(real.images[:2].repeat(30, 1, 1, 1), real.labels)
    assert diversity(collapsed, real) == pytest.approx(0, abs=1e-7)


def test_of_half_the_contrast_is_a_half():
    real = Gallery(torch.rand(60, 1, 4, 4), torch.arange(60) % 2)
    assert diversity(Gallery(0.5 + real.images / 2, real.labels), real) == pytest.approx(0.5)


def test_every_class_counts_the_same():
    # class 0: pairs .5, 1, .5 against 1; class 1: a pair 1 against .5
    real = line([0.0, 1.0, 0.25, 0.75], [0, 0, 1, 1])
    generated = line([0.0, 0.5, 1.0, 0.0, 1.0], [0, 0, 0, 1, 1])
    assert diversity(generated, real) == pytest.approx((2 / 3 + 2) / 2)


def test_blocks_do_not_show():
    images = torch.rand(BLOCK + 30, 1, 2, 2)
    expected = torch.nn.functional.pdist(images.double().flatten(1)).mean().item()
    assert mean_pairwise_distance(images) == pytest.approx(expected)


def test_refuses_classes_without_a_pair():
    real = line([0.0, 1.0, 0.5, 0.5], [0, 0, 1, 1])
    with pytest.raises(ValueError, match="a pair needs 2"):
        diversity(line([0.0, 1.0, 0.5], [0, 0, 1]), real)
    with pytest.raises(ValueError, match=r"classes \[1\] have no two different real images"):
        diversity(line([0.0, 1.0], [1, 1]), real)
