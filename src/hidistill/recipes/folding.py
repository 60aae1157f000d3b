"""Students at t = 1, r = 0, where nothing depends on a time: out of files, shown inputs, in stock architectures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidistill import weights
from hidistill.export import plain
from hidistill.export.dit import stock_dit
from hidistill.export.fold import OneStep
from hidistill.foreign.folder import build
from hidistill.recipes.teachers import family_of
from hidistill.sampling import jump
from hidistill.teachers import diffusers_dit
from hidistill.teachers.dit import DiT, FlowMapDiT
from hidistill.types import Cond, Points

TOKENS = 16
"""Length of the prompts that a traced network is shown; files take any."""
REST = 0.01
"""Largest share of the noise by which an exported DiT of ours may differ: a gray value of 1.3 in 255."""


class Jump(nn.Module):
    """One step of a student, as a module.

    Args:
        student: the flow map.
    """

    def __init__(self, student: FlowMapDiT) -> None:
        super().__init__()
        self.student = student

    def forward(self, noise: Points, cond: Cond) -> Points:
        """Samples from noise."""
        return jump(self.student, noise, cond=cond)


@torch.no_grad()
def embedding(student: FlowMapDiT) -> Tensor:
    """(dim,), what t = 1 and r = 0 add to the condition."""
    one = torch.ones(1)
    return (student.net.time(one) + student.interval(one)).squeeze(0)


@torch.no_grad()
def hold(student: FlowMapDiT) -> None:
    """Make the embeddings of time and interval constant: what they are at t = 1, r = 0."""
    value = embedding(student)
    for part in (student.net.time, student.interval):
        part.layers[2].weight.zero_()  # type: ignore[union-attr,operator]
        part.layers[2].bias.zero_()  # type: ignore[union-attr,operator]
    student.net.time.layers[2].bias.copy_(value)  # type: ignore[union-attr,operator]


@torch.no_grad()
def folded_dit(student: FlowMapDiT) -> tuple[OneStep, float]:
    """A student of our DiT in diffusers' architecture, and the largest share of the noise that is lost by it.

    At t = 1, r = 0 it is `x_0 = -gain(c) z - s F(z)`. The gain is one number there, its mean over the classes.

    Raises:
        ValueError: if that is too far from the student, or the network has parts that diffusers' has not.
    """
    time, net = embedding(student), student.net
    gains = student.gain(F.silu(time + net.label.weight)).squeeze(1)
    noise = max(0.0, -float(gains.mean()))
    rest = float((gains + noise).abs().max())
    folded = stock_dit(net.config, net.state_dict(), time=time)
    if rest > REST:
        raise ValueError(
            f"how much of the noise passes through this student differs by up to {rest:.2g} between its classes "
            f"({', '.join(f'{-gain:.3f}' for gain in gains[:10].tolist())}), which diffusers' DiT cannot express, and "
            f"more than {REST} shows: export to onnx or safetensors, or port the teacher first (hidistill train "
            "pipelines.port) and distill that"
        )
    return OneStep(folded, diffusers_dit.FAMILY, noise=noise, answer=-net.data_std, scale=1.0, time=1.0), rest


def formula(student: OneStep) -> str:
    """The step in letters."""
    given = "z" if student.scale == 1 else f"{student.scale:g} z"
    return f"{student.noise:.6g} z {'+' if student.answer >= 0 else '-'} {abs(student.answer):.6g} F({given})"


def example_of(student: OneStep, shape: tuple[int, ...], rows: int = 3) -> dict[str, Tensor]:
    """Inputs of the right shapes, random."""
    generator = torch.Generator().manual_seed(0)
    net = student.net
    noise = torch.randn(rows, *shape, generator=generator)
    if not student.family.texts:
        return {"noise": noise, "label": torch.arange(rows) % max(1, student.family.classes(net))}
    config: Mapping[str, Any] = net.config  # type: ignore[assignment]
    text = next(
        config[key] for key in ("caption_channels", "joint_attention_dim", "cross_attention_dim") if config.get(key)
    )
    given = {"noise": noise, "text": torch.randn(rows, TOKENS, text, generator=generator)}
    if "mask" in student.family.texts:
        given["mask"] = torch.ones(rows, TOKENS, dtype=torch.long)
    if "pooled" in student.family.texts:
        # Stable Diffusion XL embeds six numbers beside its pooled text.
        pooled = config.get("pooled_projection_dim") or (
            config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        )
        given["pooled"] = torch.randn(rows, pooled, generator=generator)
    return given


def read_one_step(path: Path) -> Callable[[Points, Cond], Points]:
    """The generator in a file that `--to safetensors` wrote: samples from noise and conditions.

    Raises:
        WeightsError: if the file holds something else.
    """
    stored = weights.read(path)
    config = stored.config
    if stored.family == plain.OURS:
        student = FlowMapDiT(DiT.from_config(dict(config)))
        weights.load_into(student, stored.tensors, source=str(path))
        return Jump(student.eval().requires_grad_(False))
    if stored.family != plain.ONE_STEP:
        known = f"{plain.ONE_STEP!r} or {plain.OURS!r}"
        raise weights.WeightsError(
            f"{path} holds a {stored.family!r}; a {known} is needed, which hidistill export --to safetensors writes"
        )
    net = build(config["network"], where=str(path)).to(next(iter(stored.tensors.values())).dtype)
    weights.load_into(net, stored.tensors, source=str(path))
    family = family_of(config["network"], where=str(path), embedded=config.get("embedded"))
    numbers = {key: float(config[key]) for key in ("noise", "answer", "scale", "time")}
    return OneStep(net.eval().requires_grad_(False), family, **numbers)
