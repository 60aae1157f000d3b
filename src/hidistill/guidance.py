"""Classifier-free guidance (arXiv 2207.12598) as a decorator of a teacher."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hidistill.path import concatenate, rows_of
from hidistill.share import anywhere
from hidistill.types import Cond, Points, Probe, Teacher, Times, Tokens


@dataclass(frozen=True)
class Guided:
    """A teacher under guidance: `null + scale (conditional - null)` for t in [low, high], conditional elsewhere.

    It is a teacher itself. Both passes are one batched call; rows outside the interval (arXiv 2404.07724), and
    every row when the scale is 1, skip the null pass.

    Args:
        teacher: what is guided.
        scale: 0 is unconditional, 1 is no guidance, more is stronger.
        low: least time at which guidance acts; 0 is data.
        high: greatest time at which guidance acts; 1 is noise.
        channels: only the first so many channels (the dimension behind the batch) are guided, the others stay
            conditional; None is all. The sampler published with DiT (arXiv 2212.09748) guides 3 of its 4.

    Raises:
        ValueError: if the scale is negative or not finite, the interval is not within [0, 1], or there are no channels
            to guide; when called, if points have fewer channels.
    """

    teacher: Teacher
    scale: float = 1.5
    low: float = 0.0
    high: float = 1.0
    channels: int | None = None

    def __post_init__(self) -> None:
        """Refuse a negative scale, an interval outside [0, 1] and guidance of nothing."""
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(
                f"Guided(scale={self.scale}): a scale is a finite number >= 0; "
                "use 0 for unconditional, 1 for no guidance, more for stronger guidance"
            )
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(
                f"Guided(low={self.low}, high={self.high}): an interval needs 0 <= low < high <= 1; "
                "t = 0 is data, t = 1 noise, and low=0.0, high=1.0 guides everywhere"
            )
        if self.channels is not None and self.channels < 1:
            raise ValueError(
                f"Guided(channels={self.channels}): guidance needs 1 channel or more; use None for all, 3 for DiT's "
                "original sampler"
            )

    @property
    def feature_channels(self) -> Sequence[int]:
        """See `Teacher.feature_channels`."""
        return self.teacher.feature_channels

    def features(self, x_t: Points, *, t: Times, cond: Cond) -> Sequence[Tokens]:
        """See `Teacher.features`; those of the conditional pass."""
        return self.teacher.features(x_t, t=t, cond=cond)

    def null(self, cond: Cond) -> Cond:
        """See `Teacher.null`."""
        return self.teacher.null(cond)

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """See `VelocityField.velocity`."""
        rows = self.guided_rows(t)
        if not len(rows):
            return self.teacher.velocity(x_t, t=t, cond=cond)
        null = self.teacher.null(rows_of(cond, rows))
        x, times = torch.cat([x_t, x_t[rows]]), torch.cat([t, t[rows]])
        velocity = self.teacher.velocity(x, t=times, cond=concatenate(cond, null))
        return self.combine(velocity[: len(x_t)], velocity[len(x_t) :], rows)

    def probe(self, x_t: Points, *, t: Times, cond: Cond) -> Probe:
        """See `Teacher.probe`; the features are those of the conditional pass, the velocity carries no gradient.

        Where `x_t` carries a gradient the null pass runs apart, without one, so that only the conditional rows keep
        a graph.
        """
        rows, count = self.guided_rows(t), len(x_t)
        if torch.is_grad_enabled() and x_t.requires_grad:
            return self.probe_apart(x_t, rows, t=t, cond=cond)
        if not len(rows):
            probe = self.teacher.probe(x_t, t=t, cond=cond)
            return Probe(probe.velocity.detach(), probe.features)
        null = self.teacher.null(rows_of(cond, rows))
        x, times = torch.cat([x_t, x_t[rows]]), torch.cat([t, t[rows]])
        velocity, features = self.teacher.probe(x, t=times, cond=concatenate(cond, null))
        velocity = velocity.detach()
        return Probe(self.combine(velocity[:count], velocity[count:], rows), [layer[:count] for layer in features])

    def probe_apart(self, x_t: Points, rows: Tensor, *, t: Times, cond: Cond) -> Probe:
        """`probe` where `x_t` carries a gradient."""
        probe = self.teacher.probe(x_t, t=t, cond=cond)
        velocity = probe.velocity.detach()
        if anywhere(len(rows) > 0):
            asked = rows if len(rows) else rows.new_zeros(1)  # another process has rows to guide
            with torch.no_grad():
                null = self.teacher.null(rows_of(cond, asked))
                unguided = self.teacher.velocity(x_t[asked], t=t[asked], cond=null)
            velocity = self.combine(velocity, unguided, rows) if len(rows) else velocity
        return Probe(velocity, probe.features)

    def guided_rows(self, t: Times) -> Tensor:
        """Indices of the rows that need a null pass."""
        if self.scale == 1:
            return torch.empty(0, dtype=torch.long, device=t.device)
        if self.low == 0 and self.high == 1:
            # Without looking at the values: no synchronization with a GPU, and torch.compile can trace it.
            return torch.arange(len(t), device=t.device)
        return ((t >= self.low) & (t <= self.high)).nonzero()[:, 0]

    def combine(self, conditional: Points, null: Float[Tensor, "rows *x"], rows: Tensor) -> Points:
        """`conditional` with its `rows` replaced by `null + scale (conditional - null)`, in the guided channels."""
        plain = conditional[rows]
        guided = null + self.scale * (plain - null)
        if self.channels is not None:
            if self.channels > conditional.shape[1]:
                raise ValueError(
                    f"Guided(channels={self.channels}) met points of {conditional.shape[1]} channels; use None for all "
                    "of them, or a number up to that"
                )
            guided = torch.cat([guided[:, : self.channels], plain[:, self.channels :]], 1)
        return conditional.index_copy(0, rows, guided)
