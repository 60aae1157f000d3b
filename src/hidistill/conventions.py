"""Conventions of other people's networks, carried over to the linear path `x_t = (1 - t) x_0 + t noise`.

A network on any Gaussian path `x = alpha x_0 + sigma noise` is the same velocity field after its signal-to-noise ratio
is matched and its input rescaled. At each t a convention gives what turns one into the other:

    velocity(x_t, t) = skip x_t + gain F(scale x_t, time),

`F` the network as it is, `time` in the network's own unit. The coefficients are computed in float64.

Where a schedule ends before pure noise (the linear one of arXiv 2006.11239 ends at t = 0.9937), the network is asked at
its own last time, its answer is read as data there, and the velocity leads to that data: one step from t = 1 is then
the step that a DDIM sampler (arXiv 2010.02502) takes from its last time.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hidistill.types import PerSample, Times

Prediction = Literal["epsilon", "v_prediction", "sample", "edm", "score"]
"""What a network answers: the noise, `alpha noise - sigma x_0` (arXiv 2202.00512), the data, the F of arXiv 2206.00364
(eq. 7), which is minus the second on data of unit size, or the score of `x_0 + sigma noise`, which is also what such a
network is given (arXiv 2011.13456)."""
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample", "edm", "score")
ZERO = 1e-6
"""Signal share below which a schedule ends in pure noise."""


class Border(NamedTuple):
    """`velocity = skip x_t + gain F(scale x_t, time)`, each a value per row, in float64."""

    time: Times
    scale: Times
    skip: Times
    gain: Times


@runtime_checkable
class Convention(Protocol):
    """How a network's input, time and answer belong to the linear path."""

    def at(self, t: Times) -> Border:
        """The coefficients at times t."""
        ...

    @property
    def last(self) -> float:
        """The largest t that the network was trained at; 1 is pure noise."""
        ...

    @property
    def words(self) -> str:
        """The convention in one line."""
        ...


@dataclass(frozen=True)
class Flow:
    """Networks that answer with a velocity on the linear path itself (arXiv 2210.02747, 2209.03003).

    Args:
        unit: the network's time at t = 1: 1000 in diffusers, 1 in the repository of SiT (arXiv 2401.08740).
        reversed: whether the network's time runs from noise to data and its velocity points there, as SiT's does.
    """

    unit: float = 1000.0
    reversed: bool = False

    def at(self, t: Times) -> Border:
        """See `Convention.at`."""
        t = t.double()
        one = torch.ones_like(t)
        time = (1 - t) if self.reversed else t
        return Border(self.unit * time, one, torch.zeros_like(t), -one if self.reversed else one)

    @property
    def last(self) -> float:
        """See `Convention.last`."""
        return 1.0

    @property
    def words(self) -> str:
        """See `Convention.words`."""
        direction = "t = 1 is data, answer x_0 - noise" if self.reversed else "t = 1 is noise, answer noise - x_0"
        return f"flow: {direction}, time {self.unit:g} t"


@runtime_checkable
class NetworkTimes(Protocol):
    """The network's time as a function of the shares of signal and noise."""

    @property
    def ends(self) -> tuple[float, float]:
        """Least and greatest logarithm of noise over signal that the network knows; the latter may be infinite."""
        ...

    def __call__(self, alpha: PerSample, sigma: PerSample) -> Times:
        """The network's time where the signal's share is alpha and the noise's sigma, within the ends."""
        ...


@dataclass(frozen=True)
class Table:
    """Times of a discrete schedule: the k-th log ratio of noise over signal belongs to time k, with lines in between.

    The last one may be infinite, which is pure noise; towards it the line is in the ratio of signal over noise.

    Raises:
        ValueError: if there are fewer than two finite ratios, or they do not rise.
    """

    log_ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        pairs = zip(self.log_ratios, self.log_ratios[1:], strict=False)
        whole = len(self.finite) > 1 and self.finite == self.log_ratios[: len(self.finite)]
        if not (whole and all(low < high for low, high in pairs)):
            raise ValueError(
                f"a schedule of {len(self.log_ratios)} noise levels came that do not rise all the way; at least two "
                "are needed, each noisier than the one before: check the betas in the scheduler's configuration"
            )

    @cached_property
    def finite(self) -> tuple[float, ...]:
        """The log ratios but a last one that is infinite."""
        return tuple(ratio for ratio in self.log_ratios if math.isfinite(ratio))

    @classmethod
    def of(cls, alphas_cumprod: Float[Tensor, " k"]) -> "Table":
        """The table of a variance-preserving schedule, `alphas_cumprod[k]` the squared share of the signal."""
        kept = alphas_cumprod.double()
        ratio = ((1 - kept) / kept.clamp(min=0)).log() / 2
        return cls(tuple(ratio.tolist()))

    @property
    def ends(self) -> tuple[float, float]:
        """See `NetworkTimes.ends`."""
        return self.log_ratios[0], self.log_ratios[-1]

    def __call__(self, alpha: PerSample, sigma: PerSample) -> Times:
        """See `NetworkTimes`."""
        knots = torch.tensor(self.finite, dtype=alpha.dtype, device=alpha.device)
        log_ratio = sigma.log() - alpha.clamp(min=torch.finfo(alpha.dtype).tiny).log()
        right = torch.searchsorted(knots, log_ratio.detach().contiguous()).clamp(1, len(knots) - 1)
        low, high = knots[right - 1], knots[right]
        inside = right - 1 + ((log_ratio - low) / (high - low)).clamp(0, 1)
        if len(knots) == len(self.log_ratios):
            return inside
        rest = alpha / sigma * knots[-1].exp()
        return torch.where(rest < 1, len(knots) - rest, inside)


@dataclass(frozen=True)
class LogSigma:
    """Times of EDM: a quarter of the logarithm of the noise level (arXiv 2206.00364, table 1).

    Args:
        sigma_min: least noise level, in units of the data.
        sigma_max: greatest.
        data_std: by which the ratio of noise to signal is to be multiplied to be a noise level.
    """

    sigma_min: float
    sigma_max: float
    data_std: float

    @property
    def ends(self) -> tuple[float, float]:
        """See `NetworkTimes.ends`."""
        return math.log(self.sigma_min / self.data_std), math.log(self.sigma_max / self.data_std)

    def __call__(self, alpha: PerSample, sigma: PerSample) -> Times:
        """See `NetworkTimes`."""
        return (self.data_std * sigma / alpha).log() / 4


@dataclass(frozen=True)
class Sigma:
    """Times that are the noise level itself, as of the score networks of arXiv 2011.13456 on exploding variance.

    Args:
        sigma_min: least noise level.
        sigma_max: greatest.
    """

    sigma_min: float
    sigma_max: float

    @property
    def ends(self) -> tuple[float, float]:
        """See `NetworkTimes.ends`."""
        return math.log(self.sigma_min), math.log(self.sigma_max)

    def __call__(self, alpha: PerSample, sigma: PerSample) -> Times:
        """See `NetworkTimes`."""
        return sigma / alpha


@dataclass(frozen=True)
class Diffusion:
    """Networks trained on `alpha x_0 / data_std + sigma noise` with `alpha^2 + sigma^2 = 1`, or on that over alpha.

    Args:
        prediction: what the network answers.
        times: the network's times.
        data_std: root mean square of the data, for networks that are preconditioned by it; 1 otherwise.

    Raises:
        ValueError: if the prediction is unknown, or is the noise where the schedule ends in nothing but noise: that
            answer says nothing about the data there.
    """

    prediction: Prediction
    times: NetworkTimes
    data_std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be a velocity."""
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction {self.prediction!r} is unknown; known are {', '.join(PREDICTIONS)}: check prediction_type "
                "in the scheduler's configuration"
            )
        if self.prediction in ("epsilon", "score") and self.last > 1 - ZERO:
            raise ValueError(
                "the schedule ends at zero signal (terminal signal-to-noise 0) and the network predicts the noise: at "
                "t = 1 its answer says nothing about the data. Such schedules need prediction_type 'v_prediction' or "
                "'sample'; if the network was trained without, set rescale_betas_zero_snr to false"
            )

    @property
    def last(self) -> float:
        """See `Convention.last`."""
        ratio = math.exp(self.times.ends[1]) * self.data_std
        return 1.0 if math.isinf(ratio) else ratio / (1 + ratio)

    @property
    def words(self) -> str:
        """See `Convention.words`."""
        end = "pure noise" if self.last == 1.0 else f"t = {self.last:.4f}"
        unit = "" if self.data_std == 1.0 else f", data scaled by 1 / {self.data_std:g}"
        return f"diffusion: answer {self.prediction}, ends at {end}{unit}"

    def at(self, t: Times) -> Border:
        """See `Convention.at`."""
        t, s = t.double(), self.data_std
        norm = (((1 - t) * s).square() + t.square()).sqrt()
        # alpha and sigma where the network stands, which is where x_t stands but for the ends of the schedule
        (most, least), (low, high) = zip(*map(shares, self.times.ends), strict=True)
        alpha, sigma = ((1 - t) * s / norm).clamp(least, most), (t / norm).clamp(low, high)
        data, noise = self.answers(alpha, sigma)
        # x_0 = s (data[0] x + data[1] F), noise = noise[0] x + noise[1] F, with x = x_t / norm. Near noise the velocity
        # is (x_t - x_0) / t, near data (noise - x_t) / (1 - t); between the ends of the schedule both are the same.
        late = t > 0.5
        t_late, t_early = torch.where(late, t, 1.0), torch.where(late, 0.0, t)
        skip = torch.where(late, (1 - s * data[0] / norm) / t_late, (noise[0] / norm - 1) / (1 - t_early))
        gain = torch.where(late, -s * data[1] / t_late, noise[1] / (1 - t_early))
        scale = 1 / (norm * alpha) if self.prediction == "score" else 1 / norm
        return Border(self.times(alpha, sigma), scale, skip, gain)

    def answers(self, alpha: Tensor, sigma: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Coefficients of (x, F) in the data, in units of `data_std`, and in the noise."""
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        if self.prediction == "epsilon":
            return (1 / alpha, -sigma / alpha), (zero, one)
        if self.prediction == "sample":
            return (zero, one), (1 / sigma, -alpha / sigma)
        if self.prediction == "score":
            return (1 / alpha, (sigma / alpha).square()), (zero, -sigma / alpha)
        sign = 1.0 if self.prediction == "v_prediction" else -1.0
        return (alpha, -sign * sigma), (sigma, sign * alpha)


def shares(log_ratio: float) -> tuple[float, float]:
    """The shares (alpha, sigma) of signal and noise, `alpha^2 + sigma^2 = 1`, at a logarithm of noise over signal."""
    if math.isinf(log_ratio):
        return 0.0, 1.0
    ratio = math.exp(log_ratio)
    return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
