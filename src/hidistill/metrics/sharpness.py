"""How much fine detail pictures have: blur lowers it, noise raises it."""

from collections.abc import Mapping
from dataclasses import dataclass

from hidistill.types import Images, Samples


def high_frequency_energy(images: Images) -> float:
    """Mean of `(x[i+1, j+1] - x[i+1, j] - x[i, j+1] + x[i, j])^2` over images, channels, rows i and columns j.

    Raises:
        ValueError: if the images have fewer than two rows or columns.
    """
    if min(images.shape[-2:]) < 2:
        raise ValueError(
            f"images of shape {tuple(images.shape)} came; differences need 2 rows and columns: use larger ones"
        )
    x = images.double()
    return (x[..., 1:, 1:] - x[..., 1:, :-1] - x[..., :-1, 1:] + x[..., :-1, :-1]).square().mean().item()


@dataclass(frozen=True)
class HighFrequencyRatio:
    """`high_frequency_energy` of generated images over that of real ones: below 1 is blur, above 1 noise or ringing."""

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return "high_frequency"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The number `high_frequency`."""
        real = samples.real.once("high_frequency", lambda: high_frequency_energy(samples.real.images))
        if real == 0:
            raise ValueError(
                "the real images have no fine detail at all; a ratio needs some: compare with other images"
            )
        return {"high_frequency": high_frequency_energy(samples.generated.images) / real}
