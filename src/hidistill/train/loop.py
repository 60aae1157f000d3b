"""The loop: the only place where parameters change."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hidistill.seeds import fold_in
from hidistill.train.stage import Stage, Update
from hidistill.types import Batch

Precision = str
"""'float32', or 'bfloat16' for autocast; losses, gradients and weights are float32 in both."""


class NonFinite(ArithmeticError):
    """A loss or a gradient that is not finite: names step, stage and objective."""


class StepReport(NamedTuple):
    """One finished step: its index within the stage, and its scalars by update."""

    step: int
    metrics: dict[str, float]


def autocast(precision: Precision, device: str) -> AbstractContextManager:
    """The autocast context of a precision.

    Raises:
        ValueError: if the precision is unknown.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision {precision!r} is unknown; use 'float32' or 'bfloat16'")
    return nullcontext() if precision == "float32" else torch.autocast(device, torch.bfloat16)


def quickest(device: str = "cpu") -> Precision:
    """The precision in which a device is quickest: bfloat16 where it has instructions for it.

    A CPU without them takes a hundred times as long in bfloat16 as in float32, which is why this is asked and not
    assumed. The answer depends on the machine alone, not on its load, so that a run taken up again keeps it.
    """
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    queries = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public ones
    return "bfloat16" if any(getattr(torch.cpu, query, bool)() for query in queries) else "float32"


def steps(
    stage: Stage, batch_at: Callable[[int], Batch], *, seed: int, start: int = 0, precision: Precision = "float32"
) -> Iterator[StepReport]:
    """Run a stage from step `start` on; yields after each step, when everything may be saved.

    Every update of every step draws from torch's default generator, seeded by (seed, stage, step, update): a run that
    goes on from a saved step is the run that was not interrupted.

    Raises:
        NonFinite: if a loss or gradient is not finite; nothing has moved in that update.
        RuntimeError: if a parameter that should move gets no gradient.
    """
    for update in stage.updates.values():
        for parameter in update.parameters():
            parameter.requires_grad_(False)
    for update in stage.updates.values():
        rest(update)
    followers = {name: followed(stage, update) for name, update in stage.updates.items()}
    if start == 0:
        for average in stage.averages.values():
            average.reset()
    for step in range(start, stage.steps):
        batch = replace(batch_at(step), step=step)
        metrics: dict[str, float] = {}
        for name, update in stage.updates.items():
            if (step + 1) % update.every:
                continue
            torch.manual_seed(fold_in(seed, stage.name, step, name))
            where = f"stage {stage.name!r}, step {step}, update {name!r}"
            scalars = descend(update, batch, step=step, where=where, precision=precision)
            metrics |= {f"{name}/{key}": value for key, value in scalars.items()}
            for average in followers[name]:
                stage.averages[average].update()
        yield StepReport(step, metrics)


def followed(stage: Stage, update: Update) -> list[str]:
    """The averages whose source this update moves."""
    moving = {id(parameter) for parameter in update.parameters()}
    return [
        name
        for name, average in stage.averages.items()
        if any(id(parameter) in moving for parameter in average.source.parameters())
    ]


def descend(update: Update, batch: Batch, *, step: int, where: str, precision: Precision) -> dict[str, float]:
    """One step of one optimizer, and the scalars of its objective."""
    parameters = update.parameters()
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with autocast(precision, batch.x.device.type):
            loss = update.objective(batch)
        value = loss.value.mean()
        if not math.isfinite(value.item()):
            rows = torch.nonzero(~loss.value.isfinite()).flatten().tolist()
            raise NonFinite(f"{where}: the loss of {type(update.objective).__name__} is {value.item()} (rows {rows})")
        value.backward()
        norms = clip(update, where)
        factor = update.schedule(step)
        for group in update.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        update.optimizer.step()
    finally:
        rest(update)
    return {"loss": value.item(), **norms} | {key: scalar.item() for key, scalar in loss.metrics.items()}


def rest(update: Update) -> None:
    """Let nothing that the update holds take part in another update's gradient."""
    update.optimizer.zero_grad(set_to_none=True)
    for parameter in update.parameters():
        parameter.requires_grad_(False)


def clip(update: Update, where: str) -> dict[str, float]:
    """Clip each parameter group's gradient to the update's norm.

    Returns:
        The largest norm before that as "gradient"; where groups have a "role", each one's as "gradient_ROLE".
    """
    norms: dict[str, float] = {"gradient": 0.0}
    for group in update.optimizer.param_groups:
        gradients: list[Tensor] = []
        for parameter in group["params"]:
            if parameter.grad is None:
                raise RuntimeError(f"{where}: a parameter of shape {tuple(parameter.shape)} got no gradient")
            gradients.append(parameter.grad)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm.item()):
            raise NonFinite(f"{where}: the gradient's norm is {norm.item()} though the loss is finite")
        torch.nn.utils.clip_grads_with_norm_(group["params"], update.max_norm, norm)
        norms["gradient"] = max(norms["gradient"], norm.item())
        if "role" in group:
            norms[f"gradient_{group['role']}"] = norm.item()
    return norms
