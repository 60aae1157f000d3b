"""The loop: the only place where parameters change."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hidistill.parted import whole
from hidistill.path import part_of
from hidistill.seeds import fold_in
from hidistill.share import Share, holding
from hidistill.train.distributed.ranks import named
from hidistill.train.distributed.work import Averaging, Tally, Work
from hidistill.train.stage import Stage, Update
from hidistill.types import Batch

Precision = str
"""'float32', or 'bfloat16' for autocast; losses, gradients and weights are float32 in both."""


WHOLE = Work()
"""One process that takes all rows of a batch at once."""


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
    stage: Stage,
    batch_at: Callable[[int], Batch],
    *,
    seed: int,
    start: int = 0,
    precision: Precision = "float32",
    work: Work = WHOLE,
) -> Iterator[StepReport]:
    """Run a stage from step `start` on; yields after each step, when everything may be saved.

    Every update of every step draws from torch's default generator, seeded by (seed, stage, step, update): a run that
    goes on from a saved step is the run that was not interrupted. Processes and passes draw what one alone would, and
    take their rows of it.

    Args:
        stage: what is run.
        batch_at: the batch of a step; where there are several processes, this one's rows of it.
        seed: from which each step's is derived.
        start: steps that are done.
        precision: see `autocast`.
        work: how batches are shared out.

    Raises:
        NonFinite: if a loss or gradient is not finite, in all processes; nothing has moved in that update.
        RuntimeError: if a parameter that should move gets no gradient.
    """
    for update in stage.updates.values():
        for parameter in update.parameters():
            parameter.requires_grad_(False)
    for update in stage.updates.values():
        rest(update)
    followers = {name: followed(stage, update) for name, update in stage.updates.items()}
    averaging = {name: work.averages(update.parameters()) for name, update in stage.updates.items()}
    if start == 0:
        for average in stage.averages.values():
            average.reset()
    for step in range(start, stage.steps):
        batch = replace(batch_at(step), step=step)
        metrics: dict[str, float] = {}
        for name, update in stage.updates.items():
            if (step + 1) % update.every:
                continue
            descent = Descent(
                update=update,
                where=f"stage {stage.name!r}, step {step}, update {name!r}",
                seed=fold_in(seed, stage.name, step, name),
                precision=precision,
                work=work,
            )
            scalars, moved = descent(batch, averaging[name])
            metrics |= {f"{name}/{key}": value for key, value in scalars.items()}
            for average in followers[name] if moved else ():
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


@dataclass(frozen=True, kw_only=True)
class Descent:
    """One step of one optimizer.

    Args:
        update: whose step it is.
        where: stage, step and update, for messages.
        seed: of all that is drawn.
        precision: see `autocast`.
        work: how the batch is shared out.
    """

    update: Update
    where: str
    seed: int
    precision: Precision
    work: Work

    def __call__(self, batch: Batch, averaging: Averaging) -> tuple[dict[str, float], bool]:
        """Take the step; the scalars of its objective, over all rows, and whether anything moved."""
        for parameter in self.update.parameters():
            parameter.requires_grad_(True)
        try:
            means = self.backward(batch, averaging)
            norms, spikes = self.clip(averaging), self.update.spikes
            moves = spikes is None or spikes.admits(norms, where=self.where)
            factor = self.update.schedule(batch.step)
            for group in self.update.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            if moves:
                self.update.optimizer.step()
        finally:
            rest(self.update)
        scalars = {"loss": means.pop("loss"), "gradient": max(norms.values())}
        roles = [group["role"] for group in self.update.optimizer.param_groups if "role" in group]
        scalars |= {f"gradient_{role}": norms[role] for role in roles}
        if spikes is not None:
            scalars["skipped"] = float(spikes.skipped)
        return scalars | means, moves

    def backward(self, batch: Batch, averaging: Averaging) -> dict[str, float]:
        """Add up the gradients of all passes; the means of the objective's scalars."""
        tally, passes = Tally(self.work), self.work.passes
        for number in range(passes):
            share, last = self.work.ranks.share(number, passes), number == passes - 1
            torch.manual_seed(self.seed)
            with holding(share):
                with autocast(self.precision, batch.x.device.type):
                    loss = self.update.objective(part_of(batch, Share(number, passes)))
                value = tally.add(share, loss.value, loss.metrics)
                if last:
                    tally.send()
                if self.work.ranks.count == 1 and tally.rows:
                    self.refuse(tally)
                with averaging.watching() if last else nullcontext():
                    value.backward()
        means, finite = tally.receive()
        if not finite:
            self.refuse(tally)
        return means

    def refuse(self, tally: Tally) -> None:
        """Stop for losses that are not finite, in all processes at once.

        Raises:
            NonFinite: always.
        """
        found = self.work.ranks.gather({"rows": tally.rows, "value": tally.value, "terms": tally.terms})
        guilty = [rank for rank, each in enumerate(found) if each["rows"]]
        rows = sorted(row for each in found for row in each["rows"])
        terms = sorted({term for rank in guilty for term in found[rank]["terms"]})
        words = [f"rows {rows}", *([f"of its terms {', '.join(terms)}"] if terms else [])]
        words += [f"in {named(guilty)} of {len(found)}"] if len(found) > 1 else []
        name, value = type(self.update.objective).__name__, found[guilty[0]]["value"]
        raise NonFinite(f"{self.where}: the loss of {name} is {value} ({', '.join(words)})")

    def clip(self, averaging: Averaging) -> dict[str, float]:
        """Finish the gradients, and clip each parameter group's to the update's norm.

        Returns:
            The norms before that, by the group's "role"; of one without, by its number, as "group 0".

        Raises:
            NonFinite: if a norm is not finite.
            RuntimeError: if a parameter has no gradient.
        """
        broken, lacking = averaging.finish(self.work.passes)
        if lacking:
            raise RuntimeError(f"{self.where}: a parameter got no gradient in {named(lacking)} of the run")
        norms: dict[str, float] = {}
        for number, group in enumerate(self.update.optimizer.param_groups):
            gradients: list[Tensor] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    raise RuntimeError(f"{self.where}: a parameter of shape {tuple(parameter.shape)} got no gradient")
                gradients.append(parameter.grad)
            norm = whole_norm(gradients)
            if not math.isfinite(norm.item()):
                culprits = f" (in {named(broken)} of {self.work.ranks.count})" if broken else ""
                raise NonFinite(
                    f"{self.where}: the gradient's norm is {norm.item()} though the loss is finite{culprits}"
                )
            torch.nn.utils.clip_grads_with_norm_(group["params"], self.update.max_norm, norm)
            role = group.get("role", f"group {number}")
            norms[role] = math.hypot(norms.get(role, 0.0), norm.item())
        return norms


def descend(
    update: Update, batch: Batch, *, where: str, seed: int, precision: Precision = "float32"
) -> dict[str, float]:
    """One step of one optimizer, in one process, and the scalars of its objective; see `Descent`."""
    descent = Descent(update=update, where=where, seed=seed, precision=precision, work=WHOLE)
    return descent(batch, WHOLE.averages(update.parameters()))[0]


def whole_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of gradients, of which this process may hold a part."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return whole(norm)


def rest(update: Update) -> None:
    """Let nothing that the update holds take part in another update's gradient."""
    update.optimizer.zero_grad(set_to_none=True)
    for parameter in update.parameters():
        parameter.requires_grad_(False)
