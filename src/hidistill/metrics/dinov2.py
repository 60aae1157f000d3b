"""DINOv2 as a feature space: the class token of the last layer (arXiv 2304.07193), as FD-DINOv2 takes it.

Its weights are a folder of transformers that the user has; nothing is downloaded. Images are resized to 224 x 224 with
antialiasing, bicubic, and normalized as for ImageNet (arXiv 2306.04675, where this distance agrees best with people).
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hidistill.foreign.judges import read_judge
from hidistill.types import Features, Images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels."""
SIDE = 224


def read_model(folder: Path) -> tuple[Any, str]:
    """The network of a folder, and the first eight digits of its weights' sum; raises as `read_judge`."""
    return read_judge(folder, kind="dinov2", name="Dinov2Model", example="dinov2-large")


class DINOv2:
    """The feature space.

    Args:
        folder: of the network; the name of the space has its width and the first digits of its weights' sum, since
            people have several networks under one name.
        side: to which images are resized, a multiple of the network's patch.
        batch_size: images per pass.
        device: where it runs.
    """

    def __init__(self, folder: Path, *, side: int = SIDE, batch_size: int = 32, device: str = "cpu") -> None:
        model, digest = read_model(folder)
        patch = model.config.patch_size
        if side < patch or side % patch:
            raise ValueError(
                f"side={side}: it must be a multiple of the network's patch of {patch}, such as {16 * patch}"
            )
        self.model, self.side, self.batch_size, self.device = model.to(device), side, batch_size, device
        self.name = f"dinov2-{model.config.hidden_size}-{digest}" + (f"-{side}px" if side != SIDE else "")

    @torch.no_grad()
    def __call__(self, images: Images) -> Features:
        """float32 (b, d)."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images of shape {tuple(images.shape)}: give (b, 1, h, w) or (b, 3, h, w)")
        chunks = [self.prepared(chunk).to(self.device) for chunk in images.split(self.batch_size)]
        return torch.cat([self.model(pixel_values=x).last_hidden_state[:, 0].float().cpu() for x in chunks])

    def prepared(self, images: Images) -> Float[Tensor, "b 3 side side"]:
        """Resized and normalized color images."""
        size = (self.side, self.side)
        resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return (resized.expand(-1, 3, -1, -1) - mean) / std
