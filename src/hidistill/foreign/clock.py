"""Times on their way into a network that embeds them by itself.

Networks of diffusers turn a time into sinusoids (`time_proj`) and those into an embedding (a `TimestepEmbedding`), some
of them once per block. Hooks that live for one call reach these places in every family, without a copy of any network:

- the sinusoids are taken of the exact time, in float32 at least. Ten families cast 1000 t to bfloat16 first, which
  rounds it by up to 2 and makes a derivative along t wrong by its own size;
- a student's embedding of the interval is added to the time's own;
- a student may read the time's own embedding from a smooth curve (`Curve`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hidistill.types import Times

EMBEDDINGS = ("timestep_embedder", "time_embedding")
"""Names that networks give to the module behind their `time_proj`."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One place where a network embeds its time.

    Args:
        projection: turns times into sinusoids.
        embedding: turns sinusoids into the embedding; its last layer is `linear_2`.
    """

    projection: nn.Module
    embedding: nn.Module

    @property
    def width(self) -> int:
        """Channels of the embedding."""
        return int(self.embedding.linear_2.out_features)  # type: ignore[union-attr]

    def sinusoids(self, time: Times) -> Tensor:
        """(b,) -> (b, channels), of the type of `time`.

        The usual projection itself works in float32 alone: its formula is used here.
        """
        of = self.projection
        if not all(isinstance(getattr(of, name, None), int | float) for name in ("num_channels", "scale")):
            return of(time).to(time.dtype)
        half, shift = int(of.num_channels) // 2, float(of.downscale_freq_shift)  # type: ignore[arg-type]
        ramp = torch.arange(half, dtype=torch.float32, device=time.device) / (half - shift)
        angles = float(of.scale) * time[:, None] * (-math.log(10_000) * ramp).exp().to(time.dtype)  # type: ignore[arg-type]
        parts = (angles.cos(), angles.sin()) if of.flip_sin_to_cos else (angles.sin(), angles.cos())
        return nn.functional.pad(torch.cat(parts, 1), (0, int(of.num_channels) % 2))  # type: ignore[arg-type]

    def __call__(self, time: Times) -> Tensor:
        """The embedding (b, width) of the network's times."""
        weight = self.embedding.linear_1.weight  # type: ignore[union-attr]
        assert isinstance(weight, Tensor)
        return self.embedding(self.sinusoids(time).to(weight.dtype))


def timeless(places: Sequence[Entry]) -> bool:
    """Whether every embedding of the time is a constant, as in a network that was folded for one step."""
    return all(not place.embedding.get_parameter("linear_2.weight").any() for place in places)


def entries(net: nn.Module) -> list[Entry]:
    """Every place where a network embeds its time, in the order of its modules.

    Raises:
        ValueError: if there is none.
    """
    found = []
    for module in net.modules():
        projection = getattr(module, "time_proj", None)
        for name in EMBEDDINGS:
            embedding = getattr(module, name, None)
            if isinstance(projection, nn.Module) and isinstance(embedding, nn.Module):
                found.append(Entry(projection, embedding))
    if not found:
        raise ValueError(
            f"{type(net).__name__} has no module with a `time_proj` beside one of {', '.join(EMBEDDINGS)}: it is not "
            "known where its time enters; networks that embed time otherwise need a teacher file of their own"
        )
    return found


class Curve(nn.Module):
    """Each entry's embedding as a polynomial of the time: smooth where sinusoids of 1000 t are not.

    An embedding of 1000 t may change a thousand times as fast as t, and the derivative along t, which the target of
    MeanFlow holds, with it. A polynomial of low degree, fitted to the embedding by least squares, follows it where it
    is smooth. `residual` says how much is left out.

    Args:
        places: the entries.
        unit: the greatest of the network's times.
        first: the least of them.
        degree: of the polynomial, in Chebyshev's basis.
    """

    def __init__(self, places: Sequence[Entry], *, unit: float, first: float = 0.0, degree: int = 24) -> None:
        super().__init__()
        self.first, self.unit, self.degree = first, unit, degree
        time = first + (unit - first) * (1 - torch.linspace(0, math.pi, 8 * degree, dtype=torch.float64).cos()) / 2
        basis = self.basis(time)
        fits, worst = [], 0.0
        for place in places:
            with torch.no_grad():
                weight = place.embedding.linear_2.weight  # type: ignore[union-attr]
                assert isinstance(weight, Tensor)
                own = place(time.float().to(weight.device)).double().cpu()
            fit = torch.linalg.lstsq(basis, own).solution
            rest = (basis @ fit - own).norm() / (own - own.mean(0)).norm().clamp(min=1e-12)
            worst = max(worst, float(rest))
            kind = torch.promote_types(weight.dtype, torch.float32)
            fits.append(nn.Parameter(fit.to(weight.device, kind)))
        self.fits = nn.ParameterList(fits)
        self.residual = worst
        """Largest part of an embedding's variation over time that its polynomial does not follow."""

    def basis(self, time: Times) -> Tensor:
        """Chebyshev's polynomials (b, degree + 1) of times in [first, unit]."""
        x = (2 * (time - self.first) / (self.unit - self.first) - 1).clamp(-1, 1)
        terms = [torch.ones_like(x), x]
        for _ in range(self.degree - 1):
            terms.append(2 * x * terms[-1] - terms[-2])
        return torch.stack(terms, 1)

    def forward(self, time: Times) -> list[Tensor]:
        """One embedding (b, width) per entry."""
        basis = self.basis(time)
        return [basis.to(fit.dtype) @ fit for fit in self.fits]


@contextmanager
def timed(
    places: Sequence[Entry], time: Times, *, change: Tensor | None = None, instead: Sequence[Tensor] | None = None
) -> Iterator[None]:
    """Within, the network sees exact times.

    Args:
        places: where the network embeds its time.
        time: the network's times.
        change: (b, width), added to every embedding of the time.
        instead: one embedding (b, width) per entry, in place of the network's own.
    """
    with ExitStack() as hooks:
        for index, place in enumerate(places):

            def exact(module: nn.Module, given: tuple, place: Entry = place) -> tuple:
                del module
                return (place.sinusoids(time).to(given[0].dtype), *given[1:])

            def changed(module: nn.Module, given: tuple, own: Tensor, index: int = index) -> Tensor:
                del module, given
                embedded = own if instead is None else instead[index].to(own.dtype)
                return embedded if change is None else embedded + change.to(own.dtype)

            hooks.callback(place.embedding.register_forward_pre_hook(exact).remove)
            hooks.callback(place.embedding.register_forward_hook(changed).remove)
        yield
