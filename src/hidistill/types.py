"""Shapes, what travels between the parts, and the roles that the parts play.

A teacher is a velocity field. A student is a flow map. An objective turns a batch into a loss per sample.
Time runs from data (t = 0) to noise (t = 1) along `x_t = (1 - t) x_0 + t noise`; times are keyword-only everywhere.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Points = Float[Tensor, "b *x"]
"""Samples or velocities: a batch of points of any shape."""
Times = Float[Tensor, " b"]
"""One time in [0, 1] per sample: 0 is data, 1 is noise."""
PerSample = Float[Tensor, " b"]
Tokens = Float[Tensor, "b _n _d"]
"""One layer's features: n tokens of d channels per sample."""
Logits = Float[Tensor, "b k"]
"""k verdicts of a discriminator per sample; large means real."""
Labels = Int[Tensor, " b"]
Images = Float[Tensor, "b c h w"]
"""Pixels in [0, 1]."""
Features = Float[Tensor, "n d"]
"""One row of a metric's feature space per image."""
Cond = Tensor | Mapping[str, Tensor]
"""A condition, opaque outside its teacher's file; leading dimension b."""

NoiseLaw = Callable[[Tensor], Tensor]
"""Draws a path's end at t = 1, one row for each row that it is given. `torch.randn_like` is the usual one; a field may
have learned another (arXiv 2302.00482), whose velocities are then no scores."""

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Clean samples, their conditions, and the index of the step (within its stage) that they are for."""

    x: Points
    cond: Cond
    step: int = 0


@dataclass(frozen=True)
class Split:
    """One part of a labelled image set, in memory.

    Args:
        images: uint8 pixels, (n, c, h, w).
        labels: class indices, (n,); all 0 where `classes` is empty.
        classes: names of the classes; empty if the set has none.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    classes: Sequence[str]


class Record(NamedTuple):
    """One example of a source.

    Args:
        key: its name within the source, the same each time the source is read.
        image: pixels, (3, size, size); None where there are prompts alone, and for a broken picture that is left out.
        label: class index; None if there are no classes.
        caption: what a person says of it; None if nobody did.
        part: "train", "valid" or "test" where the source says so; None leaves it to who uses it.
    """

    key: str
    image: UInt8[Tensor, "3 h w"] | None
    label: int | None = None
    caption: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class Source:
    """Examples in an order that is the same each time.

    Args:
        records: the examples from the given index on.
        count: how many there are; None if only reading to the end would tell.
        digest: tells one source from another: a hash over names and sizes, say.
        classes: names of the classes; empty if there are none.
        notes: what a person should know: what was chosen, what was left out.
    """

    records: Callable[[int], Iterator[Record]]
    count: int | None
    digest: str
    classes: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pictures that remember what was computed from them, so that several metrics share one pass.

    Args:
        images: pixels in [0, 1].
        labels: class indices; for generated images the classes that were asked for.
        classes: names of the classes; empty if the set has none, and then all labels are 0.
        memory: results by key.
    """

    images: Images
    labels: Labels
    classes: Sequence[str] = ()
    memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, split: Split) -> "Gallery":
        """The pictures of a split as floats."""
        return cls(split.images.float() / 255, split.labels, split.classes)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, which runs only for a key that is new."""
        if key not in self.memory:
            self.memory[key] = compute()
        return self.memory[key]

    def features(self, space: "FeatureSpace") -> Features:
        """One row per image in a feature space; computed once.

        Raises:
            ValueError: if a feature is not finite.
        """
        features = self.once(("features", space), lambda: space(self.images))
        if not features.isfinite().all():
            rows = (~features.isfinite().all(1)).nonzero().flatten()[:5].tolist()
            raise ValueError(f"features {space.name!r} of images {rows} are not finite; check the images for NaN")
        return features

    def rows(self, index: Int[Tensor, " n"]) -> "Gallery":
        """Some of the pictures, with the features that are known of them."""
        known: dict[Hashable, Any] = {
            key: value[index] for key, value in self.memory.items() if isinstance(key, tuple) and key[0] == "features"
        }
        return Gallery(self.images[index], self.labels[index], self.classes, known)


@dataclass(frozen=True, eq=False)
class Samples:
    """What a metric compares.

    Args:
        generated: the pictures to judge.
        real: held-out real pictures.
        ends: for each generated picture the end of the teacher's own trajectory from the same noise; None if there is
            none, as for real pictures.
        index: which of an evaluation's pictures the generated ones are, where some were left out; None is all of them,
            in their order.
    """

    generated: Gallery
    real: Gallery
    ends: Images | None = None
    index: Int[Tensor, " n"] | None = None


@dataclass(frozen=True)
class Rollout:
    """Real samples beside the student's samples for the same conditions.

    Args:
        real: clean samples of data.
        generated: the student's.
        cond: the conditions of both.
        step: of the stage.
        noised: the generated samples, noised and passed through the teacher already, without gradient; None if they
            were not.
    """

    real: Points
    generated: Points
    cond: Cond
    step: int = 0
    noised: "Noised | None" = None


@dataclass(frozen=True)
class Loss:
    """A loss per sample, and scalars worth a line in the journal."""

    value: PerSample
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Probe(NamedTuple):
    """What one pass through a teacher gives: its velocity and the features of its tapped layers."""

    velocity: Points
    features: Sequence[Tokens]


@dataclass(frozen=True)
class Noised:
    """Generated samples `x_0` brought to `x_t`, with what networks have said of them.

    `x_t` carries the student's gradient when the rollout does; `probe.features` then carries it too, and velocities
    never do.

    Args:
        x_0: the samples.
        x_t: the samples at their times.
        t: the times.
        cond: the conditions.
        probe: the frozen teacher's velocity, and the features to judge by: the teacher's too, unless the bridge was
            told of another network.
        real: clean real samples of the same rows; None if there are none.
        known: velocities at `x_t` of all fields that have been passed, the teacher's among them.
    """

    x_0: Points
    x_t: Points
    t: Times
    cond: Cond
    probe: Probe
    real: Points | None = None
    known: Sequence[tuple["VelocityField", Points]] = ()

    def velocity(self, field: "VelocityField") -> Points:
        """What a field answers at `x_t`, without gradient; a pass that was made is not made again."""
        for passed, velocity in self.known:
            if passed is field:
                return velocity
        with torch.no_grad():
            return field.velocity(self.x_t.detach(), t=self.t, cond=self.cond)


@runtime_checkable
class VelocityField(Protocol):
    """A velocity on the linear path: `velocity(x_t, t) = E[noise - x_0 | x_t]`."""

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """The marginal velocity at `x_t`, of its shape and dtype."""
        ...


@runtime_checkable
class Teacher(VelocityField, Protocol):
    """A velocity field that also shows its features and knows the absence of a condition."""

    @property
    def feature_channels(self) -> Sequence[int]:
        """Channels of each tapped layer, in the order of `features`."""
        ...

    def features(self, x_t: Points, *, t: Times, cond: Cond) -> Sequence[Tokens]:
        """Features of the tapped layers; may stop after the last of them."""
        ...

    def probe(self, x_t: Points, *, t: Times, cond: Cond) -> Probe:
        """Velocity and features in one pass."""
        ...

    def null(self, cond: Cond) -> Cond:
        """The null condition for as many samples as `cond` has."""
        ...


@runtime_checkable
class Student(Protocol):
    """A flow map by its mean velocity: `x_t - (t - r) u(x_t, r, t)` lands on `x_r` (arXiv 2505.13447, eq. 3)."""

    def mean_velocity(self, x_t: Points, *, t: Times, r: Times, cond: Cond) -> Points:
        """The mean of the velocity over [r, t] along the trajectory through `x_t`; at r = t the velocity itself."""
        ...


@runtime_checkable
class Discriminator(Protocol):
    """A head on a network's features at (t, cond). A sample's logits depend on that sample alone."""

    def __call__(self, features: Sequence[Tokens], *, t: Times, cond: Cond) -> Logits:
        """Give k logits per sample; large means real. A head may leave t and the condition aside."""
        ...


@runtime_checkable
class Objective(Protocol):
    """Turns a batch into a loss per sample."""

    def __call__(self, batch: Batch) -> Loss:
        """The loss of each row of the batch."""
        ...


@runtime_checkable
class RolloutObjective(Protocol):
    """Judges the student's samples."""

    def __call__(self, rollout: Rollout) -> Loss:
        """The loss of each generated sample."""
        ...


@runtime_checkable
class NoisedObjective(Protocol):
    """Judges noised samples of the student with the teacher's one pass at hand."""

    def __call__(self, noised: Noised) -> Loss:
        """The loss of each generated sample."""
        ...


@runtime_checkable
class TimeLaw(Protocol):
    """A distribution of times in [0, 1]."""

    def sample(self, like: Tensor) -> Times:
        """One time per row of `like`, on its device and in float32, from torch's default generator."""
        ...


@runtime_checkable
class Derivative(Protocol):
    """The total derivative of a student along a trajectory, without gradient."""

    def __call__(self, student: Student, x_t: Points, *, t: Times, r: Times, cond: Cond, direction: Points) -> Points:
        """`d/dt u(x_t, r, t)` with dx_t/dt = `direction`, dt/dt = 1, dr/dt = 0."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Carries pixels in [0, 1] to the space in which teachers live, and back."""

    def encode(self, images: Images) -> Points:
        """Where teachers live."""
        ...

    def decode(self, x_0: Points) -> Images:
        """Pixels, clamped to [0, 1]."""
        ...


@runtime_checkable
class FeatureSpace(Protocol):
    """Where pictures are compared; hashable. An image's features depend on that image alone."""

    @property
    def name(self) -> str:
        """Becomes part of the name of every metric that compares pictures here."""
        ...

    def __call__(self, images: Images) -> Features:
        """float32 features, one row per image."""
        ...


@runtime_checkable
class Metric(Protocol):
    """Judges pictures by one or more numbers."""

    @property
    def name(self) -> str:
        """Says what is computed and with which settings."""
        ...

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """Finite numbers by name; a number that these samples cannot give is absent."""
        ...
