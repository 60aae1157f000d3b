"""Students and fake scores as low-rank adapters (arXiv 2106.09685) on one frozen network, which all of them share.

A layer's weight W stays; a slot adds `alpha / rank B A` to it, A (rank, in) and B (out, rank). Teacher, student, its
average and the fake score then hold the network once: the teacher is the `Network` itself, whose slots are all off
whenever nobody has one on, and every other role is a `LowRank`, which has its slot on for the length of a call.

peft keeps the adapters in the layers and adds their part. Its own switches also set who requires a gradient, which is
the training loop's business; here all of a network's layers read the name of the active slot from one list.
"""

import math
import re
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from hidistill.conventions import Convention
from hidistill.foreign.clock import Curve, entries
from hidistill.foreign.folder import library
from hidistill.foreign.network import Family, FlowMap, Network
from hidistill.foreign.replay import checkpointing, replayed
from hidistill.types import Cond, Points, Probe, Times, Tokens

ALL_LINEAR = "all-linear"
"""Every linear layer within the blocks, the embeddings of time excepted."""
SLOT = "hidistill_"
"""How the names of slots begin; a number follows."""


class LowRank(nn.Module):
    """One slot on a shared network: everything that a `Network` offers, with parameters A and B alone.

    A copy is a new slot with equal weights on the same network. A slot goes when its owner does.

    Args:
        shared: the network, frozen from its first slot on.
        layers: names of the layers within `shared.net` that are adapted.
        rank: of the adapters.
        alpha: their part is multiplied by alpha / rank.
    """

    def __init__(self, shared: Network, *, layers: Sequence[str], rank: int, alpha: float) -> None:
        super().__init__()
        self.held = (shared,)  # in a tuple, for what a module has as an attribute becomes a part of it
        self.layers, self.rank, self.alpha = tuple(layers), rank, alpha
        self.slot, self.active = inject(shared.net, self.layers, rank=rank, alpha=alpha)
        leaves: dict[str, nn.Module] = {}
        for name, layer in self.adapted.items():
            weight = layer.get_base_layer().weight
            kind = torch.promote_types(weight.dtype, torch.float32)
            for part, slots in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                leaves[f"{name}.{part}"] = slots[self.slot].to(weight.device, kind)
            nn.init.zeros_(layer.lora_B[self.slot].weight)
        self.adapter = nested(leaves)
        self.places = checkpointing(shared.net)
        weakref.finalize(self, remove, shared.net, self.slot).atexit = False

    def __deepcopy__(self, memo: dict) -> "LowRank":
        copy = LowRank(self.shared, layers=self.layers, rank=self.rank, alpha=self.alpha).train(self.training)
        for mine, theirs in zip(copy.parameters(), self.parameters(), strict=True):
            mine.data = theirs.detach().clone()
            mine.requires_grad_(theirs.requires_grad)
        memo[id(self)] = copy
        return copy

    @property
    def shared(self) -> Network:
        """The network that all slots share; by itself it is the teacher."""
        return self.held[0]

    @property
    def adapted(self) -> dict[str, Any]:
        """The layers that have this slot, by name."""
        return {name: self.net.get_submodule(name) for name in self.layers}

    @property
    def net(self) -> nn.Module:
        """See `Network`; called by itself it answers without this slot."""
        return self.shared.net

    @property
    def family(self) -> Family:
        """See `Network`."""
        return self.shared.family

    @property
    def convention(self) -> Convention:
        """See `Network`."""
        return self.shared.convention

    @property
    def taps(self) -> tuple[int, ...]:
        """See `Network`."""
        return self.shared.taps

    @property
    def classes(self) -> int:
        """See `Network.classes`."""
        return self.shared.classes

    @property
    def feature_channels(self) -> Sequence[int]:
        """See `Teacher.feature_channels`."""
        return self.shared.feature_channels

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """See `VelocityField.velocity`."""
        with self.on():
            return self.shared.velocity(x_t, t=t, cond=cond)

    def features(self, x_t: Points, *, t: Times, cond: Cond) -> Sequence[Tokens]:
        """See `Teacher.features`."""
        with self.on():
            return self.shared.features(x_t, t=t, cond=cond)

    def probe(self, x_t: Points, *, t: Times, cond: Cond) -> Probe:
        """See `Teacher.probe`."""
        with self.on():
            return self.shared.probe(x_t, t=t, cond=cond)

    def null(self, cond: Cond) -> Cond:
        """See `Teacher.null`."""
        return self.shared.null(cond)

    def run(
        self,
        x_t: Points,
        *,
        t: Times,
        cond: Cond,
        change: Tensor | None = None,
        curve: Curve | None = None,
    ) -> Points:
        """See `Network.run`."""
        with self.on():
            return self.shared.run(x_t, t=t, cond=cond, change=change, curve=curve)

    @torch.no_grad()
    def merged(self) -> Network:
        """An ordinary network with weights W + alpha / rank B A; the shared one is left as it is."""
        network = without_slots(self.shared)
        for name, layer in self.adapted.items():
            weight = network.net.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            kind = torch.promote_types(weight.dtype, torch.float32)
            weight.copy_(weight.to(kind) + layer.get_delta_weight(self.slot).to(kind))
        return network

    def on(self) -> AbstractContextManager[None]:
        """Within, the shared network answers with this slot, and in the backward pass through what it answered, too."""
        return replayed(self.places, lambda: switched(self.active, self.slot))


def low_rank(
    teacher: Network, *, rank: int, alpha: float | None = None, targets: str | Sequence[str] = ALL_LINEAR
) -> LowRank:
    """A slot on a teacher's network that begins as the teacher: B is zero, A is drawn from torch's generator.

    The teacher's network is changed: its layers become peft's, around the same weights. It answers as before, to the
    bit, but the keys of its state are others; `without_slots` gives a network that nothing was done to.

    Args:
        teacher: whose network is shared; frozen from here on.
        rank: of the adapters.
        alpha: their part is multiplied by alpha / rank; None is the rank, a factor of 1.
        targets: "all-linear" for every linear layer and every convolution of one pixel within the blocks, the
            embeddings of time excepted; or a regular expression that must match a layer's whole name; or names of
            layers, or ends of names ("to_q"). The last two choose among all linear and convolutional layers.

    Raises:
        ValueError: if rank or alpha is not positive, a target is no such layer, or the network has adapters of others.
        ModuleNotFoundError: if peft is not installed.
    """
    if rank < 1 or (alpha is not None and not 0 < alpha < math.inf):
        raise ValueError(
            f"rank={rank}, alpha={alpha}: the rank must be 1 or more, alpha positive and finite (or None, which is the "
            "rank); rank=16 is usual"
        )
    strangers = [name for name in getattr(teacher.net, "peft_config", {}) if not name.startswith(SLOT)]
    if strangers:
        raise ValueError(
            f"the network has the adapters {', '.join(strangers)} of its own, which would be off; a teacher has none: "
            "merge them into its weights first (fuse_lora, then unload)"
        )
    student = LowRank(teacher, layers=chosen(teacher, targets), rank=rank, alpha=float(alpha or rank))
    for layer in student.adapted.values():
        weight = layer.lora_A[student.slot].weight
        # On the CPU and in float32, so that a seed gives the same student in every type and on every device.
        weight.data.copy_(nn.init.kaiming_uniform_(torch.empty(weight.shape), a=math.sqrt(5)))
    return student


def merged(student: FlowMap) -> FlowMap:
    """A student on an ordinary network of its own, see `LowRank.merged`, with copies of all else that it has.

    Raises:
        TypeError: if the student's network is no `LowRank`.
    """
    slot = student.network
    if not isinstance(slot, LowRank):
        raise TypeError(f"the student's network is a {type(slot).__name__}; only a LowRank is merged: use it as it is")
    return deepcopy(student, {id(slot): slot.merged()})


def without_slots(network: Network) -> Network:
    """A copy of a network as it was before its first slot."""
    memo: dict[int, Any] = {}
    for layer in adapter_layers(network.net).values():
        memo[id(layer)] = deepcopy(layer.get_base_layer(), memo)
    copy = deepcopy(network, memo)
    if hasattr(copy.net, "peft_config"):
        del copy.net.peft_config
    return copy


@contextmanager
def switched(active: list[str], slot: str) -> Iterator[None]:
    """Within, a slot is the active one."""
    before = active[:]
    active[:] = [slot]
    try:
        yield
    finally:
        active[:] = before


def inject(net: nn.Module, layers: Sequence[str], *, rank: int, alpha: float) -> tuple[str, list[str]]:
    """Give layers a new slot, which is off; its name, and the list in which its network's layers read who is on.

    Nothing is drawn from torch's generator, and what existed keeps its `requires_grad`; the first slot freezes the
    network.
    """
    peft, present = library("peft"), adapter_layers(net)
    active: list[str] = next((layer.active_adapter for layer in present.values()), [])
    taken = [int(name.removeprefix(SLOT)) for name in getattr(net, "peft_config", {})]
    slot = f"{SLOT}{max(taken, default=-1) + 1}"
    flags = [(parameter, bool(present) and parameter.requires_grad) for parameter in net.parameters()]
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules="|".join(map(re.escape, layers)), init_lora_weights=False
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # Several slots on one network are what is wanted here.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`", category=UserWarning)
        peft.inject_adapter_in_model(config, net, adapter_name=slot)
    for layer in adapter_layers(net).values():
        layer.set_adapter(active)
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    return slot, active


def remove(net: Any, slot: str) -> None:  # noqa: ANN401 -- peft gave the network an attribute
    """Take a slot out of a network."""
    for layer in adapter_layers(net).values():
        layer.delete_adapter(slot)
    del net.peft_config[slot]


def adapter_layers(net: nn.Module) -> dict[str, Any]:
    """The layers of peft within a network, by name."""
    kind = library("peft").tuners.tuners_utils.BaseTunerLayer
    return {name: module for name, module in net.named_modules() if isinstance(module, kind)}


def chosen(network: Network, targets: str | Sequence[str]) -> list[str]:
    """Names of the layers that `targets` means, in the order of the network's modules.

    Raises:
        ValueError: if one of them means none.
    """
    layers = adaptable(network.net)
    if targets == ALL_LINEAR:
        within = {id(part) for block in network.family.blocks(network.net) for part in block.modules()}
        time = {id(part) for entry in entries(network.net) for part in entry.embedding.modules()}
        names = [
            name
            for name, layer in layers.items()
            if id(layer) in within - time and set(getattr(layer, "kernel_size", (1,))) == {1}
        ]
        patterns = {ALL_LINEAR: names}
    elif isinstance(targets, str):
        patterns = {targets: [name for name in layers if re.fullmatch(targets, name)]}
    else:
        patterns = {end: [name for name in layers if f".{name}".endswith(f".{end}")] for end in targets}
    lost = [pattern for pattern, names in patterns.items() if not names]
    if lost or not patterns:
        raise ValueError(
            f"targets {lost or targets} match no linear or convolutional layer of {type(network.net).__name__}; its "
            f"layers are such as {', '.join(list(layers)[-6:])}: name some of them, or their ends, or use 'all-linear'"
        )
    found = {name for names in patterns.values() for name in names}
    return [name for name in layers if name in found]


def adaptable(net: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolutional layers of a network by name, whether they have slots or not."""
    layers: dict[str, nn.Module] = {}
    inner: tuple[str, ...] = ()
    present = adapter_layers(net)
    for name, module in net.named_modules():
        if name.startswith(inner):
            continue
        base = present[name].get_base_layer() if name in present else module
        # nn.MultiheadAttention reads the weights of its layers without calling them.
        if name in present or isinstance(module, nn.MultiheadAttention):
            inner += (f"{name}.",)
        if isinstance(base, nn.Linear) or (isinstance(base, nn.Conv2d) and base.groups == 1):
            layers[name] = module
    return layers


def nested(leaves: Mapping[str, nn.Module]) -> nn.Module:
    """One module that has each leaf at its dotted name."""
    root = nn.Module()
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        place = root
        for name in parents:
            if name not in dict(place.named_children()):
                place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        place.add_module(last, leaf)
    return root
