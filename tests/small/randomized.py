"""Weights that leave nothing at zero: the last layers and modulations of fresh networks are."""

from torch import nn


def randomized(module):
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)
