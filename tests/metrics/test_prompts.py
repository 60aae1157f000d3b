"""Prompt agreement against closed forms: a linear world, in which a ridge finds the map."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hidistill.metrics.prompts import PromptAgreement, Ridge, choose, distinct, ranks
from hidistill.types import Gallery, Samples


@dataclass(frozen=True)
class Flat:
    """Pixels themselves as features."""

    name: str = "pixels"

    def __call__(self, images):
        return images.flatten(1)


def world(n=80, noise=0.0):
    """Pictures of 12 pixels whose captions' embeddings are a linear image of them."""
    images = torch.rand(n, 3, 2, 2)
    mixing = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    embeddings = images.flatten(1) @ mixing + noise * torch.randn(n, 6)
    return images, embeddings


def judge(images, embeddings, penalty=1e-6):
    ridge = Ridge.fit(images.flatten(1), embeddings, penalty)
    return PromptAgreement(Flat(), ridge, embeddings, penalty)


def test_ridge_is_numpys_least_squares_with_rows_for_the_penalty():
    images, embeddings = world(noise=0.5)
    x, y = images.flatten(1).double().numpy(), embeddings.double().numpy()
    x, y = x - x.mean(0), y - y.mean(0)
    ridge = 0.3 * (x**2).sum() / 12
    rows = np.concatenate([x, np.sqrt(ridge) * np.eye(12)]), np.concatenate([y, np.zeros((12, 6))])
    expected = np.linalg.lstsq(*rows, rcond=None)[0]
    fitted = Ridge.fit(images.flatten(1), embeddings, 0.3)
    np.testing.assert_allclose(fitted.weight.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_pictures_of_their_prompts_are_all_found_and_shuffled_ones_by_chance():
    images, embeddings = world()
    real = Gallery(images, torch.zeros(80, dtype=torch.long))
    metric = judge(images, embeddings)
    right = metric(Samples(Gallery(images.clone(), real.labels), real, images))
    assert right["prompt_recall@1/pixels"] == right["prompt_recall_real@1/pixels"] == 1.0
    wrong = metric(Samples(Gallery(images.roll(7, 0), real.labels), real, images))
    assert wrong["prompt_recall@1/pixels"] < 0.05
    assert wrong["prompt_recall@10/pixels"] < 0.3


def test_ranks_count_the_nearer_prompts():
    prompts = torch.eye(3, dtype=torch.float64)
    predicted = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]], dtype=torch.float64)
    assert ranks(predicted, prompts, [0, 1, 2]).tolist() == [0, 1, 2]


def test_equal_prompts_are_one():
    kept, own = distinct(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    assert len(kept) == 2
    assert own[0] == own[2] != own[1]


def test_more_noise_takes_a_larger_penalty():
    def chosen(noise):
        torch.manual_seed(3)
        images, embeddings = world(60, noise)
        return choose(images[:16].flatten(1), embeddings[:16], images[16:].flatten(1), embeddings[16:])

    assert chosen(0.0) < chosen(20.0)


def test_pictures_that_nobody_asked_for_have_no_numbers_and_too_many_are_refused():
    images, embeddings = world()
    real = Gallery(images, torch.zeros(80, dtype=torch.long))
    metric = judge(images[:40], embeddings[:40])
    assert metric(Samples(real, real)) == {}
    with pytest.raises(ValueError, match="80 pictures for 40 prompts"):
        metric(Samples(real, real, images))
