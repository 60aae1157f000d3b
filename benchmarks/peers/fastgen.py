"""NVlabs/FastGen (arXiv 2505.13447 and 2405.14867): its MeanFlow with a guided teacher, and its DMD2."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from measuring.problems import SHARE, Roles
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hidistill.derivative import Forward
from hidistill.objectives.adversarial import Fool, Softplus, TellApart
from hidistill.objectives.combine import Handover, OnGenerated, OnNoised, OnSamples
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.objectives.meanflow import MeanFlow

from . import Losses, Pair, load

NEEDS = (
    "clone https://github.com/NVlabs/FastGen, give --fastgen CHECKOUT, and install what it imports: omegaconf, "
    "hydra-core, attrs, loguru, einops, boto3, ftfy, imageio, wandb, nvidia-ml-py"
)
LATEST = 0.999
"""Its largest time; a sample starts there."""


def pairs(roles: Roles, folder: Path | None) -> Sequence[Pair]:
    """The sketch's step, and both of refine, with and without a discriminator."""
    load("FastGen", "fastgen.methods", folder, NEEDS)
    found = [sketch(roles)]
    for adversarial in (False, True):
        found += refine(roles, adversarial)
        first, second = refine(roles, adversarial, Handover())
        words = "with a discriminator" if adversarial else "without a discriminator"
        found.append(replace(first, name=f"refine {words}: student, then critics on its draw", then=second))
    return found


def network(module: nn.Module):  # noqa: ANN201 -- a class of the peer's
    """Our network as one of FastGen's: it answers with the velocity, which FastGen calls flow."""
    from fastgen.networks.network import FastGenNetwork

    class Ours(FastGenNetwork):
        def __init__(self) -> None:
            super().__init__(net_pred_type="flow", schedule_type="rf")
            self.module = module
            self.is_student = hasattr(module, "mean_velocity")

        def forward(  # noqa: PLR0917 -- FastGen's signature
            self,
            x_t: Tensor,
            t: Tensor,
            condition: Tensor | None = None,
            r: Tensor | None = None,
            return_features_early: bool = False,
            feature_indices: set[int] | None = None,
            return_logvar: bool = False,
            fwd_pred_type: str | None = None,
        ) -> object:
            del return_logvar
            time = t.to(x_t.dtype)
            if return_features_early:
                return list(self.module.features(x_t, t=time, cond=condition))
            features: Sequence[Tensor] = ()
            if self.is_student:
                r = torch.zeros_like(time) if r is None else r.to(x_t.dtype)
                out = self.module.mean_velocity(x_t, t=time, r=r, cond=condition)
            elif feature_indices:
                out, features = self.module.probe(x_t, t=time, cond=condition)
            else:
                out = self.module.velocity(x_t, t=time, cond=condition)
            out = self.noise_scheduler.convert_model_output(x_t, out, t, "flow", fwd_pred_type or "flow")
            return [out, list(features)] if feature_indices else out

    return Ours()


def given(made):  # noqa: ANN001, ANN201 -- FastGen's lazy configuration of a call
    """A configuration that 'instantiates' what is made already."""
    from fastgen.utils import LazyCall

    return LazyCall(lambda: made)()


def configured(roles: Roles, **method: object) -> SimpleNamespace:
    """What its models read of their configuration: ours in the place of its networks, one precision, no averages.

    Its configuration classes import its callbacks, and these a tracker of experiments, which a step has no use for.
    """
    precisions = dict.fromkeys(("precision_amp", "precision_amp_infer", "precision_amp_enc", "precision_fsdp"))
    paths = {"pretrained_model_path": "", "pretrained_student_net_path": "", "load_student_weights": False}
    shared = {"device": roles.t.device.type, "input_shape": roles.batch.x.shape[1:], "use_ema": False}
    shared |= {"precision": "float32", "fsdp_meta_init": False, "add_teacher_to_fsdp_dict": False}
    shared |= {"enable_preprocessors": False, "guidance_scale": 1.5, "skip_layers": None}
    nets = {"net": given(network(roles.student)), "teacher": given(network(roles.teacher))}
    return SimpleNamespace(**(precisions | paths | shared | nets | method))


def sketch(roles: Roles) -> Pair:
    """MeanFlow along the guided teacher; a quarter of the rows with r < t."""
    from fastgen.methods import MeanFlowModel

    class OnThisDevice(MeanFlowModel):
        def _jvp(self, *args: object, **kwargs: object) -> Tensor:
            """Attention that has a forward derivative; FastGen chooses it on GPUs alone."""
            with sdpa_kernel(SDPBackend.MATH):
                return super()._jvp(*args, **kwargs)

    loss = SimpleNamespace(use_cd=True, loss_type="l2", norm_method="poly_1.0", norm_const=1e-2, tangent_warmup_steps=0)
    loss.use_jvp_finite_diff = False
    config = configured(roles, loss_config=loss, sample_t_cfg=None, sample_r_cfg=None, precision_amp_jvp=None)
    config.guidance_t_start, config.guidance_t_end = 0.0, 1.0
    model = frozen(OnThisDevice(config), roles)
    batch, null = roles.batch, roles.teacher.null(roles.batch.cond)
    objective = MeanFlow(roles.guided, roles.student, Forward(), instantaneous=SHARE)

    def ours() -> Losses:
        torch.manual_seed(1)
        noise = torch.randn_like(batch.x)
        return {"total": objective.at(batch, t=roles.t, r=roles.r, noise=noise, first=roles.rows).value.mean()}

    def theirs() -> Losses:
        torch.manual_seed(1)  # it draws the noise within
        loss = model._compute_mf_loss(batch.x, roles.t, roles.r, 0, condition=batch.cond, neg_condition=null)[0]
        return {"total": loss.mean()}

    return Pair("sketch, a quarter of the rows with r < t", ours, theirs, list(roles.student.parameters()))


def frozen(model: nn.Module, roles: Roles) -> nn.Module:
    """The model, whose networks want no gradient until a step moves them, as ours."""
    for role in (roles.teacher, roles.student, roles.fake, roles.head):
        role.requires_grad_(False)
    return model


class At:
    """A law of times, and of noise, that always draws the same."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def sample(self, like: Tensor) -> Tensor:
        """As many as there are rows."""
        return self.value[: len(like)]

    def __call__(self, like: Tensor) -> Tensor:
        """Noise."""
        return self.value[: len(like)]


def refine(roles: Roles, adversarial: bool, handover: Handover | None = None) -> list[Pair]:
    """The student's step and the critics', who take our draw from it if there is a handover."""
    from fastgen.methods import DMD2Model

    class Head(nn.Module):
        """Our discriminator, which FastGen gives features alone; it does not look at t and the condition."""

        def __init__(self) -> None:
            super().__init__()
            self.feature_indices = set(roles.teacher.taps)

        def forward(self, features: list[Tensor]) -> Tensor:
            return roles.head(features, t=roles.t, cond=roles.batch.cond)

    config = configured(
        roles,
        discriminator=given(Head()),
        gan_loss_weight_gen=1.0 if adversarial else 0.0,
        gan_use_same_t_noise=True,
        gan_r1_reg_weight=0.0,
        fake_score_pred_type=None,
        student_sample_steps=1,
    )
    model = frozen(DMD2Model(config), roles)
    model.fake_score = network(roles.fake)
    batch, t, null = roles.batch, roles.t, roles.teacher.null(roles.batch.cond)
    start, noise = torch.full_like(t, LATEST, dtype=torch.float64), roles.noise
    x_s = (1 - LATEST) * batch.x + LATEST * noise.flip(0)
    words = "with a discriminator" if adversarial else "without a discriminator"
    judges = {"dmd": DMD(roles.fake)} | ({"gan": Fool(roles.head, Softplus())} if adversarial else {})
    size, passed = (0.3, handover) if adversarial else (0.0, None)
    noised = OnNoised(roles.guided, At(t), judges, size, noise=At(noise), handover=passed)
    drawn = {"starts": (LATEST,), "noise": At(noise.flip(0)), "handover": handover}
    moves = OnSamples(roles.student, {"judged": noised}, True, **drawn)

    def our_student() -> Losses:
        loss = moves(batch)
        return {"total": loss.value.mean()} | {name: loss.metrics[name] for name in judges}

    def their_student() -> Losses:
        losses, _ = model._student_update_step(
            x_s, start, t.double(), noise, {"real": batch.x}, condition=batch.cond, neg_condition=null
        )
        named = {"total": losses["total_loss"], "dmd": losses["vsd_loss"]}
        return named | ({"gan": losses["gan_loss_gen"]} if adversarial else {})

    critics: dict = {"fake": OnGenerated(FlowMatching(roles.fake, At(t), noise=At(noise)))}
    if adversarial:
        both = At(torch.cat([noise, noise]))
        critics["gan"] = TellApart(roles.teacher, roles.head, At(t), Softplus(), noise=both)
    learns = OnSamples(roles.student, critics, False, **drawn)

    def our_critics() -> Losses:
        loss = learns(batch)
        return {"total": loss.value.mean()} | {name: loss.metrics[name] for name in critics}

    def their_critics() -> Losses:
        losses, _ = model._fake_score_discriminator_update_step(
            x_s, start, t.double(), noise, batch.x, condition=batch.cond
        )
        named = {"total": losses["total_loss"], "fake": losses["fake_score_loss"]}
        return named | ({"gan": losses["gan_loss_disc"]} if adversarial else {})

    moved = [*roles.fake.parameters(), *(roles.head.parameters() if adversarial else ())]
    return [
        Pair(f"refine {words}: student", our_student, their_student, list(roles.student.parameters()), not adversarial),
        Pair(f"refine {words}: critics", our_critics, their_critics, moved),
    ]
