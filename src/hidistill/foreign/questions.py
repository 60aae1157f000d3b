"""Ways of asking a network, and of reading its answer: its own convention, and others that it may have been trained in.

One pass through the network serves every reading of its answer.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hidistill.conventions import Border, Convention, Diffusion, Flow, Table
from hidistill.foreign.network import Network
from hidistill.types import Cond, Points, Teacher, Times

FACTORS = (0.5, 2.0, 2**-0.5, 2**0.5, 0.25, 4.0, 0.125, 8.0)
FINER = (2**-1.5, 2**1.5, 2**-2.5, 2**2.5)
"""By which latents may be off, and more of them for when nothing else explains an answer."""


@dataclass(frozen=True)
class Space:
    """Latents as they would be under another scale or shift: `factor x_0 + offset`.

    Args:
        words: what would be done otherwise.
        cure: what to do if the network explains these better.
        factor: one number, or one per channel.
        offset: the same.
    """

    words: str
    cure: str = ""
    factor: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)

    @property
    def dimension(self) -> str:
        """What it changes."""
        return "latent shift" if all(abs(factor - 1) < 1e-6 for factor in self.factor) else "latent scale"

    @property
    def size(self) -> float:
        """The factor as one number, the geometric mean."""
        return math.exp(sum(math.log(abs(factor)) for factor in self.factor) / len(self.factor))

    def of(self, x_0: Points) -> Points:
        """These latents."""
        return numbers(self.factor, x_0) * x_0 + numbers(self.offset, x_0)

    def undone(self, latents: Points) -> Points:
        """x_0 again."""
        return (latents - numbers(self.offset, latents)) / numbers(self.factor, latents)


def numbers(values: tuple[float, ...], like: Points) -> Tensor:
    """Numbers for all channels, or each."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, *[1] * (like.ndim - 2))


@dataclass(frozen=True, eq=False)
class Question:
    """One pass: what the network is given, and what that is made of.

    Args:
        changes: as in a `Hypothesis`.
        time: the network's.
        alpha: the share of the data in the network's input, per row.
        sigma: the share of the noise.
        data_std: by which data is divided before it is mixed.
        space: the latents.
    """

    changes: Mapping[str, str]
    time: Times
    alpha: Times
    sigma: Times
    data_std: float = 1.0
    space: Space = Space("as they are")


@dataclass(frozen=True)
class Fixed:
    """The convention of no convention: input and answer as they are, at given times of the network."""

    time: Times
    last: float = 1.0
    words: str = "none"

    def at(self, t: Times) -> Border:
        """See `Convention.at`."""
        one = torch.ones_like(t, dtype=torch.float64)
        return Border(self.time.double(), one, torch.zeros_like(one), one)


def asked(teacher: Teacher, x: Points, *, time: Times, cond: Cond) -> Points:
    """The network's own answer; that of a teacher without a convention is its velocity."""
    if not isinstance(teacher, Network):
        return teacher.velocity(x, t=time.to(x), cond=cond)
    return Network(teacher.net, teacher.family, Fixed(time), taps=teacher.taps).velocity(x, t=time.to(x), cond=cond)


Reading = tuple[str, int]
"""What is answered, and its sign."""


def readings(alpha: Tensor, sigma: Tensor) -> Mapping[Reading, tuple[Tensor, Tensor]]:
    """Coefficients of (x, answer) in the data, by reading, where `x = alpha data + sigma noise`."""
    zero, one, square = torch.zeros_like(alpha), torch.ones_like(alpha), alpha.square() + sigma.square()
    found = {
        "epsilon": (1 / alpha, -sigma / alpha),
        "v_prediction": (alpha / square, -sigma / square),
        "sample": (zero, one),
        "flow": (1 / (alpha + sigma), -sigma / (alpha + sigma)),
        "score": (1 / alpha, sigma.square() / alpha),
    }
    return {(name, sign): (kept, sign * taken) for name, (kept, taken) in found.items() for sign in (1, -1)}


def own_reading(teacher: Teacher) -> Reading | None:
    """How the teacher's own convention reads the answer; None if it is no convention of this package."""
    if not isinstance(teacher, Network):
        return "flow", 1
    convention = teacher.convention
    if isinstance(convention, Flow):
        return "flow", -1 if convention.reversed else 1
    if isinstance(convention, Diffusion):
        return ("v_prediction", -1) if convention.prediction == "edm" else (convention.prediction, 1)
    return None


def differing(own: Reading | None, other: Reading, *, foreign: bool) -> Mapping[str, str]:
    """What another reading changes; on a foreign schedule its sign is no change of its own."""
    changes = {} if own is not None and own[0] == other[0] else {"prediction": other[0]}
    if own is not None and own[0] == other[0] and own[1] != other[1]:
        return changes | {"sign": "turned"}
    return changes | ({"sign": "turned"} if other[1] < 0 and changes and not foreign else {})


def questions(teacher: Teacher, t: Times, spaces: Sequence[Space] = ()) -> Iterator[Question]:
    """Every way of asking: as configured, with other times, other latents, and on other schedules."""
    convention, std = convention_of(teacher)
    border = convention.at(t.double())
    shares = border.scale * (1 - t) * std, border.scale * t
    yield Question({}, border.time, *shares, std)
    for changes, time in other_times(convention, border.time, foreign=isinstance(teacher, Network)):
        yield Question(changes, time, *shares, std)
    yield from other_latents(teacher, t, (*spaces, *scaled(FACTORS)))
    if isinstance(teacher, Network):
        yield from other_schedules(convention, border, t.double())


def convention_of(teacher: Teacher) -> tuple[Convention, float]:
    """A teacher's convention, and the number that it divides data by; without one its velocity is a flow's answer."""
    convention = teacher.convention if isinstance(teacher, Network) else Flow(unit=1.0)
    return convention, convention.data_std if isinstance(convention, Diffusion) else 1.0


def scaled(factors: Sequence[float]) -> list[Space]:
    """Latents times some numbers."""
    return [Space(f"times {factor:.3g}", factor=(factor,)) for factor in factors]


def other_latents(teacher: Teacher, t: Times, spaces: Sequence[Space]) -> Iterator[Question]:
    """The same mixtures of other latents, whose noise grows with the data: they belong to other times."""
    convention, std = convention_of(teacher)
    for space in spaces:
        size, t = space.size, t.double()
        later = size * t / (1 - t + size * t)
        there = convention.at(later)
        shares = there.scale * (1 - later) * std, there.scale * later
        yield Question({space.dimension: space.words}, there.time, *shares, std, space)


def other_times(convention: Convention, time: Times, *, foreign: bool) -> Iterator[tuple[Mapping[str, str], Times]]:
    """Times that run the other way, or in another unit."""
    start, end = convention.at(torch.tensor([0.0, 1.0])).time.to(time)
    yield {"time direction": "reversed"}, start + end - time
    span = float((end - start).abs())
    if not foreign or not (span >= 10 or 0.5 <= span <= 2):
        return
    words, factor = ("over 1000", 1e-3) if span >= 10 else ("times 1000", 1e3)
    yield {"time unit": words}, factor * time
    yield {"time unit": words, "time direction": "reversed"}, factor * (start + end - time)


def other_schedules(convention: Convention, own: Border, t: Times) -> Iterator[Question]:
    """The common schedules, but the network's own."""
    others: dict[str, Convention] = {
        "betas linear from 0.0001 to 0.02": Diffusion("sample", betas(1e-4, 0.02, power=1)),
        "betas scaled_linear from 0.00085 to 0.012": Diffusion("sample", betas(0.00085, 0.012, power=2)),
    }
    if not isinstance(convention, Flow):
        others |= {
            "the linear path, time 1000 t": Flow(1000.0),
            "the linear path, time 1 - t": Flow(1.0, reversed=True),
        }
    for words, other in others.items():
        there = other.at(t)
        same = torch.allclose(there.time, own.time, rtol=0.01, atol=1.0) and torch.allclose(
            there.scale, own.scale, rtol=0.01
        )
        if not same:
            yield Question({"schedule": words}, there.time, there.scale * (1 - t), there.scale * t)


@cache
def betas(first: float, last: float, *, power: int) -> Table:
    """The table of a schedule of 1000 betas whose roots of this power are evenly spaced."""
    roots = torch.linspace(first ** (1 / power), last ** (1 / power), 1000, dtype=torch.float64)
    return Table.of((1 - roots**power).cumprod(0))
