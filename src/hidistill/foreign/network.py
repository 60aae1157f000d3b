"""A network of another library as a teacher: the one adapter that all families share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hidistill.conventions import Convention
from hidistill.embedding import interval_embedding
from hidistill.foreign.clock import Curve, entries, timed
from hidistill.foreign.precision import kept
from hidistill.foreign.replay import checkpointing, replayed
from hidistill.path import per_row
from hidistill.types import Cond, Points, Probe, Times, Tokens


def as_tokens(answer: object) -> Tokens:
    """A block's answer as tokens: the first tensor of it, its pixels in a row if it is an image."""
    first = answer if isinstance(answer, Tensor) else answer[0]  # type: ignore[index]
    return first.flatten(2).transpose(1, 2) if first.ndim == 4 else first


def no_classes(net: nn.Module) -> int:
    """The number of classes of a network that is not conditioned by any."""
    del net
    return 0


def in_channels(net: nn.Module) -> int:
    """Channels of a sample, where the network takes samples as they are."""
    return int(net.config.in_channels)  # type: ignore[union-attr]


def every_configuration(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of the family, where no other family has networks of its class."""
    del config
    return True


def unscaled(net: nn.Module) -> float:
    """The scale of a network that embeds the times of its pipeline's scheduler."""
    del net
    return 1.0


@dataclass(frozen=True)
class Family:
    """What the adapter must be told of a family of networks.

    Args:
        name: of the family, e.g. "dit".
        networks: class names, as in the configuration of their folders.
        part: name of the folder that holds the network within a pipeline's.
        call: the network's answer for (net, x, its own time, condition).
        blocks: the blocks whose outputs can be features, in their order.
        channels: of the tokens behind a block: (net, index of the block) -> channels.
        tokens: turns a block's answer into tokens.
        texts: keys of the tensors that a prompt becomes; none if the condition is a label.
        classes: number of classes, whose label after the last is the null class.
        pipelines: class names of the pipelines that hold such a network, the one to export to first.
        sample_channels: channels of a sample, where the network packs several of its pixels into one token's.
        time_scale: of what the network embeds to the time of its pipeline's scheduler, in which conventions speak.
        null: label of the null class; None is the label after the last class.
        fits: whether a network's configuration is of this family, where several share a class.
    """

    name: str
    networks: tuple[str, ...]
    part: str
    call: Callable[[nn.Module, Points, Times, Cond], Tensor]
    blocks: Callable[[nn.Module], Sequence[nn.Module]]
    channels: Callable[[nn.Module, int], int]
    tokens: Callable[[Any], Tokens] = as_tokens
    texts: tuple[str, ...] = ()
    classes: Callable[[nn.Module], int] = no_classes
    pipelines: tuple[str, ...] = ()
    sample_channels: Callable[[nn.Module], int] = in_channels
    time_scale: Callable[[nn.Module], float] = unscaled
    null: Callable[[nn.Module], int] | None = None
    fits: Callable[[Mapping[str, Any]], bool] = every_configuration


class Enough(Exception):
    """Ends a forward pass behind its last tapped block."""


@contextmanager
def tapped(blocks: Sequence[nn.Module], *, stop: bool) -> Iterator[list[object]]:
    """Within, the answers of the blocks are collected; with `stop` a pass ends quietly behind the last of them."""
    found: list[object] = []
    with ExitStack() as hooks:
        for index, block in enumerate(blocks):

            def collect(module: nn.Module, given: tuple, answer: object, last: bool = index == len(blocks) - 1) -> None:
                del module, given
                found.append(answer)
                if stop and last:
                    raise Enough

            hooks.callback(block.register_forward_hook(collect).remove)
        with suppress(Enough):
            yield found


class Network(nn.Module):
    """A `Teacher` made of another library's network, its family and its convention.

    Conditions are labels (an integer tensor) where the family has classes, and otherwise a mapping with the family's
    `texts`.

    Args:
        net: the network.
        family: how it is called.
        convention: how its input, time and answer belong to the linear path.
        taps: indices of the blocks that give features; None spreads three over the depth.
        null: the tensors of the empty prompt, each with a leading dimension of 1; None where the condition is a label.

    Raises:
        ValueError: if a tap is no block, or the empty prompt lacks tensors.
    """

    def __init__(
        self,
        net: nn.Module,
        family: Family,
        convention: Convention,
        *,
        taps: Sequence[int] | None = None,
        null: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.family, self.convention = net, family, convention
        self.places, self.replaying = entries(net), checkpointing(net)
        depth = len(family.blocks(net))
        spread = sorted({depth // 4, depth // 2, (3 * depth) // 4})
        self.taps = tuple(sorted(taps)) if taps is not None else tuple(spread)
        if not self.taps or not all(0 <= tap < depth for tap in self.taps):
            raise ValueError(f"taps {self.taps} name blocks that do not exist; blocks are 0 to {depth - 1}")
        self.empty = nn.Module()
        if null is not None:
            self.set_null(null)

    def set_null(self, null: Mapping[str, Tensor]) -> None:
        """Give the tensors of the empty prompt, each with a leading dimension of 1; they are not part of the state.

        Raises:
            ValueError: if the family has other keys, or a leading dimension is not 1.
        """
        shapes = {key: tuple(value.shape) for key, value in null.items()}
        if set(null) != set(self.family.texts) or any(shape[0] != 1 for shape in shapes.values()):
            raise ValueError(
                f"the empty prompt came as {shapes}; a {self.family.name} needs "
                f"{', '.join(self.family.texts) or 'none'}, each of one row"
            )
        for key, value in null.items():
            self.empty.register_buffer(key, value.detach().clone(), persistent=False)

    @property
    def classes(self) -> int:
        """Number of classes; 0 if there are none."""
        return self.family.classes(self.net)

    @property
    def feature_channels(self) -> Sequence[int]:
        """See `Teacher.feature_channels`."""
        return tuple(self.family.channels(self.net, tap) for tap in self.taps)

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """See `VelocityField.velocity`."""
        return self.run(x_t, t=t, cond=cond)

    def features(self, x_t: Points, *, t: Times, cond: Cond) -> Sequence[Tokens]:
        """See `Teacher.features`; stops behind the last tapped block."""
        with tapped(self.tapped_blocks, stop=True) as found:
            self.run(x_t, t=t, cond=cond)
        return self.read(found, x_t)

    def probe(self, x_t: Points, *, t: Times, cond: Cond) -> Probe:
        """See `Teacher.probe`."""
        with tapped(self.tapped_blocks, stop=False) as found:
            velocity = self.run(x_t, t=t, cond=cond)
        return Probe(velocity, self.read(found, x_t))

    def read(self, answers: Sequence[object], x_t: Points) -> Sequence[Tokens]:
        """What blocks answered, as tokens in the type of the samples, in float32 at least: heads are."""
        kind = torch.promote_types(x_t.dtype, torch.float32)
        return [self.family.tokens(answer).to(kind) for answer in answers]

    def null(self, cond: Cond) -> Cond:
        """See `Teacher.null`: the label of the null class, or the empty prompt."""
        if isinstance(cond, Tensor):
            label = self.classes if self.family.null is None else self.family.null(self.net)
            return torch.full_like(self.accepted(cond), label)  # type: ignore[arg-type]
        given = dict(self.empty.named_buffers())
        if not given:
            raise ValueError(
                f"this {self.family.name} was given no empty prompt, which guidance needs; hand it to Network(null=...)"
            )
        first = next(iter(cond.values()))
        return {key: value.to(first.device).expand(len(first), *value.shape[1:]) for key, value in given.items()}

    def student(self, *, degree: int | None = None) -> "FlowMap":
        """A flow map that starts as this teacher; see `FlowMap`."""
        return FlowMap(deepcopy(self), degree=degree)

    @property
    def tapped_blocks(self) -> list[nn.Module]:
        """The blocks that give features."""
        blocks = self.family.blocks(self.net)
        return [blocks[tap] for tap in self.taps]

    def accepted(self, cond: Cond) -> Cond:
        """The condition, if it is of the family's kind."""
        if not self.family.texts:
            if isinstance(cond, Tensor):
                return cond
            raise TypeError(f"a {self.family.name} is conditioned by a tensor of labels; a {type(cond).__name__} came")
        keys = sorted(cond) if isinstance(cond, Mapping) else type(cond).__name__
        if not isinstance(cond, Mapping) or set(cond) != set(self.family.texts):
            raise TypeError(
                f"a {self.family.name} is conditioned by a mapping with {', '.join(self.family.texts)}; {keys} came"
            )
        return cond

    def run(
        self,
        x_t: Points,
        *,
        t: Times,
        cond: Cond,
        change: Tensor | None = None,
        curve: Curve | None = None,
    ) -> Points:
        """The velocity.

        Args:
            x_t: points.
            t: their times.
            cond: their conditions.
            change: (b, width), added to the embedding of the time.
            curve: gives the embedding of the time in the network's place.
        """
        kind = torch.promote_types(x_t.dtype, torch.float32)
        time, scale, skip, gain = (value.to(kind) for value in self.convention.at(t))
        time = self.family.time_scale(self.net) * time
        own = next(self.net.parameters()).dtype
        instead = None if curve is None else curve(time)

        @contextmanager
        def within() -> Iterator[None]:
            with timed(self.places, time, change=change, instead=instead), kept(own):
                yield

        with replayed(self.replaying, within):
            answer = self.family.call(self.net, (per_row(scale, x_t) * x_t).to(own), time, self.accepted(cond))
        # Networks that also learned the variance of a step have it behind their prediction.
        answer = answer[:, : x_t.shape[1]].to(kind)
        return (per_row(skip, x_t) * x_t + per_row(gain, x_t) * answer).to(x_t.dtype)


@runtime_checkable
class Adaptable(Protocol):
    """What a flow map is made of: a `Network`, or a low-rank slot on one."""

    @property
    def net(self) -> nn.Module:
        """The network of the other library."""
        ...

    @property
    def family(self) -> Family:
        """How it is called."""
        ...

    @property
    def convention(self) -> Convention:
        """How its input, time and answer belong to the linear path."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        ...

    def run(self, x_t: Points, *, t: Times, cond: Cond, change: Tensor | None, curve: Curve | None) -> Points:
        """See `Network.run`."""
        ...


class FlowMap(nn.Module):
    """A network of another library as a flow map: the length t - r is embedded and added to the embedding of the time.

    The embedding's last layer is zero at start: but for a curve the student begins as its teacher, `u(x_t, r, t) =
    velocity(x_t, t)` for every r. What it has beyond its teacher's architecture enters before a bias, so that a student
    at fixed t and r folds into the architecture without a rest.

    Args:
        network: what becomes the student; trained from here on.
        degree: of the polynomials that replace the network's embedding of time (see `Curve`); None keeps it as it is.
    """

    def __init__(self, network: Adaptable, *, degree: int | None = None) -> None:
        super().__init__()
        self.network = network
        places = entries(network.net)
        weight = next(network.parameters())
        self.interval = interval_embedding(places[0].width).to(weight)
        self.curve = None
        if degree is not None:
            ends = network.convention.at(torch.tensor([0.0, 1.0])).time * network.family.time_scale(network.net)
            first, unit = sorted(ends.tolist())
            self.curve = Curve(places, first=first, unit=unit, degree=degree).to(weight.device)
            if isinstance(network, Network):
                for place in places:
                    retire(place.embedding)

    def mean_velocity(self, x_t: Points, *, t: Times, r: Times, cond: Cond) -> Points:
        """See `Student.mean_velocity`."""
        length = (t - r).to(self.interval.layers[0].weight.dtype)  # type: ignore[union-attr]
        change = self.interval(length)
        return self.network.run(x_t, t=t, cond=cond, change=change, curve=self.curve)


def retire(module: nn.Module) -> None:
    """Turn a module's parameters into buffers of the same names: nothing that is descended depends on them any more."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
