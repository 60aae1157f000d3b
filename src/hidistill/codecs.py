"""Codecs: between pixels in [0, 1] and the space in which teachers live."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hidistill.types import Codec, Images, Points


@dataclass(frozen=True)
class Pixels:
    """Pixels themselves, scaled to [-1, 1]: `x_0 = 2 image - 1`."""

    @property
    def factor(self) -> int:
        """Pixels per side of one point: 1."""
        return 1

    @property
    def digest(self) -> str:
        """What tells this codec from others."""
        return "pixels"

    def encode(self, images: Images) -> Points:
        """[0, 1] -> [-1, 1]."""
        return 2 * images - 1

    def decode(self, x_0: Points) -> Images:
        """[-1, 1] -> [0, 1], clamped."""
        return ((x_0 + 1) / 2).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """Latents of an autoencoder as pipelines hand them to their networks: `x_0 = (latent - shift) * scale`.

    The latent is the mean of the encoder's distribution, not a draw from it: a picture has one latent.

    Args:
        module: the autoencoder, whose `encode` takes and whose `decode(...).sample` gives pixels in [-1, 1].
        latent: the latent in what `module.encode` answers.
        factor: pixels per side of one latent.
        channels: of the latents.
        image_channels: of the pictures: 1 for gray, 3 for color.
        shift: subtracted from latents; one number, or one per channel.
        scale: by which they are multiplied then; one number, or one per channel.
        digest: tells its weights and numbers from others.

    Raises:
        ValueError: if the numbers cannot be, or do not belong to the channels.
    """

    module: nn.Module
    latent: Callable[[Any], Points]
    factor: int
    channels: int
    image_channels: int = 3
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    digest: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers by which nothing could be scaled back."""
        for name, values in (("shift", self.shift), ("scale", self.scale)):
            if len(values) not in (1, self.channels) or (name == "scale" and 0 in values):
                raise ValueError(
                    f"{name} {values} came for latents of {self.channels} channels; give one number or "
                    f"{self.channels}, no scale of 0: check the autoencoder's configuration"
                )

    def encode(self, images: Images) -> Points:
        """[0, 1] -> latents in float32.

        Raises:
            ValueError: if the pictures have other channels, or a side is no multiple of `factor`.
        """
        _, channels, height, width = images.shape
        if channels != self.image_channels:
            raise ValueError(
                f"pictures of {channels} channels came; this autoencoder takes {self.image_channels} "
                f"({'gray' if self.image_channels == 1 else 'color'}): convert them"
            )
        if height % self.factor or width % self.factor:
            near = [max(self.factor, round(side / self.factor) * self.factor) for side in (height, width)]
            raise ValueError(
                f"pictures of {height} x {width} pixels came; this autoencoder takes sides that are multiples of "
                f"{self.factor}: crop or resize them, e.g. to {near[0]} x {near[1]}"
            )
        latent = self.latent(self.module.encode(self.own(2 * images - 1))).to(images.device, torch.float32)  # type: ignore[operator]
        return (latent - per_channel(self.shift, latent)) * per_channel(self.scale, latent)

    def decode(self, x_0: Points) -> Images:
        """Latents -> [0, 1], clamped, in float32.

        Raises:
            ValueError: if the latents have other channels.
        """
        if x_0.ndim != 4 or x_0.shape[1] != self.channels:
            raise ValueError(
                f"latents of shape {tuple(x_0.shape)} came; this autoencoder takes (b, {self.channels}, h, w): "
                "were they made with another one?"
            )
        latent = x_0 / per_channel(self.scale, x_0) + per_channel(self.shift, x_0)
        pixels = self.module.decode(self.own(latent)).sample  # type: ignore[operator]
        return ((pixels.to(x_0.device, torch.float32) + 1) / 2).clamp(0, 1)

    def own(self, values: Tensor) -> Tensor:
        """In the module's type and on its device."""
        return values.to(next(self.module.parameters()))


def modules_of(codec: Codec) -> dict[str, nn.Module]:
    """The networks of a codec by role; none if it only scales."""
    return {"codec": codec.module} if isinstance(codec, Autoencoder) else {}


def per_channel(values: tuple[float, ...], like: Points) -> Tensor:
    """Numbers for the channels of (b, c, h, w)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1)


@torch.no_grad()
def round_trip(codec: Codec, images: Images) -> float:
    """What a codec loses: the RMS of `decode(encode(images)) - images` over the standard deviation of the pixels.

    0 is exact; 1 is as bad as answering with the mean color.

    Raises:
        ValueError: if all pixels are alike.
    """
    spread = images - images.mean((0, 2, 3), keepdim=True)
    if not spread.any():
        raise ValueError("pictures of one color came, on which no loss can be measured; give pictures with content")
    return float(((codec.decode(codec.encode(images)) - images).square().mean() / spread.square().mean()).sqrt())
