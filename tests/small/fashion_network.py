"""The bundled Fashion-MNIST teacher behind the adapter of foreign networks: a trained network to plant faults in.

Its preconditioned network F is a v-prediction on variance-preserving data of unit size, so that with its true
convention the adapter answers with the teacher's own velocity.
"""

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

from hidistill import weights
from hidistill.codecs import Pixels
from hidistill.conventions import Diffusion
from hidistill.data import fashion
from hidistill.foreign.network import Family, Network
from hidistill.teachers.dit import DiT

TEACHER = Path(str(files("hidistill"))) / "recipes" / "assets" / "fashion-teacher.safetensors"
UNIT = 1000.0


class Unscaled(nn.Module):
    """In the place of sinusoids: the time in [0, 1] as a column."""

    def forward(self, time):
        return time[:, None] / UNIT


class Embedded(nn.Module):
    """The teacher's embedding of its time, under the names that networks of diffusers use."""

    def __init__(self, time):
        super().__init__()
        self.time, self.linear_1, self.linear_2 = time, time.layers[0], time.layers[2]

    def forward(self, column):
        return self.time(column[:, 0])


class Clock(nn.Module):
    def __init__(self, time):
        super().__init__()
        self.time_proj, self.timestep_embedder = Unscaled(), Embedded(time)

    def forward(self, time):
        return self.timestep_embedder(self.time_proj(time))


class FashionNetwork(nn.Module):
    """F of the teacher for (input of unit size, 1000 t, labels)."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher, self.clock = teacher, Clock(teacher.time)

    def forward(self, x, time, labels):
        net = self.teacher
        c = self.clock(time) + net.label(labels)
        # The head's own preconditioning at t = 1 is x + s F, and the entry's is none there.
        one = torch.ones(len(x), dtype=x.dtype)
        tokens, image = net.enter(x, one)
        tokens, _ = net.trunk(tokens, c)
        return (net.head(tokens, image, x, one, c) - x) / net.data_std


@dataclass(frozen=True)
class TimesThousand:
    """The network's time, 1000 t, as a function of the shares of data of unit size and of noise."""

    data_std: float
    ends: tuple[float, float] = (-30.0, math.inf)

    def __call__(self, alpha, sigma):
        return UNIT * sigma * self.data_std / (sigma * self.data_std + alpha)


FAMILY = Family(
    name="fashion",
    networks=("FashionNetwork",),
    part="transformer",
    call=lambda net, x, time, cond: net(x, time, cond),
    blocks=lambda net: list(net.teacher.blocks),
    channels=lambda net, block: net.teacher.dim,
    classes=lambda net: net.teacher.classes,
    sample_channels=lambda net: net.teacher.channels,
)


@cache
def teacher():
    stored = weights.read(TEACHER)
    net = DiT.from_config(dict(stored.config))
    weights.load_into(net, stored.tensors, source=str(TEACHER))
    return net.eval().requires_grad_(False)


def convention(prediction="v_prediction"):
    return Diffusion(prediction, TimesThousand(teacher().data_std), teacher().data_std)


def network(told=None, family=FAMILY, net=None):
    """The adapter around the trained network, with the convention that it is told; None is the true one."""
    return Network(FashionNetwork(teacher()) if net is None else net, family, told or convention())


def pictures(count, *, first=0):
    """Clean samples that the teacher was not trained on, and their labels."""
    split = fashion.bundled("test")
    rows = slice(first, first + count)
    return Pixels().encode(split.images[rows].float() / 255), split.labels[rows]
