"""Handwritten digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998), as scikit-learn ships them: 1,797 pictures."""

from typing import Literal

import numpy as np
import torch

from hidistill.types import Split

CLASSES = tuple("0123456789")
FIFTHS = {"train": (0, 1, 2), "valid": (3,), "test": (4,)}


def digits(part: Literal["train", "valid", "test"]) -> Split:
    """Three fifths of each class for training, one for validation, one for test; 16 gray levels become 0 to 255.

    Raises:
        ModuleNotFoundError: if scikit-learn is missing; says how to install it.
    """
    if part not in FIFTHS:
        raise ValueError(f"part {part!r}: the digits come in the parts {', '.join(FIFTHS)}; choose one of them")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is missing; run `pip install scikit-learn`", name=error.name
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    levels = np.rint(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = np.asarray(labels, np.int64)
    rank = np.zeros_like(labels)
    for c in range(len(CLASSES)):
        rank[labels == c] = np.arange((labels == c).sum())
    chosen = np.isin(rank % 5, FIFTHS[part])
    return Split(torch.from_numpy(levels[chosen]), torch.from_numpy(labels[chosen]), CLASSES)
