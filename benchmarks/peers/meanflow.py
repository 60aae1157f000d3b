"""Gsunshine/py-meanflow (arXiv 2505.13447): MeanFlow from data alone, without teacher and guidance."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from measuring.problems import SHARE, Roles
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hidistill.derivative import Forward
from hidistill.objectives.meanflow import MeanFlow

from . import Losses, Pair, load

NEEDS = "clone https://github.com/Gsunshine/py-meanflow and give --py-meanflow CHECKOUT/meanflow"


class Ours(nn.Module):
    """Our student with its arguments: x, then t and t - r."""

    def __init__(self, roles: Roles) -> None:
        super().__init__()
        self.student, self.cond = roles.student, roles.batch.cond

    def forward(self, x: Tensor, times: tuple[Tensor, Tensor], aug_cond: object) -> Tensor:
        """The mean velocity."""
        del aug_cond
        t, interval = times
        return self.student.mean_velocity(x, t=t, r=t - interval, cond=self.cond)


def pairs(roles: Roles, folder: Path | None) -> Sequence[Pair]:
    """Its step: one pass that carries the derivative and the gradient, over all rows."""
    module = load("py-meanflow", "models.meanflow", folder, NEEDS)
    batch, rows = roles.batch, slice(None)
    module.sample_two_timesteps = lambda *_, **__: (roles.t, roles.r)
    peer = module.MeanFlow.__new__(module.MeanFlow)  # its constructor copies the network for five averages
    nn.Module.__init__(peer)
    peer.net, peer.args = Ours(roles), SimpleNamespace(norm_eps=1e-2, norm_p=1.0)
    objective = MeanFlow(None, roles.student, Forward(), instantaneous=SHARE)

    def ours() -> Losses:
        torch.manual_seed(1)
        noise = torch.randn_like(batch.x)
        return {"total": objective.at(batch, t=roles.t, r=roles.r, noise=noise, first=roles.rows).value.mean()}

    def theirs() -> Losses:
        torch.manual_seed(1)
        with sdpa_kernel(SDPBackend.MATH):
            return {"total": peer.forward_with_loss(batch.x[rows], None)}

    return [Pair("MeanFlow from data, eager", ours, theirs, list(roles.student.parameters()))]
