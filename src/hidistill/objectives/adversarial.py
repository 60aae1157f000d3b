"""The adversarial game on a network's features: one side tells apart, the other fools.

The features are the frozen teacher's, or the fake score's (arXiv 2405.14867, section 4.3): what learns is what the
update's optimizer holds, and weights that require no gradient get none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from hidistill.path import concatenate, interpolate, rows_of
from hidistill.share import current, everywhere, front, leading
from hidistill.times import Uniform
from hidistill.types import Discriminator, Loss, Noised, NoiseLaw, PerSample, Rollout, Teacher, TimeLaw, Times


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
        logits = self.discriminator(noised.probe.features, t=noised.t, cond=noised.cond).float()
        return Loss(self.game.fool(logits).mean(1), {"fool_logit": logits.detach().mean()})


@dataclass(frozen=True)
class TellApart:
    """The discriminator's side: real and generated samples, noised alike, in a network's features.

    With approximate R1 (after arXiv 2501.08316): `penalty |(D(x + eps n) - D(x)) / eps|^2` on a share of the real
    samples, which holds the slope down without a second derivative; divided by eps, its weight does not depend on it.

    Args:
        teacher: gives the features; the frozen teacher, or the fake score, which learns from this loss too where it
            shares the update with the discriminator.
        discriminator: what learns.
        times: distribution of t; real and generated samples of a row share t, not the noise.
        game: the losses.
        penalty: weight of the slope's penalty; 0 leaves it out.
        penalty_share: share of the batch that pays it.
        penalty_step: eps, in units of the data.
        noise: draws the path's end at t = 1; as the teacher has learned it.
    """

    teacher: Teacher
    discriminator: Discriminator
    times: TimeLaw = Uniform(0.02, 0.98)
    game: Game = Hinge()
    penalty: float = 0.0
    penalty_share: float = 0.25
    penalty_step: float = 0.01
    noise: NoiseLaw = torch.randn_like

    def __post_init__(self) -> None:
        """Refuse a penalty that is negative or has no step or share."""
        if self.penalty < 0 or self.penalty_step <= 0 or not 0 < self.penalty_share <= 1:
            raise ValueError(
                f"penalty={self.penalty}, penalty_step={self.penalty_step}, penalty_share={self.penalty_share}: "
                "the penalty must not be negative, its step must be positive, its share in (0, 1]"
            )

    def __call__(self, rollout: Rollout) -> Loss:
        """Draw times and noises, then judge."""
        real, passed = rollout.real, rollout.noised
        t = self.times.sample(real) if passed is None else passed.t
        noise = self.noise(torch.cat([real, rollout.generated]) if passed is None else real)
        if not self.penalty:
            return self.at(rollout, t=t, noise=noise, direction=real[:0])
        paying = front(len(real), self.penalty_share, least=1)
        count = leading(len(real), self.penalty_share, least=1)
        # Drawn for every row, so that a row's direction is the same however the batch is shared out.
        return self.at(rollout, t=t, noise=noise, direction=torch.randn_like(real)[:count], paying=paying)

    def at(self, rollout: Rollout, *, t: Times, noise: Tensor, direction: Tensor, paying: int | None = None) -> Loss:
        """The loss at given times and noise.

        Args:
            rollout: real and generated samples; where these were noised and passed already, that pass is taken, which
                must be of this teacher and at these times.
            t: their times, (b,).
            noise: (2b, ...), first the real rows', then the generated ones'; (b, ...) where these were passed already.
            direction: n of the penalty for the first rows, as many as pay it; none without a penalty.
            paying: rows of the whole batch that pay it, where this is a share of one; None is those of `direction`.
        """
        b, count = len(t), len(direction)
        paying = count if paying is None else paying
        cond = concatenate(concatenate(rollout.cond, rollout.cond), rows_of(rollout.cond, slice(count)))
        times = torch.cat([t, t, t[:count]])
        features = self.features(rollout, t=t, noise=noise, direction=direction)
        # One pass for all: spectral norms change from pass to pass, which a difference quotient would take for slope.
        logits = self.discriminator(features, t=times, cond=cond).float()
        real, generated, beside = logits.split([b, b, count])
        value = (self.game.real(real) + self.game.generated(generated)).mean(1)
        right = 0.5 * ((real.detach() > 0).float().mean() + (generated.detach() < 0).float().mean())
        metrics = {"real_logit": real.detach().mean(), "generated_logit": generated.detach().mean(), "accuracy": right}
        if paying:
            slope = ((beside - real[:count]) / self.penalty_step).square().mean(1)
            # Scaled so that the mean over the batch, of which a share may have more paying rows than another, is that
            # of the rows that pay.
            slope = slope * (b * current().count / paying)
            metrics["slope"] = slope.detach().sum() / b
            value = value + self.penalty * F.pad(slope, (0, b - count))
        return Loss(value, metrics)

    def features(self, rollout: Rollout, *, t: Times, noise: Tensor, direction: Tensor) -> Sequence[Tensor]:
        """Of the real rows, the generated ones, and those beside the first real ones; see `at`."""
        b, count, passed = len(t), len(direction), rollout.noised
        here = [rollout.real] if passed is not None else [rollout.real, rollout.generated]
        x_t = interpolate(torch.cat(here).detach(), noise, t.repeat(len(here)))
        moved = x_t[:count] + self.penalty_step * direction
        times, cond = torch.cat([t.repeat(len(here)), t[:count]]), rollout.cond
        cond = concatenate(cond if passed is not None else concatenate(cond, cond), rows_of(cond, slice(count)))
        layers = self.teacher.features(torch.cat([x_t, moved]), t=times, cond=cond)
        if passed is None:
            return layers
        pairs = zip(layers, passed.probe.features, strict=True)
        return [torch.cat([layer[:b], known, layer[b:]]) for layer, known in pairs]


@dataclass(frozen=True)
class DivergenceWeight:
    """What makes DMD's gradient that of another f-divergence: `h(r) = r^2 f''(r)`, r = p_real(x_t) / p_student(x_t).

    The gradient of a divergence `E_student[f(r)]` in a sample is `h(r) (score_fake - score_real)` (arXiv 2502.15681).
    The ratio is read off a discriminator: where it was trained by the logistic game, and could learn all, its logit is
    log r. Spectral norms and R1 hold it short of that. Several logits are averaged. The weights are divided by their
    mean over the batch, all times together: a divergence says which samples count, not how much all do.

    Args:
        critic: the game that trains the discriminator, on the features that the noised samples come with.
        h: the weight as a function of r; those below, or another.
        least: the smallest ratio; smaller ones are taken for it.
        most: the largest.

    Raises:
        ValueError: if the game's best logit is not log r (the hinge's is not), or the bounds are no interval.
    """

    critic: TellApart
    h: Callable[[Tensor], Tensor]
    least: float = 0.1
    most: float = 20.0

    def __post_init__(self) -> None:
        """Refuse bounds that are none, and games whose logits say nothing of densities."""
        if not 0 < self.least < self.most:
            raise ValueError(f"least={self.least}, most={self.most}: ratios must have 0 < least < most")
        if not logistic(self.critic.game):
            raise ValueError(
                f"the discriminator is trained by {type(self.critic.game).__name__}, whose logits are no ratios of "
                "densities; train it by Softplus, or leave the weight out"
            )

    @torch.no_grad()
    def __call__(self, noised: Noised) -> PerSample:
        """A factor per sample, of mean 1."""
        logits = self.critic.discriminator(noised.probe.features, t=noised.t, cond=noised.cond)
        weight = self.h(logits.float().mean(1).exp().clamp(self.least, self.most))
        return weight / (everywhere(weight.mean()) / current().processes)


def logistic(game: Game) -> bool:
    """Whether a game's best logit is log(p_real / p_generated): `generated'(z) = -exp(z) real'(z)` for all z."""
    with torch.enable_grad():
        z = torch.linspace(-3, 3, 13, requires_grad=True)
        (real,) = torch.autograd.grad(game.real(z).sum(), z)
        (generated,) = torch.autograd.grad(game.generated(z).sum(), z)
    return torch.allclose(generated, -z.detach().exp() * real, rtol=1e-3, atol=1e-5)


def reverse_kl(r: Tensor) -> Tensor:
    """KL(student || real), f = -log r: DMD as it is."""
    return torch.ones_like(r)


def forward_kl(r: Tensor) -> Tensor:
    """KL(real || student), f = r log r: counts the samples where data is denser, and so covers it."""
    return r


def jensen_shannon(r: Tensor) -> Tensor:
    """Twice the Jensen-Shannon divergence, f = r log r - (r + 1) log((r + 1) / 2)."""
    return 1 - 1 / (1 + r)


def squared_hellinger(r: Tensor) -> Tensor:
    """Four times the squared Hellinger distance, f = 2 (1 - sqrt r)^2."""
    return r.sqrt()


def jeffreys(r: Tensor) -> Tensor:
    """Both directions of KL, f = (r - 1) log r."""
    return 1 + r


def neyman(r: Tensor) -> Tensor:
    """Half of Neyman's chi-squared, f = (1 - r)^2 / (2 r): counts the samples that data has not."""
    return 1 / r
