"""Codecs: between pixels in [0, 1] and the space in which teachers live."""

from dataclasses import dataclass

from hidistill.types import Images, Points


@dataclass(frozen=True)
class Pixels:
    """Pixels themselves, scaled to [-1, 1]: `x_0 = 2 image - 1`."""

    def encode(self, images: Images) -> Points:
        """[0, 1] -> [-1, 1]."""
        return 2 * images - 1

    def decode(self, x_0: Points) -> Images:
        """[-1, 1] -> [0, 1], clamped."""
        return ((x_0 + 1) / 2).clamp(0, 1)
