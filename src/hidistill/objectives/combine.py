"""The bridge from data to samples: one draw of the student, one pass of the teacher, several judges."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hidistill.path import interpolate, per_row
from hidistill.share import current, everywhere, in_turn
from hidistill.times import Uniform
from hidistill.types import (
    Batch,
    Cond,
    Loss,
    Noised,
    NoisedObjective,
    NoiseLaw,
    Objective,
    Points,
    Probe,
    Rollout,
    RolloutObjective,
    Student,
    Teacher,
    TimeLaw,
    Times,
    VelocityField,
)


@dataclass(frozen=True)
class Sum:
    """Several objectives on the same batch, added up with weights.

    Args:
        terms: objectives by the name under which their scalars appear.
        weights: factor of each term; 1 where absent.
    """

    terms: Mapping[str, Objective]
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse a sum of nothing, and weights of nothing."""
        refuse_strangers(self.terms, self.weights or {})

    def __call__(self, batch: Batch) -> Loss:
        """The weighted sum per sample."""
        losses = {name: term(batch) for name, term in self.terms.items()}
        return total(losses, self.weights or {})


class Handover:
    """What the student's update of a step leaves to the updates behind it: its samples, and their pass when noised.

    Between drawing and taking the student must not have moved further than by its own update, and the noised pass must
    be of a network that nobody moves. Nothing outlives its step, so that a run taken up again is the same run.
    """

    def __init__(self) -> None:
        self.step = -1
        self.left: dict[int, Rollout] = {}

    def leave(self, rollout: Rollout) -> None:
        """Leave the samples of the rows at work."""
        if rollout.step != self.step:
            self.left.clear()
        self.step = rollout.step
        self.left[current().index] = replace(rollout, generated=rollout.generated.detach())

    def add(self, noised: Noised) -> None:
        """Leave their pass too."""
        probe = Probe(noised.probe.velocity, [layer.detach() for layer in noised.probe.features])
        bare = replace(noised, x_0=noised.x_0.detach(), x_t=noised.x_t.detach(), probe=probe, known=())
        self.left[current().index] = replace(self.left[current().index], noised=bare)

    def take(self, step: int) -> Rollout | None:
        """What was left in this step for the rows at work, once; None if nothing was."""
        if step != self.step:
            self.left.clear()
        return self.left.pop(current().index, None)


@dataclass(frozen=True)
class OnSamples:
    """Draws the student's samples once and lets every term judge the same ones.

    A row's sample is one jump `x_0 = x_s - s u(x_s, 0, s)`: from noise where its start s is 1, else from the real
    sample noised to s, which is how steps after the first are trained without a rollout (arXiv 2405.14867, 4.4).

    Args:
        student: the flow map that draws.
        terms: judges by name.
        differentiable: whether the samples carry the student's gradient.
        starts: times s; rows take them in turn.
        weights: factor of each term; 1 where absent.
        noise: draws what a jump from s = 1 starts at; as the teacher has learned it.
        handover: where differentiable samples are left, and where others are taken from if there are any; None draws
            always.
    """

    student: Student
    terms: Mapping[str, RolloutObjective]
    differentiable: bool
    starts: tuple[float, ...] = (1.0,)
    weights: Mapping[str, float] | None = None
    noise: NoiseLaw = torch.randn_like
    handover: Handover | None = None

    def __post_init__(self) -> None:
        """Refuse starts outside (0, 1], no terms, and weights of nothing."""
        refuse_strangers(self.terms, self.weights or {})
        if not self.starts or not all(0.0 < start <= 1.0 for start in self.starts):
            raise ValueError(f"starts={self.starts}: the times that samples start from must be in (0, 1]; 1 is noise")

    def __call__(self, batch: Batch) -> Loss:
        """Draw or take, then judge."""
        rollout = None
        if self.handover is not None and not self.differentiable:
            rollout = self.handover.take(batch.step)
        if rollout is None:
            rollout = self.draw(batch)
        if self.handover is not None and self.differentiable:
            self.handover.leave(rollout)
        return total({name: term(rollout) for name, term in self.terms.items()}, self.weights or {})

    def draw(self, batch: Batch) -> Rollout:
        """The student's samples."""
        noise = self.noise(batch.x)
        s = torch.tensor(in_turn(self.starts, len(noise)), device=noise.device)
        x_s = noise if set(self.starts) == {1.0} else interpolate(batch.x, noise, s)
        with nullcontext() if self.differentiable else torch.no_grad():
            u = self.student.mean_velocity(x_s, t=s, r=torch.zeros_like(s), cond=batch.cond)
            generated = x_s - per_row(s, u) * u
        return Rollout(batch.x, generated, batch.cond, batch.step)


@dataclass(frozen=True)
class OnGenerated:
    """An objective for data, given the student's samples as its data: flow matching of the fake score."""

    objective: Objective

    def __call__(self, rollout: Rollout) -> Loss:
        """The objective's loss on the generated samples, which carry no gradient into it."""
        return self.objective(Batch(rollout.generated.detach(), rollout.cond, rollout.step))


@dataclass(frozen=True)
class OnNoised:
    """Noises the samples once and passes them through the frozen teacher once, for its velocity and its features.

    Told of another network to take the features from, the bridge passes both once, the teacher for its velocity alone.
    With the fake score there (arXiv 2405.14867, section 4.3), `DMD` makes no pass of its own.

    The gradient that the terms send back through the features is scaled at the sample to a root mean square of
    `feature_gradient / components`, over the batch's mean loss: a size in the unit of DMD's normalized gradient, the
    same for every teacher, discriminator and number of logits (batch by batch, where Adversarial Flow Models keep a
    running average of it). A weight that all such terms share cancels; this number is their weight, and theirs say
    how they divide it.

    Args:
        teacher: the frozen, guided teacher. Where no term reads its velocity, give it without guidance: the features
            are the same, and the null pass is spared.
        times: distribution of t.
        terms: judges of the noised samples by name.
        feature_gradient: size of the gradient through the features; 0 sends none and keeps no graph.
        features_of: the network that the features are taken from; None is the teacher.
        weights: factor of each term; 1 where absent.
        noise: draws the path's end at t = 1; as the teacher has learned it.
        handover: where the pass is left beside the samples; None leaves none.
    """

    teacher: Teacher
    times: TimeLaw = Uniform(0.02, 0.98)
    terms: Mapping[str, NoisedObjective] | None = None
    feature_gradient: float = 0.0
    features_of: Teacher | None = None
    weights: Mapping[str, float] | None = None
    noise: NoiseLaw = torch.randn_like
    handover: Handover | None = None

    def __post_init__(self) -> None:
        """Refuse a missing judge, weights of nothing, and a negative size."""
        if not self.terms:
            raise ValueError("OnNoised without terms judges nothing; give e.g. terms={'dmd': DMD(fake)}")
        refuse_strangers(self.terms, self.weights or {})
        if self.feature_gradient < 0:
            raise ValueError(f"feature_gradient={self.feature_gradient}: the gradient's size must not be negative")

    def __call__(self, rollout: Rollout) -> Loss:
        """Noise, pass, judge."""
        x_0 = rollout.generated
        t, noise = self.times.sample(x_0), self.noise(x_0)
        reached = GradientSize.apply(x_0, self.feature_gradient) if self.feature_gradient else x_0.detach()
        x_t = interpolate(reached, noise, t)
        probe, known = self.passes(x_t, t=t, cond=rollout.cond)
        noised = Noised(x_0, x_t, t, rollout.cond, probe, rollout.real, known)
        if self.handover is not None:
            self.handover.add(noised)
        return total({name: term(noised) for name, term in (self.terms or {}).items()}, self.weights or {})

    def passes(self, x_t: Points, *, t: Times, cond: Cond) -> tuple[Probe, Sequence[tuple[VelocityField, Points]]]:
        """The teacher's velocity with the features, and the velocities of all that were passed; none has a gradient."""
        if self.features_of is None:
            velocity, features = self.teacher.probe(x_t, t=t, cond=cond)
            return Probe(velocity.detach(), features), ((self.teacher, velocity.detach()),)
        beside, features = self.features_of.probe(x_t, t=t, cond=cond)
        with torch.no_grad():
            velocity = self.teacher.velocity(x_t.detach(), t=t, cond=cond)
        return Probe(velocity, features), ((self.teacher, velocity), (self.features_of, beside.detach()))


class GradientSize(torch.autograd.Function):
    """The identity; the gradient going back is given a root mean square of size / elements over the batch."""

    @staticmethod
    def forward(ctx, x: Points, size: float) -> Points:  # noqa: ANN001 -- torch's context
        """Remember the size."""
        ctx.size = size
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *gradients: Tensor):  # noqa: ANN001, ANN205 -- torch's context
        """Scale the gradient; by its largest component first, since the square of a small one is zero."""
        (gradient,) = gradients
        unit = gradient.float()
        largest = everywhere(unit.abs().amax(), "max")
        unit = unit / largest.clamp_min(torch.finfo(torch.float32).tiny)
        root = everywhere(unit.square().sum()).sqrt().clamp_min(1.0)  # 0 for a gradient of zero
        # The losses' mean is over the rows here, of which there are fewer by the number of processes.
        size = ctx.size * current().processes ** 0.5
        return (unit * (size / (unit.numel() ** 0.5 * root))).to(gradient.dtype), None


def total(losses: Mapping[str, Loss], weights: Mapping[str, float]) -> Loss:
    """Weighted sum of losses; every term's value appears under its name, its scalars under theirs."""
    values = [weights.get(name, 1.0) * loss.value for name, loss in losses.items()]
    metrics: dict[str, Tensor] = {}
    for name, loss in losses.items():
        metrics[name] = loss.value.detach().mean()
        metrics |= dict(loss.metrics)
    return Loss(torch.stack(values).sum(0), metrics)


def refuse_strangers(terms: Mapping[str, object], weights: Mapping[str, float]) -> None:
    """Refuse an empty sum and weights without a term."""
    if not terms:
        raise ValueError("no terms came; a sum needs one or more, by name, e.g. terms={'judged': OnNoised(...)}")
    if unknown := set(weights) - set(terms):
        raise ValueError(
            f"weights for terms that do not exist: {sorted(unknown)}; the terms are {sorted(terms)}; "
            "a term without a weight counts once"
        )
