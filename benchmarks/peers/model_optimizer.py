"""nvidia-modelopt's `modelopt.torch.fastgen`: losses of distribution matching for three separate updates."""

from collections.abc import Sequence
from pathlib import Path

import torch
from measuring.problems import Roles
from torch import Tensor, nn

from hidistill.objectives.adversarial import Fool, Softplus, TellApart
from hidistill.objectives.combine import OnGenerated, OnNoised, OnSamples
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching

from . import Losses, Pair, load
from .fastgen import At

NEEDS = "pip install nvidia-modelopt pulp, or give --modelopt FOLDER where it was installed with --target"


class Ours(nn.Module):
    """One of our networks, called as a transformer of diffusers is, that keeps features where modelopt looks."""

    def __init__(self, module: nn.Module, *, tapped: bool = False) -> None:
        super().__init__()
        self.module = module
        self.is_student = hasattr(module, "mean_velocity")
        if tapped:
            self._fastgen_captured: list[Tensor] = []

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """The velocity, which modelopt calls flow."""
        at = {"t": timestep, "cond": encoder_hidden_states}
        if self.is_student:
            return self.module.mean_velocity(hidden_states, r=torch.zeros_like(timestep), **at)
        if not hasattr(self, "_fastgen_captured"):
            return self.module.velocity(hidden_states, **at)
        velocity, features = self.module.probe(hidden_states, **at)
        self._fastgen_captured.extend(features)
        return velocity


def pairs(roles: Roles, folder: Path | None) -> Sequence[Pair]:
    """The student's step with and without a discriminator; the critics', which are two calls there."""
    module = load("nvidia-modelopt", "modelopt.torch.fastgen", folder, NEEDS)
    return [pair for adversarial in (False, True) for pair in refine(module, roles, adversarial)]


def refine(module, roles: Roles, adversarial: bool) -> list[Pair]:  # noqa: ANN001 -- the peer's module
    """The student's step, and the critics': at pure noise, where its times may end at 1."""
    head = nn.Module()
    head.forward = lambda features: roles.head(features, t=t, cond=batch.cond)  # type: ignore[method-assign]
    batch, t, noise, null = roles.batch, roles.t, roles.noise, roles.teacher.null(roles.batch.cond)
    config = module.DMDConfig(
        pred_type="flow",
        fake_score_pred_type="flow",
        guidance_scale=1.5,
        gan_loss_weight_gen=1.0 if adversarial else 0.0,
        gan_use_same_t_noise=True,
        sample_t_cfg={"min_t": 0.0, "max_t": 1.0},
    )
    peer = module.DMDPipeline(
        Ours(roles.student),
        Ours(roles.teacher, tapped=adversarial),
        Ours(roles.fake),
        config,
        discriminator=head if adversarial else None,
    )
    peer.sample_timesteps = lambda n, **_: t[:n]
    judges = {"dmd": DMD(roles.fake)} | ({"gan": Fool(roles.head, Softplus())} if adversarial else {})

    def drawn() -> tuple[Tensor, Tensor]:
        """What it draws itself after the seed: the noise of the judged samples."""
        torch.manual_seed(1)
        return noise, torch.randn_like(batch.x)

    start, judged = drawn()
    noised = OnNoised(roles.guided, At(t), judges, 0.3 if adversarial else 0.0, noise=At(judged))
    moves = OnSamples(roles.student, {"judged": noised}, True, noise=At(start))

    def our_student() -> Losses:
        loss = moves(batch)
        return {"total": loss.value.mean()} | {name: loss.metrics[name] for name in judges}

    def their_student() -> Losses:
        torch.manual_seed(1)
        losses = peer.compute_student_loss(batch.x, start, batch.cond, negative_encoder_hidden_states=null)
        named = {"total": losses["total"], "dmd": losses["vsd"]}
        return named | ({"gan": losses["gan_gen"]} if adversarial else {})

    critics: dict = {"fake": OnGenerated(FlowMatching(roles.fake, At(t), noise=At(judged)))}
    if adversarial:
        critics["gan"] = TellApart(
            roles.teacher, roles.head, At(t), Softplus(), noise=At(torch.cat([judged, judged]))
        )  # fmt: skip
    learns = OnSamples(roles.student, critics, False, noise=At(start))

    def our_critics() -> Losses:
        loss = learns(batch)
        return {"total": loss.value.mean()} | {name: loss.metrics[name] for name in critics}

    def their_critics() -> Losses:
        torch.manual_seed(1)
        fake = peer.compute_fake_score_loss(batch.x, start, batch.cond)["total"]
        if not adversarial:
            return {"total": fake, "fake": fake}
        torch.manual_seed(1)
        gan = peer.compute_discriminator_loss(batch.x, start, batch.cond)["total"]
        return {"total": fake + gan, "fake": fake, "gan": gan}

    moved = [*roles.fake.parameters(), *(roles.head.parameters() if adversarial else ())]
    words = "with a discriminator" if adversarial else "without a discriminator"
    return [
        Pair(f"refine {words}: student", our_student, their_student, list(roles.student.parameters()), not adversarial),
        Pair(f"refine {words}: critics", our_critics, their_critics, moved),
    ]
