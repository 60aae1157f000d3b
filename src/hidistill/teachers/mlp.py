"""A perceptron on points of a few dimensions, as a velocity field: for toys that train in seconds.

Class labels are the condition; label `classes` is the null class. Times enter unscaled, in [0, 1].
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hidistill.embedding import TimeEmbedding
from hidistill.path import labels_of
from hidistill.types import Cond, Points, Probe, Times, Tokens

Vectors = Float[Tensor, "b dim"]


class Layer(nn.Module):
    """A residual layer under a condition: `x + outer(silu(inner(norm(x)) + condition))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.condition, self.outer = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Hidden state (b, width) under a condition (b, width)."""
        return x + self.outer(F.silu(self.inner(self.norm(x)) + self.condition(c)))


class MLP(nn.Module):
    """The network: class-conditional velocity of points (b, dim); its features are the hidden layers, one token each.

    Args:
        dim: dimensions of a point.
        classes: number of classes; 0 means that there is only the null class.
        width: channels of a hidden layer.
        depth: number of hidden layers.

    Raises:
        ValueError: if a size is less than 1, or the number of classes is negative.
    """

    def __init__(self, *, dim: int, classes: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        if min(dim, width, depth) < 1 or classes < 0:
            raise ValueError(
                f"MLP(dim={dim}, classes={classes}, width={width}, depth={depth}): sizes must be 1 or more, "
                "classes 0 or more"
            )
        self.config = {"dim": dim, "classes": classes, "width": width, "depth": depth}
        self.dim, self.classes, self.width = dim, classes, width
        self.enter = nn.Linear(dim, width)
        self.time = TimeEmbedding(width, sinusoids=32, highest=16.0)
        self.label = nn.Embedding(classes + 1, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.leave = nn.Linear(width, dim)

    def embed(self, t: Times, cond: Cond) -> Tensor:
        """The conditioning vector (b, width) of a time and a label."""
        return F.silu(self.time(t) + self.label(labels_of(cond, owner="an MLP")))

    def run(self, x_t: Vectors, c: Tensor) -> Probe:
        """Velocity and hidden layers under a condition (b, width)."""
        if x_t.shape[1] != self.dim:
            raise ValueError(
                f"points of {x_t.shape[1]} dimensions came; this MLP takes {self.dim}: build it with dim=..."
            )
        x, features = self.enter(x_t), []
        for layer in self.layers:
            x = layer(x, c)
            features.append(x[:, None])
        return Probe(self.leave(x).to(x_t.dtype), features)

    @property
    def feature_channels(self) -> Sequence[int]:
        """Channels of each hidden layer."""
        return (self.width,) * len(self.layers)

    def velocity(self, x_t: Vectors, *, t: Times, cond: Cond) -> Vectors:
        """See `VelocityField.velocity`."""
        return self.probe(x_t, t=t, cond=cond).velocity

    def features(self, x_t: Vectors, *, t: Times, cond: Cond) -> Sequence[Tokens]:
        """See `Teacher.features`."""
        return self.probe(x_t, t=t, cond=cond).features

    def probe(self, x_t: Vectors, *, t: Times, cond: Cond) -> Probe:
        """See `Teacher.probe`."""
        return self.run(x_t, self.embed(t, cond))

    def null(self, cond: Cond) -> Cond:
        """The null class, `classes`, for every sample."""
        return torch.full_like(labels_of(cond, owner="an MLP"), self.classes)

    def student(self) -> "FlowMapMLP":
        """A flow map that starts as this teacher: `u(x_t, r, t) = velocity(x_t, t)` for every r."""
        return FlowMapMLP(deepcopy(self))

    @classmethod
    def from_config(cls, config: dict) -> "MLP":
        """The network that `config` (as kept in `.config`) describes, freshly initialized."""
        return cls(**config)


class FlowMapMLP(nn.Module):
    """An MLP as a flow map: the length of the interval, t - r, is embedded and added to the condition.

    The last layer of that embedding is zero at start, so that the student begins as its teacher.
    """

    def __init__(self, net: MLP) -> None:
        super().__init__()
        self.net = net
        self.interval = TimeEmbedding(net.width, sinusoids=32, highest=16.0).to(net.enter.weight)
        last = self.interval.layers[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @property
    def config(self) -> dict:
        """The configuration of the network inside."""
        return self.net.config

    def mean_velocity(self, x_t: Points, *, t: Times, r: Times, cond: Cond) -> Points:
        """See `Student.mean_velocity`."""
        return self.net.run(x_t, self.net.embed(t, cond) + self.interval(t - r)).velocity
