"""Whether a network's conditions, and the absence of one, do what guidance needs of them.

The null condition must be a mean over the conditions: what a network learned from samples whose condition was dropped.
Such a network explains a sample better than with the condition of another sample, and less well than with its own.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hidistill.foreign.finding import Finding
from hidistill.foreign.hypotheses import Draws
from hidistill.foreign.network import Network
from hidistill.path import rows_of, sum_per_sample
from hidistill.seeds import fold_in
from hidistill.types import Cond, PerSample, Points, Teacher

FIRST = 0.3
"""Time before which a sample shows its class by itself."""
NOISY = 0.97
"""Time at which a sample shows nothing of its class, so that the null's answer is the mean of the classes' answers."""
CLASSES, MIXTURES = 8, 4
"""Classes whose mean is taken, and the mixtures that it is taken at."""
FEW = 8
"""Samples below which nothing is said."""
INERT = 1e-3
"""Relative change below which an answer is the same; rounding makes less than a tenth of it in float32."""
MEAN, FAR = 0.15, 0.4
"""Squared distance of the null from the mean of the classes, a class's being 1 on average: below the first it is that
mean, beyond the second it is none."""
NOT_THEIRS = (
    "the labels or prompts are not those of these pictures: classes in another order, labels that count from 1, or "
    "files that were shuffled"
)
"""What to do about conditions that explain nothing."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: PerSample) -> "Estimate":
        """Of independent values."""
        return cls(float(values.mean()), float(values.std()) / math.sqrt(len(values)) + 1e-12)

    @property
    def words(self) -> str:
        """Both, in percent."""
        return f"{self.mean:.0%} ± {self.error:.0%}"


@dataclass(frozen=True, eq=False)
class Answers:
    """Velocities of the same mixtures under three conditions.

    Args:
        drawn: the mixtures.
        own: under the sample's own condition.
        without: under the null condition.
        wrong: under another sample's.
        is_null: whether the own condition is the null condition.
        differs: whether the other sample's is another.
    """

    drawn: Draws
    own: Points
    without: Points
    wrong: Points
    is_null: Tensor
    differs: Tensor

    @property
    def told(self) -> Tensor:
        """Samples on which the three can be compared."""
        return (self.drawn.t >= FIRST) & self.differs & ~self.is_null

    def error(self, velocity: Points) -> Float[Tensor, " told"]:
        """Logarithm of the squared error of one of them, where they can be compared."""
        target = self.drawn.noise - self.drawn.x_0
        return sum_per_sample((velocity - target).double().square())[self.told].log()


def conditioning(teacher: Teacher, drawn: Draws, *, seed: int) -> list[Finding]:
    """The checks of conditions, null condition and guidance; four passes through the network.

    Args:
        teacher: the teacher, which explains the samples.
        drawn: samples with their own conditions.
        seed: of the conditions that are exchanged.
    """
    if isinstance(teacher, Network) and not teacher.classes and not teacher.family.texts:
        return [Finding("conditions", f"a {teacher.family.name} takes no condition: there is no guidance", "ok")]
    try:
        null = teacher.null(drawn.cond)
    except ValueError as error:
        return [Finding("null condition", str(error), "warn", "without one the teacher is distilled without guidance")]
    other, differs = exchanged(drawn.cond, seed=seed)
    is_null = alike(null, drawn.cond)
    if is_null.all() and not differs.any():
        return [Finding("conditions", "every sample has the null condition: there is no guidance", "ok")]
    x_t = drawn.x_t
    own, without, wrong = (teacher.velocity(x_t, t=drawn.t, cond=cond) for cond in (drawn.cond, null, other))
    answers = Answers(drawn, own, without, wrong, is_null, differs)
    first = guidance(answers)
    if first.verdict != "ok":
        return [first]
    if int(answers.told.sum()) < FEW:
        few = f"only {int(answers.told.sum())} samples have a condition of their own: nothing can be told of conditions"
        return [first, Finding("conditions", few, "warn", "give samples of more classes or prompts")]
    return [first, belonging(answers), mean_of_conditions(teacher, answers, rows_of(null, slice(0, 1)))]


def guidance(answers: Answers) -> Finding:
    """Whether the null condition changes the answer."""
    check, own, without = "guidance", answers.own, answers.without
    if not without.isfinite().all():
        cure = "the network cannot take the null condition: check `null`, or the tensors of the empty prompt"
        return Finding(check, "the answer under the null condition is not finite", "fail", cure)
    change = float((own - without).norm() / own.norm().clamp(min=1e-30))
    words = f"the null condition changes the answer by {change:.2%} of its size"
    if change > INERT:
        return Finding(check, words, "ok")
    cure = (
        "the null condition is the condition itself: give the label after the last class, or the empty prompt"
        if answers.is_null.all()
        else "the network does not look at its condition: check the family's `call`"
    )
    return Finding(check, f"{words}: guidance does nothing, whatever its scale", "fail", cure)


def belonging(answers: Answers) -> Finding:
    """Whether the conditions are those of the samples.

    Where a network's answer is the best one under a sample's own condition, another's costs as much as the answers
    differ, on average; where neither condition is the sample's own, it costs nothing.
    """
    check, own = "conditions", answers.error(answers.own)
    apart = sum_per_sample((answers.wrong - answers.own).double().square())[answers.told]
    gain, difference = Estimate.of(answers.error(answers.wrong) - own), float((apart / own.exp()).log1p().mean())
    if difference < INERT:
        return Finding(
            check, "another's condition changes nothing", "warn", "the network does not tell conditions apart"
        )
    share = Estimate(gain.mean / difference, gain.error / difference)
    words = f"what they change explains the samples by {share.words} (ideal: 100%, those of others: 0%)"
    if share.mean < 0.35 and share.mean + 2 * share.error < 0.8:
        return Finding(check, words, "fail", NOT_THEIRS)
    if gain.mean > 3 * gain.error:
        return Finding(check, words, "ok")
    return Finding(check, f"{words}: nothing can be told", "warn", "give more pictures, with more different conditions")


def mean_of_conditions(teacher: Teacher, answers: Answers, null: Cond) -> Finding:
    """Whether the null condition is a mean over the conditions.

    Of two signs one is the loss, between those under the own condition and another's; the mean of many stands halfway
    at most, one of the conditions at the end on average. The other is the answer near noise, where it is the mean of
    the answers under the conditions.
    """
    check = "null condition"
    name = f"label {int(null)}" if isinstance(null, Tensor) and null.numel() == 1 else "the null condition"
    if answers.is_null.any():
        return Finding(
            check,
            f"{name} is the null condition, and {int(answers.is_null.sum())} of {len(answers.is_null)} samples have it",
            "fail",
            "labels count from 0, and the null label is the one after the last class",
        )
    own = answers.error(answers.own)
    lost, most = answers.error(answers.without) - own, answers.error(answers.wrong) - own
    gain, place = Estimate.of(most), float(lost.mean() / most.mean())
    if gain.mean < 3 * gain.error:
        return Finding(check, "conditions matter too little here: nothing can be told", "warn", "give more pictures")
    error = Estimate.of(lost - place * most).error / gain.mean
    distance = from_mean(teacher, answers.drawn)
    words = f"{name} costs {Estimate(place, error).words} of what another's condition costs"
    if distance is not None:
        words += f"; from the mean of the classes it is {max(distance, 0):.0%} as far as a class"
    low, high, apart = place - 2 * error, place + 2 * error, MEAN if distance is None else distance
    if low > 1 or (low > 0.5 and apart > MEAN) or (place > 0.5 and error < 0.25 and apart > FAR):
        cure = (
            f"{name} is a condition like any other: guidance would lead away from it. Give the null condition that the "
            "network was trained with; if it was trained without one, distill it with guidance 1"
        )
        return Finding(check, words, "fail", cure)
    if high < 0.75 or (distance is not None and distance <= MEAN and low <= 0.75):
        return Finding(check, words, "ok")
    return Finding(check, f"{words}: not told from a condition like any other", "warn", "give more pictures")


def from_mean(teacher: Teacher, drawn: Draws) -> float | None:
    """Squared distance of the null's answer from the mean of the classes', over a class's mean one.

    Near 0 for a null condition, near 1 for a class. None where the condition is no label, or labels are too few. What
    the mean over few classes adds by chance is taken off.
    """
    if not isinstance(drawn.cond, Tensor) or drawn.cond.ndim != 1 or drawn.cond.is_floating_point():
        return None
    labels = drawn.cond.unique()
    count = min(CLASSES, len(labels))
    if count < 4:
        return None
    labels = labels[torch.linspace(0, len(labels) - 1, count, device=labels.device).round().long()]
    null = teacher.null(labels[:1])
    assert isinstance(null, Tensor)
    each = min(MIXTURES, len(drawn.x_0))
    last = teacher.convention.last if isinstance(teacher, Network) else 1.0
    late = torch.full_like(drawn.t[:each], min(NOISY, last))
    x_t = Draws(drawn.x_0[:each], labels, late, drawn.noise[:each]).x_t
    velocity = teacher.velocity(
        x_t.repeat(count + 1, *[1] * (x_t.ndim - 1)),
        t=late.repeat(count + 1),
        cond=torch.cat([labels, null]).repeat_interleave(each),
    ).double()
    classes, alone = velocity[:-each].unflatten(0, (count, each)), velocity[-each:]
    spread = float((classes - classes.mean(0)).square().sum()) / (count - 1)
    return float((alone - classes.mean(0)).square().sum()) / max(spread, 1e-30) - 1 / count


def exchanged(cond: Cond, *, seed: int) -> tuple[Cond, Tensor]:
    """Each sample with another's condition, and which samples got one that is not theirs: as many as can be."""
    count = len(cond if isinstance(cond, Tensor) else next(iter(cond.values())))
    shifts = 1 + torch.randperm(count - 1, generator=torch.Generator().manual_seed(fold_in(seed, "others")))
    best, differs = cond, alike(cond, cond).logical_not()
    for shift in shifts.tolist():
        other = rows_of(cond, torch.arange(count).roll(shift))
        unlike = ~alike(cond, other)
        if int(unlike.sum()) > int(differs.sum()):
            best, differs = other, unlike
        if differs.all():
            break
    return best, differs


def alike(first: Cond, second: Cond) -> Tensor:
    """Which rows of two conditions are the same."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return (first == second).reshape(len(first), -1).all(1)
    assert not isinstance(first, Tensor)
    assert not isinstance(second, Tensor)
    same = [
        alike(value, second[name])
        if value.shape == second[name].shape
        else torch.zeros(len(value), dtype=torch.bool, device=value.device)
        for name, value in first.items()
    ]
    return torch.stack(same).all(0)
