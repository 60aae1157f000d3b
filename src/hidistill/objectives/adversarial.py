"""The adversarial game on a teacher's features: one side tells apart, the other fools."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from hidistill.path import concatenate, interpolate, rows_of
from hidistill.times import Uniform
from hidistill.types import Discriminator, Loss, Noised, Rollout, Teacher, TimeLaw, Times


@runtime_checkable
class Game(Protocol):
    """The three losses of an adversarial game, each a value per logit."""

    def real(self, logits: Tensor) -> Tensor:
        """What the discriminator pays for a real sample."""
        ...

    def generated(self, logits: Tensor) -> Tensor:
        """What the discriminator pays for a generated sample."""
        ...

    def fool(self, logits: Tensor) -> Tensor:
        """What the student pays for a generated sample."""
        ...


@dataclass(frozen=True)
class Hinge:
    """`max(0, 1 - D(real)) + max(0, 1 + D(generated))` against `-D(generated)` (arXiv 1705.02894)."""

    def real(self, logits: Tensor) -> Tensor:
        """Zero once the logit is above 1."""
        return F.relu(1 - logits)

    def generated(self, logits: Tensor) -> Tensor:
        """Zero once the logit is below -1."""
        return F.relu(1 + logits)

    def fool(self, logits: Tensor) -> Tensor:
        """Falls without end as the logit rises."""
        return -logits


@dataclass(frozen=True)
class Softplus:
    """The non-saturating game: `softplus(-D(real)) + softplus(D(generated))` against `softplus(-D(generated))`.

    arXiv 1406.2661, section 3.
    """

    def real(self, logits: Tensor) -> Tensor:
        """-log sigmoid(logit)."""
        return F.softplus(-logits)

    def generated(self, logits: Tensor) -> Tensor:
        """-log sigmoid(-logit)."""
        return F.softplus(logits)

    def fool(self, logits: Tensor) -> Tensor:
        """-log sigmoid(logit)."""
        return F.softplus(-logits)


@dataclass(frozen=True)
class Fool:
    """The student's side: its noised samples' features should be taken for real (arXiv 2403.12015).

    The size of its gradient is set where the samples are noised (`OnNoised.feature_gradient`), not here.
    """

    discriminator: Discriminator
    game: Game = Hinge()

    def __call__(self, noised: Noised) -> Loss:
        """The loss per sample, mean over its logits."""
        logits = self.discriminator(noised.probe.features)
        return Loss(self.game.fool(logits.float()).mean(1), {"fool_logit": logits.detach().mean()})


@dataclass(frozen=True)
class TellApart:
    """The discriminator's side: real and generated samples, noised alike, in the frozen teacher's features.

    With approximate R1 (after arXiv 2501.08316): `penalty |(D(x + eps n) - D(x)) / eps|^2` on a share of the real
    samples, which holds the slope down without a second derivative; divided by eps, its weight does not depend on it.

    Args:
        teacher: gives the features; frozen.
        discriminator: what learns.
        times: distribution of t; real and generated samples of a row share t, not the noise.
        game: the losses.
        penalty: weight of the slope's penalty; 0 leaves it out.
        penalty_share: share of the batch that pays it.
        penalty_step: eps, in units of the data.
    """

    teacher: Teacher
    discriminator: Discriminator
    times: TimeLaw = Uniform(0.02, 0.98)
    game: Game = Hinge()
    penalty: float = 0.0
    penalty_share: float = 0.25
    penalty_step: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a penalty that is negative or has no step or share."""
        if self.penalty < 0 or self.penalty_step <= 0 or not 0 < self.penalty_share <= 1:
            raise ValueError(
                f"penalty={self.penalty}, penalty_step={self.penalty_step}, penalty_share={self.penalty_share}: "
                "the penalty must not be negative, its step must be positive, its share in (0, 1]"
            )

    def __call__(self, rollout: Rollout) -> Loss:
        """Draw times and noises, then judge."""
        real = rollout.real
        t = self.times.sample(real)
        noise = torch.randn_like(torch.cat([real, rollout.generated]))
        count = max(1, round(self.penalty_share * len(real))) if self.penalty else 0
        return self.at(rollout, t=t, noise=noise, direction=torch.randn_like(real[:count]))

    def at(self, rollout: Rollout, *, t: Times, noise: Tensor, direction: Tensor) -> Loss:
        """The loss at given times and noise.

        Args:
            rollout: real and generated samples.
            t: their times, (b,).
            noise: (2b, ...), first the real rows', then the generated ones'.
            direction: n of the penalty for the first rows, as many as pay it; none without a penalty.
        """
        b, count = len(t), len(direction)
        x_t = interpolate(torch.cat([rollout.real, rollout.generated.detach()]), noise, torch.cat([t, t]))
        moved = x_t[:count] + self.penalty_step * direction
        cond = concatenate(concatenate(rollout.cond, rollout.cond), rows_of(rollout.cond, slice(count)))
        with torch.no_grad():
            features = self.teacher.features(torch.cat([x_t, moved]), t=torch.cat([t, t, t[:count]]), cond=cond)
        # One pass for all: spectral norms change from pass to pass, which a difference quotient would take for slope.
        real, generated, beside = self.discriminator(features).float().split([b, b, count])
        value = (self.game.real(real) + self.game.generated(generated)).mean(1)
        right = 0.5 * ((real.detach() > 0).float().mean() + (generated.detach() < 0).float().mean())
        metrics = {"real_logit": real.detach().mean(), "generated_logit": generated.detach().mean(), "accuracy": right}
        if count:
            slope = ((beside - real[:count]) / self.penalty_step).square().mean(1)
            metrics["slope"] = slope.detach().mean()
            # Scaled so that the batch's mean is that of the rows that pay.
            value = value + self.penalty * F.pad(slope * b / count, (0, b - count))
        return Loss(value, metrics)
