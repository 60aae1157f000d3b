"""How power is spread over spatial frequencies: where an image is blurred, rings or has a grid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from hidistill.types import Images, Samples

LEAST = 8


def radial_power(images: Images) -> Float64[Tensor, " rings"]:
    """Mean power `|F|^2 / (h w)` of the images' Fourier transform in rings of a width of one cycle per image.

    Ring k holds the frequencies with `round(radius) = k` cycles per image, from 1 (the mean is left out) to half the
    shorter side; the radius of other than square images is measured in cycles per the shorter side.

    Raises:
        ValueError: if the images are too small.
    """
    h, w = images.shape[-2:]
    if min(h, w) < LEAST:
        raise ValueError(f"images of shape {tuple(images.shape)}: a spectrum needs at least {LEAST} pixels a side")
    short = min(h, w)
    rows, columns = torch.fft.fftfreq(h, 1 / short), torch.fft.fftfreq(w, 1 / short)
    rings = (rows[:, None].square() + columns.square()).sqrt().round().long()
    total = torch.zeros(h, w, dtype=torch.float64)
    for chunk in images.split(256):
        total += torch.fft.fft2(chunk.double()).abs().square().mean(1).sum(0)
    power = total / (len(images) * h * w)
    kept = (rings >= 1) & (rings <= short // 2)
    sums = torch.zeros(short // 2 + 1, dtype=torch.float64).index_add_(0, rings[kept], power[kept])
    counts = torch.bincount(rings[kept], minlength=short // 2 + 1)
    return sums[1:] / counts[1:]


@dataclass(frozen=True)
class RadialSpectrum:
    """Distance of the logarithms of generated and real images' `radial_power`, and their ratio in thirds of the rings.

    `spectrum` is the root mean square over rings of `10 log10(generated / real)`, in decibel: 0 is the same spectrum.
    `power_low`, `power_middle` and `power_high` are ratios of mean power: 1 is the same, less is lost, more is added.
    """

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return "radial power spectrum"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The numbers `spectrum`, `power_low`, `power_middle` and `power_high`.

        Raises:
            ValueError: if images of different sizes are compared, or some have no power in a ring.
        """
        real = samples.real.once("radial power", lambda: radial_power(samples.real.images))
        generated = radial_power(samples.generated.images)
        if real.shape != generated.shape:
            raise ValueError(
                f"spectra of {len(real)} and {len(generated)} rings: real and generated images have different sizes; "
                "compare images of one size"
            )
        if not (real > 0).all() or not (generated > 0).all():
            whose = "real" if not (real > 0).all() else "generated"
            raise ValueError(f"the {whose} images have no power in some rings: they are constant; look at them")
        decibel = 10 * (generated / real).log10()
        parts = zip(
            ("low", "middle", "high"), zip(real.tensor_split(3), generated.tensor_split(3), strict=True), strict=True
        )
        ratios = {f"power_{name}": (mine.mean() / theirs.mean()).item() for name, (theirs, mine) in parts}
        return {"spectrum": math.sqrt(decibel.square().mean().item()), **ratios}
