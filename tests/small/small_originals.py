"""DiT and SiT as their repositories keep them: a small one of our own, written from the papers, under their names.

Facts that a reader of a checkpoint must know: the order of the modulations (shift, scale and gate of attention, then of
the perceptron), queries, keys and values in one product, GELU by its tanh formula, layer norms without weights and with
1e-6, cosines before sines of `time 10000^(-k / 128)`, patches unfolded as (row, column, channel), positions as sines
and cosines of the column and then of the row.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from randomized import randomized
from safetensors.torch import save_file
from torch import nn

from hidistill.foreign.network import Network
from hidistill.teachers import diffusers_dit
from hidistill.teachers.original import convention, read_original


def waves(places, channels):
    """Sines, then cosines, of places at frequencies 10000^(-k / count)."""
    count = channels // 2
    angles = np.outer(places, 10_000.0 ** (-np.arange(count) / count))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)


def positions(grid, dim):
    row, column = (index.ravel() for index in np.indices((grid, grid)))
    table = np.concatenate([waves(column, dim // 2), waves(row, dim // 2)], 1)
    return torch.from_numpy(table).float()[None]


def normed(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Part(nn.Module):
    """Modules by name, for the names of the state."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def modulation(dim, count):
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, count * dim))


class Original(nn.Module):
    def __init__(self, *, dim=24, depth=3, heads=2, patch=2, grid=3, channels=4, answered=8, classes=3):
        super().__init__()
        self.heads, self.patch, self.grid = heads, patch, grid
        self.x_embedder = Part(proj=nn.Conv2d(channels, dim, patch, patch))
        self.t_embedder = Part(mlp=nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim)))
        self.y_embedder = Part(embedding_table=nn.Embedding(classes + 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid**2, dim), requires_grad=False)
        blocks = [
            Part(
                attn=Part(qkv=nn.Linear(dim, 3 * dim), proj=nn.Linear(dim, dim)),
                mlp=Part(fc1=nn.Linear(dim, 4 * dim), fc2=nn.Linear(4 * dim, dim)),
                adaLN_modulation=modulation(dim, 6),
            )
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        last = nn.Linear(dim, patch**2 * answered)
        self.final_layer = Part(linear=last, adaLN_modulation=modulation(dim, 2))
        randomized(self)
        self.pos_embed.data = positions(grid, dim)

    def attend(self, part, x):
        b, n, dim = x.shape
        q, k, v = part.qkv(x).reshape(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (dim // self.heads) ** 0.5).softmax(-1)
        return part.proj((weights @ v).transpose(1, 2).reshape(b, n, dim))

    def forward(self, x, time, label):
        angles = time[:, None] * torch.exp(-np.log(10_000) * torch.arange(128) / 128)
        c = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], 1)) + self.y_embedder.embedding_table(label)
        x = self.x_embedder.proj(x).flatten(2).mT + self.pos_embed
        for block in self.blocks:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, 1)
            x = x + gate_a[:, None] * self.attend(block.attn, normed(x, shift_a, scale_a))
            hidden = F.gelu(block.mlp.fc1(normed(x, shift_m, scale_m)), approximate="tanh")
            x = x + gate_m[:, None] * block.mlp.fc2(hidden)
        shift, scale = self.final_layer.adaLN_modulation(c).chunk(2, 1)
        tokens = self.final_layer.linear(normed(x, shift, scale))
        g, p = self.grid, self.patch
        return tokens.reshape(len(x), g, g, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, g * p, g * p)


def saved(net, path):
    """The state under the repository's own names."""
    state = net.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def teacher(kind):
    with tempfile.TemporaryDirectory() as folder:
        net = read_original(saved(Original(), Path(folder) / "net.safetensors"), kind=kind, heads=2)
    return Network(net, diffusers_dit.FAMILY, convention(kind), taps=(0, 2))


FAMILIES = {
    "original dit": {"teacher": lambda: teacher("dit"), "shape": (4, 6, 6)},
    "original sit": {"teacher": lambda: teacher("sit"), "shape": (4, 6, 6)},
}
