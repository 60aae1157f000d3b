"""A velocity field on data of another scale."""

from dataclasses import dataclass

from hidistill.path import per_row, velocity_to_data, velocity_to_noise
from hidistill.types import Cond, Points, Times, VelocityField


@dataclass(frozen=True)
class Rescaled:
    """The field of `factor x_0` where `field` is that of `x_0`: at the time of equal signal-to-noise ratio.

    `z_t = (1 - t) factor x_0 + t noise` is `x_s / c` with `c = 1 / ((1 - t) factor + t)` and `s = c t`.

    Args:
        field: the field of x_0.
        factor: what the data is multiplied by.

    Raises:
        ValueError: if the factor is not positive.
    """

    field: VelocityField
    factor: float

    def __post_init__(self) -> None:
        """Refuse a factor that turns or loses the data."""
        if not 0 < self.factor < float("inf"):
            raise ValueError(
                f"Rescaled(factor={self.factor}): the factor must be positive and finite; 1 changes nothing"
            )

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """See `VelocityField.velocity`."""
        c = 1 / ((1 - t) * self.factor + t)
        inner, s = (per_row(c, x_t) * x_t).to(x_t.dtype), c * t
        velocity = self.field.velocity(inner, t=s, cond=cond)
        return velocity_to_noise(velocity, inner, s) - self.factor * velocity_to_data(velocity, inner, s)
