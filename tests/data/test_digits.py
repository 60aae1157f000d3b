import sys

import pytest
import torch

from hidistill.data.digits import digits

PARTS = ("train", "valid", "test")


def test_the_parts_are_the_whole_set_once():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    pixels, labels = load_digits(return_X_y=True)
    splits = [digits(part) for part in PARTS]
    images = torch.cat([split.images for split in splits]).flatten(1).double() * 16 / 255
    ours = sorted(
        (*row.round().int().tolist(), label)
        for row, label in zip(images, torch.cat([s.labels for s in splits]).tolist(), strict=True)
    )
    assert ours == sorted((*map(int, row), int(label)) for row, label in zip(pixels, labels, strict=True))


def test_the_parts_are_stratified_and_use_the_whole_range():
    pytest.importorskip("sklearn")
    for part, share in zip(PARTS, (0.6, 0.2, 0.2), strict=True):
        split = digits(part)
        assert split.images.shape[1:] == (1, 8, 8)
        assert (split.images.min(), split.images.max()) == (0, 255)
        assert (torch.bincount(split.labels) - 179.7 * share).abs().max() < 4


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        digits("train")
