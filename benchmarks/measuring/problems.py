"""One batch through both stages at a network's size, as a mapping from the step's parts to calls."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hidistill.derivative import Central, Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.path import interpolate
from hidistill.recipes.stages import refine, sketch
from hidistill.teachers.dit import DiT, FlowMapDiT
from hidistill.train.stage import Update
from hidistill.types import Batch, Cond, Derivative, Points, Student, Times

from .counting import moving

SHARE = 0.75
"""Rows with r = t, as in MeanFlow from data; a quarter of the rows pay for a derivative."""
SIZES = {
    "tiny": {"size": "tiny", "image_size": 28, "channels": 1, "classes": 10, "patch": 4},
    "S/2": {"size": "S", "image_size": 32, "channels": 4, "classes": 1000, "patch": 2},
    "B/2": {"size": "B", "image_size": 32, "channels": 4, "classes": 1000, "patch": 2},
    "XL/2": {"size": "XL", "image_size": 32, "channels": 4, "classes": 1000, "patch": 2},
}
"""The demo's images, and the latents of 256 x 256 pixels (arXiv 2212.09748)."""


@dataclass(frozen=True)
class Roles:
    """Who plays in both stages, and a batch."""

    teacher: DiT
    student: FlowMapDiT
    fake: DiT
    head: Adaptive
    batch: Batch
    noise: Tensor
    t: Tensor
    r: Tensor

    @property
    def guided(self) -> Guided:
        """The teacher at the usual scale."""
        return Guided(self.teacher, 1.5)

    @property
    def rows(self) -> int:
        """Leading rows with r = t."""
        return round(SHARE * len(self.t))

    @property
    def x_t(self) -> Tensor:
        """The noised batch."""
        return interpolate(self.batch.x, self.noise, self.t)


def roles(name: str, batch: int, *, device: str = "cpu") -> Roles:
    """Networks of a size with weights that are not zero, and random data.

    Args:
        name: of `SIZES`.
        batch: rows.
        device: where they are; "meta" is without data, for counting.
    """
    torch.manual_seed(0)
    with torch.device(device):
        networks = [network if device == "meta" else randomized(network) for network in parts(name)]
    teacher, student, fake, head = networks
    size = SIZES[name]
    x = torch.randn(2, batch, size["channels"], size["image_size"], size["image_size"], device=device)
    t = 0.1 + 0.8 * torch.rand(batch, device=device)
    first = round(SHARE * batch)
    r = torch.cat([t[:first], 0.5 * t[first:]])
    cond = torch.arange(batch, device=device) % size["classes"]
    return Roles(teacher, student, fake, head, Batch(x[0], cond), x[1], t, r)  # type: ignore[arg-type]


def parts(name: str) -> tuple[nn.Module, ...]:
    """Teacher, student, fake score and discriminator, none of which wants a gradient."""
    teacher = DiT(**SIZES[name])
    networks = (teacher, teacher.student(), deepcopy(teacher), Adaptive(teacher.feature_channels))
    return tuple(network.requires_grad_(False) for network in networks)


def randomized(module: nn.Module) -> nn.Module:
    """Weights that are zero at start, such as those of modulations, are drawn; so that nothing is trivially equal."""
    for weight in module.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return module


def sketch_parts(roles: Roles, derivative: Derivative) -> Mapping[str, Callable[[], None]]:
    """The guided field, the derivative on a quarter of the rows, forward and backward, and all of it."""
    student, batch, t, r, x_t, n = roles.student, roles.batch, roles.t, roles.r, roles.x_t, roles.rows
    objective = update_of(roles, derivative).objective

    def field() -> None:
        with torch.no_grad():
            roles.guided.velocity(x_t, t=t, cond=batch.cond)

    def tangent() -> None:
        derivative(student, x_t[n:], t=t[n:], r=r[n:], cond=batch.cond[n:], direction=roles.noise[n:])  # type: ignore[index]

    def both() -> Tensor:
        return student.mean_velocity(x_t, t=t, r=r, cond=batch.cond).square().mean()

    def whole() -> Tensor:
        return objective.at(batch, t=t, r=r, noise=roles.noise, first=n).value.mean()  # type: ignore[attr-defined]

    own = list(student.parameters())
    # The gain and the interval are part of every answer, so all of them get a gradient.
    return {
        "guided field": field,
        "derivative, a quarter of the rows": tangent,
        "forward and backward": moving(own, both),
        "whole step": moving(own, whole),
    }


def update_of(roles: Roles, derivative: Derivative) -> Update:
    """The sketch's update."""
    stage = sketch(roles.student, roles.guided, steps=10, derivative=derivative, instantaneous=SHARE)
    return stage.updates["student"]


def refine_parts(roles: Roles, *, adversarial: bool = True) -> Mapping[str, Callable[[], None]]:
    """Both updates of refine, and the passes that they are made of."""
    head = roles.head if adversarial else None
    stage = refine(roles.student, roles.guided, roles.fake, head, steps=10, every=1)
    x_t, t, cond, n = roles.x_t, roles.t, roles.batch.cond, len(roles.t)
    features = [torch.randn(2 * n, roles.teacher.grid**2, c, device=x_t.device) for c in roles.head.channels]
    both = {"t": torch.cat([t, t]), "cond": torch.cat([cond, cond])}  # type: ignore[list-item]

    def fake_score() -> None:
        with torch.no_grad():
            roles.fake.velocity(x_t, t=t, cond=cond)

    def probe() -> None:
        moved = x_t.detach().requires_grad_()
        seen = roles.guided.probe(moved, t=t, cond=cond)
        if adversarial:
            torch.autograd.grad(sum(layer.sum() for layer in seen.features), moved)

    def judged() -> Tensor:
        return roles.head(features, **both).square().mean()

    def update(name: str) -> Callable[[], None]:
        made = stage.updates[name]
        return moving(made.parameters(), lambda: made.objective(roles.batch).value.mean())

    calls = {"fake score": fake_score, "teacher's probe and back to the sample": probe}
    if adversarial:
        calls["heads on two batches"] = moving(roles.head.parameters(), judged)
    return calls | {"student's update": update("student"), "critics' update": update("critics")}


@torch.no_grad()
def torch_func(student: Student, x_t: Points, *, t: Times, r: Times, cond: Cond, direction: Points) -> Points:
    """The derivative as public implementations take it: torch's own rules, unfused attention."""
    moving_in = (direction, torch.ones_like(t))

    def u(x: Tensor, time: Tensor) -> Tensor:
        return student.mean_velocity(x, t=time, r=r, cond=cond)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(u, (x_t, t), moving_in)[1]


BACK_ENDS: Mapping[str, Derivative] = {"forward": Forward(), "central": Central(), "torch.func.jvp": torch_func}
