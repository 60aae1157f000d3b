"""A feature space that remembers on the disk what it computed, by the content of the pictures."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hidistill.files import whole
from hidistill.types import Features, FeatureSpace, Images


@dataclass(frozen=True, eq=False)
class Cached:
    """The space itself; blocks of pictures whose pixels, at 8 bits, were seen before cost nothing.

    Args:
        space: its name must tell its weights from others, since files are kept by it.
        folder: of the files; several processes may share it.
    """

    space: FeatureSpace
    folder: Path

    @property
    def name(self) -> str:
        """The space's."""
        return self.space.name

    def __call__(self, images: Images) -> Features:
        """float32 features of a block.

        Raises:
            ValueError: if a file was damaged.
        """
        pixels = (255 * images).round().byte().contiguous().numpy()
        total = hashlib.sha256(repr(pixels.shape[1:]).encode() + pixels.tobytes()).hexdigest()[:32]
        path = self.folder / self.space.name / f"{total}.npy"
        if path.exists():
            try:
                features = torch.from_numpy(np.load(path, allow_pickle=False))
            except (ValueError, EOFError, OSError) as error:
                raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from error
            if features.ndim != 2 or len(features) != len(images):
                raise ValueError(f"{path} has shape {tuple(features.shape)} for {len(images)} images; delete it")
            return features
        features = self.space(images)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial, partial.open("wb") as file:
            np.save(file, features.numpy(), allow_pickle=False)
        return features
