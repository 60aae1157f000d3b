from dataclasses import dataclass

import pytest
import torch

from hidistill.metrics.cached import Cached
from hidistill.types import FeatureSpace


@dataclass
class Counting:
    name: str = "counting"
    passes: int = 0

    __hash__ = object.__hash__

    def __call__(self, images):
        self.passes += 1
        return images.flatten(1)


def test_the_same_pixels_are_looked_at_once_by_any_process(tmp_path):
    space = Counting()
    cached = Cached(space, tmp_path)
    assert isinstance(cached, FeatureSpace)
    images = torch.randint(0, 256, (3, 1, 2, 2)) / 255
    first = cached(images)
    assert torch.equal(first, images.flatten(1))
    assert torch.equal(Cached(space, tmp_path)(images.clone()), first)
    assert space.passes == 1
    cached(images.flip(0))
    cached(images.reshape(3, 1, 1, 4))
    assert space.passes == 3, "another order and another shape are other pictures"
    other = Counting("other")
    Cached(other, tmp_path)(images)
    assert other.passes == 1


def test_a_damaged_file_is_named(tmp_path):
    cached, images = Cached(Counting(), tmp_path), torch.rand(2, 1, 2, 2)
    cached(images)
    (file,) = (tmp_path / "counting").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"is damaged .* delete it, and it is made again"):
        cached(images)
