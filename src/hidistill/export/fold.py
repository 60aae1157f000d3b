"""A one-step student as a network of its teacher's own architecture.

A sample in one step is `x_0 = z - u(z, 0, 1)`. At t = 1 and r = 0 nothing depends on a time any more: every embedding
of time, with the interval's added, is a constant vector, which is written into the bias of the embedding's last layer,
whose weight becomes zero. Whatever time a pipeline feeds, the network then answers as at t = 1, without a rest. What
remains is

    x_0 = noise z + answer F(scale z),

three numbers that come from the teacher's convention alone.
"""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hidistill.foreign.clock import entries
from hidistill.foreign.lora import LowRank, merged
from hidistill.foreign.network import Family, FlowMap, tapped
from hidistill.types import Cond, Points

GUIDANCE = "guidance_embedder"
"""Name that networks give to the embedding of a guidance scale."""


class Interval(NamedTuple):
    """What a flow map is between two times: `u = skip x_t + gain F(scale x_t)`, F with these embeddings of time.

    Args:
        embeddings: (width,), one per place where the network embeds its time.
        scale: of the input.
        skip: share of the input in the mean velocity.
        gain: share of the answer in it.
        time: the network's own time at t.
    """

    embeddings: list[Tensor]
    scale: float
    skip: float
    gain: float
    time: float


@torch.no_grad()
def interval(student: FlowMap, *, t: float, r: float) -> Interval:
    """A flow map at fixed times."""
    network, weight = student.network, next(student.network.net.parameters())
    kind = torch.promote_types(weight.dtype, torch.float32)
    border = network.convention.at(torch.tensor([t], dtype=torch.float64, device=weight.device))
    time = border.time.to(kind) * network.family.time_scale(network.net)
    length = torch.tensor([t - r], dtype=torch.float64, device=weight.device)
    change = student.interval(length.to(next(student.interval.parameters()).dtype))
    places = entries(network.net)
    own = [place(time) for place in places] if student.curve is None else student.curve(time)
    embeddings = [(each.to(change.dtype) + change).squeeze(0) for each in own]
    return Interval(embeddings, float(border.scale), float(border.skip), float(border.gain), float(time))


class OneStep(nn.Module):
    """A student folded at t = 1, r = 0: `x_0 = noise z + answer F(scale z)`.

    Args:
        net: a network of the teacher's own class, for which time is no matter any more.
        family: how it is called.
        noise: share of the noise in the sample.
        answer: share of the network's answer in it.
        scale: of the network's input; 1 but for networks on a path whose noise grows.
        time: the network's own time at t = 1; only networks that divide by it still need it.
    """

    def __init__(
        self, net: nn.Module, family: Family, *, noise: float, answer: float, scale: float, time: float
    ) -> None:
        super().__init__()
        self.net, self.family = net, family
        self.noise, self.answer, self.scale, self.time = noise, answer, scale, time

    def forward(self, noise: Points, cond: Cond) -> Points:
        """Samples from noise."""
        time = noise.new_full((noise.shape[0],), self.time)
        answer = self.family.call(self.net, self.scale * noise, time, cond)[:, : noise.shape[1]]
        return self.noise * noise + self.answer * answer


def alone(student: FlowMap) -> FlowMap:
    """A student whose network is its own: adapters on a shared one are merged into a copy."""
    return merged(student) if isinstance(student.network, LowRank) else student


@torch.no_grad()
def fold(student: FlowMap) -> OneStep:
    """A copy of a student's network that is the student at t = 1, r = 0.

    Raises:
        ValueError: if one of its embeddings of time cannot hold a constant.
    """
    student = alone(student)
    at = interval(student, t=1.0, r=0.0)
    net, family = deepcopy(student.network.net), student.network.family
    places = entries(net)
    for place, embedding in zip(places, at.embeddings, strict=True):
        hold(place.embedding, embedding)
    if getattr(places[0].embedding, "cond_proj", None) is not None:
        raise ValueError("this network's embedding of time is conditioned by a guidance scale, which a fold would drop")
    fold_guidance(net, family)
    return OneStep(net.eval(), family, noise=1 - at.skip, answer=-at.gain, scale=at.scale, time=at.time)


def hold(embedding: nn.Module, value: Tensor) -> None:
    """Make an embedding answer with one vector, whatever it is given.

    Raises:
        ValueError: if its last layer has no bias, or something follows it.
    """
    last: nn.Linear = embedding.linear_2  # type: ignore[assignment]
    if last.bias is None or getattr(embedding, "post_act", None) is not None:
        raise ValueError(
            "the last layer of this network's embedding of time has no bias, or a nonlinearity follows it: a constant "
            "cannot be written there; keep the student's weights file, or export to onnx"
        )
    last.weight.zero_()
    last.bias.copy_(value)


def fold_guidance(net: nn.Module, family: Family) -> None:
    """Write the embedded guidance scale that the student was trained under into the network, where it embeds one."""
    found = [module for name, module in net.named_modules() if name.rpartition(".")[2] == GUIDANCE]
    if not found or not net.config.guidance_embeds:  # type: ignore[union-attr]
        return
    weight = next(net.parameters())
    side = getattr(net.config, "sample_size", None) or 4
    x = weight.new_zeros(1, family.sample_channels(net), side, side)
    nothing = {key: weight.new_zeros(1, 1, 1) for key in family.texts}
    with tapped(found, stop=True) as answers:  # the prompt is not reached
        family.call(net, x, weight.new_zeros(1), nothing)
    hold(found[0], answers[0][0])  # type: ignore[index]


@torch.no_grad()
def scale_answer(student: OneStep, factor: float) -> None:
    """Write a factor of the network's answer into its last layer; the sample stays as it is.

    Raises:
        ValueError: if the network has no such layer.
    """
    last = layer(student.net, ("proj_out_2", "proj_out", "conv_out"))
    last.weight.mul_(factor)
    if last.bias is not None:
        last.bias.mul_(factor)
    student.answer /= factor


@torch.no_grad()
def scale_input(student: OneStep, factor: float) -> None:
    """Write a factor of the network's input into its first layer; the sample stays as it is.

    Raises:
        ValueError: if the input enters elsewhere, too.
    """
    net = student.net
    shown = [kind for kind in getattr(net.config, "down_block_types", ()) if "Skip" in kind]  # type: ignore[union-attr]
    if shown or getattr(net.config, "center_input_sample", False):
        raise ValueError(
            f"this {type(net).__name__} has {', '.join(shown) or 'center_input_sample'}: its input enters by more than "
            "one layer, and a factor cannot be written into it; export to onnx or safetensors instead"
        )
    layer(net, ("conv_in",)).weight.mul_(factor)
    student.scale /= factor


def layer(net: nn.Module, names: tuple[str, ...]) -> nn.Linear | nn.Conv2d:
    """The first of some layers that a network has.

    Raises:
        ValueError: if it has none.
    """
    found = next((getattr(net, name) for name in names if hasattr(net, name)), None)
    if found is None:
        raise ValueError(
            f"{type(net).__name__} has none of the layers {', '.join(names)}, into one of which a factor would be "
            "written; export to onnx or safetensors instead"
        )
    return found
