import json

import pytest
import torch
import torch.nn.functional as F

from hidistill.data.fashion import bundled
from hidistill.metrics.classifier import (
    BUNDLED,
    Classifier,
    ClassifierFeatures,
    accuracy,
    fashion_features,
    read_classifier,
    save_classifier,
    shifted,
    train_classifier,
)
from hidistill.types import FeatureSpace, Split
from hidistill.weights import WeightsError, save


def stripes(count=96, channels=1):
    """Class 0 has horizontal stripes, class 1 vertical ones."""
    labels = torch.arange(count) % 2
    rows = (torch.arange(8) // 2 % 2).expand(8, 8)
    images = torch.where(labels[:, None, None, None] == 1, rows, rows.T) * torch.randint(128, 256, (count, 1, 1, 1))
    return Split(images.expand(-1, channels, -1, -1).to(torch.uint8).contiguous(), labels, ("rows", "columns"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_short_training_learns_an_easy_task(channels):
    classifier = train_classifier(stripes(channels=channels), steps=30, batch_size=32, seed=1)
    assert not classifier.training
    assert accuracy(classifier, stripes(channels=channels)) > 0.97


def test_training_is_a_function_of_its_seed_and_leaves_the_generator_alone():
    split = stripes()
    state = torch.get_rng_state()
    one, two, other = (train_classifier(split, steps=2, batch_size=16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_the_logits_are_linear_in_the_features():
    classifier = Classifier(5, channels=3).eval()
    images = torch.rand(4, 3, 16, 16)
    features = classifier.features(images)
    assert features.shape == (4, 64)
    torch.testing.assert_close(classifier(images), F.linear(features, classifier.head.weight, classifier.head.bias))


def test_pictures_move_whole():
    images = torch.zeros(200, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 7
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    spots = torch.nonzero(moved[:, 0] == 7)
    assert len(spots) == 200
    assert (spots[:, 1:].amin(), spots[:, 1:].amax()) == (2, 6)
    assert torch.equal(shifted(images, 0, torch.Generator()), images)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2"):
        Classifier(1)
    with pytest.raises(ValueError, match="channels=2"):
        Classifier(2, channels=2)
    with pytest.raises(ValueError, match="convert or resize"):
        Classifier(2).eval()(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="training mode"):
        ClassifierFeatures(Classifier(2))
    with pytest.raises(ValueError, match="steps=0"):
        train_classifier(stripes(), steps=0)


def test_saving_keeps_the_function(tmp_path):
    classifier = train_classifier(stripes(), steps=3, batch_size=16)
    path = tmp_path / "judge.safetensors"
    save_classifier(path, classifier, {"seed": "0"})
    images = torch.rand(8, 1, 8, 8)
    torch.testing.assert_close(read_classifier(path)(images), classifier(images), atol=5e-3, rtol=1e-2)
    assert json.loads(path.with_suffix(".json").read_text()) == {"seed": "0"}


def test_another_network_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save(path, torch.nn.Linear(2, 2), family="mlp", config={})
    with pytest.raises(WeightsError, match="family 'mlp'"):
        read_classifier(path)


def test_the_bundled_judge_is_as_good_as_its_card_says():
    card = json.loads(BUNDLED.with_suffix(".json").read_text())
    measured = accuracy(read_classifier(), bundled("test"))
    assert measured > 0.92
    assert measured == pytest.approx(float(card["accuracy_on_bundled_2000_test"]), abs=0.002)
    assert BUNDLED.stat().st_size < 400_000


def test_features_depend_on_their_own_picture_alone():
    space = fashion_features()
    assert isinstance(space, FeatureSpace)
    assert space.name == "fashion-classifier-64"
    images = bundled("test").images[:7].float() / 255
    together = space(images)
    assert together.shape == (7, 64)
    assert not together.requires_grad
    torch.testing.assert_close(torch.cat([space(image[None]) for image in images]), together, atol=1e-5, rtol=1e-5)
    chunks = ClassifierFeatures(space.classifier, batch_size=3)
    torch.testing.assert_close(chunks(images), together, atol=1e-5, rtol=1e-5)
