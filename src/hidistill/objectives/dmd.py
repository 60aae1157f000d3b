"""Distribution matching distillation: samples move from where they are likely to where data is likely."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hidistill.path import mean_per_sample, per_row, velocity_to_data
from hidistill.types import Loss, Noised, PerSample, VelocityField


@dataclass(frozen=True)
class DMD:
    """The gradient of KL(student || teacher), smoothed by noise, as a loss on the student's samples.

    `gradient = (x0_fake(x_t) - x0_real(x_t)) / mean|x_0 - x0_real(x_t)|`, the denoised samples under the student's
    distribution and under the teacher's (arXiv 2311.18828, eq. 7 and 8); the loss
    `weight / 2 |x_0 - constant(x_0 - gradient)|^2`, mean over the components, has exactly that gradient times
    weight / components. The gradient of the divergence carries a further factor 1 - t, which is left out, as it is in
    public implementations: it would all but silence the noisiest samples. The real score is the noised sample's
    `probe`, with the guidance of its teacher; the fake score is not guided (arXiv 2405.14867).

    Args:
        fake: the fake score: a velocity field that follows the student's samples.
        weight: factor on the loss.
        floor: smallest divisor, against samples that the teacher leaves where they are.
        sample_weight: further factor of each sample, without gradient, such as another divergence's
            (`DivergenceWeight`); None weighs all alike.
    """

    fake: VelocityField
    weight: float = 1.0
    floor: float = 1e-5
    sample_weight: Callable[[Noised], PerSample] | None = None

    def __call__(self, noised: Noised) -> Loss:
        """The loss per sample, and the mean size of the normalized gradient."""
        with torch.no_grad():
            x_t = noised.x_t.detach()
            x_0 = noised.x_0.detach().float()
            fake = velocity_to_data(noised.velocity(self.fake), x_t, noised.t).float()
            real = velocity_to_data(noised.probe.velocity, x_t, noised.t).float()
            scale = mean_per_sample((x_0 - real).abs()).clamp_min(self.floor)
            gradient = (fake - real) / per_row(scale, real)
        value = 0.5 * self.weight * mean_per_sample((noised.x_0.float() - (x_0 - gradient)).square())
        if self.sample_weight is not None:
            value = value * self.sample_weight(noised).detach().to(value.dtype)
        return Loss(value, {"dmd_gradient": gradient.square().mean().sqrt()})
