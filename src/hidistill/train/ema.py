"""Exponential moving averages of weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from hidistill.parted import mine


class Average:
    """A moving average of a module's weights, which becomes the module when its stage ends.

    `average <- d average + (1 - d) weights` after every update that moves the module, with
    `d = min(decay, (1 + n) / (10 + n))` after n updates, so that a short stage is not an average with its start.

    Args:
        source: the module that is followed.
        decay: limit of the factor d, in [0, 1).
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay}: the average's decay must be in [0, 1); 0 is no averaging")
        self.source, self.decay, self.updates = source, decay, 0
        self.module = deepcopy(source).requires_grad_(False)

    @torch.no_grad()
    def reset(self) -> None:
        """Start from the source as it is."""
        self.module.load_state_dict(self.source.state_dict())
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the source's weights once."""
        self.updates += 1
        factor = min(self.decay, self.updates / (9 + self.updates))
        own: list[Tensor] = [mine(each) for each in self.module.parameters()]
        theirs: list[Tensor] = [mine(each) for each in self.source.parameters()]
        torch._foreach_lerp_(own, theirs, 1 - factor)  # one pass over all weights; no public name for it
        for buffer, new in zip(self.module.buffers(), self.source.buffers(), strict=True):
            buffer.copy_(new)

    @torch.no_grad()
    def install(self) -> None:
        """Make the average the source's weights."""
        self.source.load_state_dict(self.module.state_dict())
