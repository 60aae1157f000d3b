"""A network of any convention that answers exactly: the closed-form velocity of a mixture, carried over to it."""

import numpy as np
import torch
from torch import nn

from hidistill.foreign.network import Family, Network
from hidistill.path import per_row
from hidistill.teachers.mixture import Mixture

CLASSES, DIMENSIONS = 6, 32
GRID = torch.linspace(0, 1, 40_001, dtype=torch.float64)


class Column(nn.Module):
    """In the place of sinusoids: the time as it is."""

    def forward(self, time):
        return time[:, None]


class Unchanged(nn.Module):
    """In the place of an embedding, with the layers that say how wide it is."""

    def __init__(self):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, column):
        return column


class Clock(nn.Module):
    def __init__(self):
        super().__init__()
        self.time_proj, self.timestep_embedder = Column(), Unchanged()

    def forward(self, time):
        return self.timestep_embedder(self.time_proj(time))[:, 0]


class ExactNetwork(nn.Module):
    """What a perfectly trained network of the given convention answers.

    Args:
        truth: the convention that it was trained in.
    """

    def __init__(self, truth):
        super().__init__()
        self.truth, self.mixture, self.clock = truth, mixture(), Clock()
        self.block = nn.Identity()
        times = truth.at(GRID).time.numpy()
        order = np.argsort(times, kind="stable")
        self.times, self.grid = times[order], GRID.numpy()[order]

    def forward(self, x, time, labels):
        t = torch.from_numpy(np.interp(self.clock(time).double().numpy(), self.times, self.grid))
        _, scale, skip, gain = (per_row(value, x) for value in self.truth.at(t))
        x_t = x.double() / scale
        velocity = self.mixture.velocity(x_t, t=t, cond=labels)
        return self.block((velocity - skip * x_t) / gain).to(x.dtype)


def mixture(classes=CLASSES):
    """Two components for each class, of unit size in all."""
    generator = torch.Generator().manual_seed(7)
    means = 0.9 * torch.randn(2 * classes, DIMENSIONS, generator=generator, dtype=torch.float64)
    return Mixture(means, torch.full_like(means, 0.4), classes=[[i, i + classes] for i in range(classes)])


FAMILY = Family(
    name="exact",
    networks=("ExactNetwork",),
    part="transformer",
    call=lambda net, x, time, cond: net(x, time, cond),
    blocks=lambda net: [net.block],
    channels=lambda net, block: DIMENSIONS,
    classes=lambda net: CLASSES,
    sample_channels=lambda net: DIMENSIONS,
)


def network(truth, told=None, family=FAMILY):
    """The adapter around an exact network; `told` is the convention that it is read with, the true one if None."""
    return Network(ExactNetwork(truth), family, told or truth).eval().requires_grad_(False)


def samples(count, *, seed=0):
    """Clean samples and their labels."""
    labels = torch.arange(count) % CLASSES
    return mixture().sample(labels, generator=torch.Generator().manual_seed(seed)).float(), labels
