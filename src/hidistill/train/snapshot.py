"""The state of a run at a position, taken out of its networks so that it can be written while they go on."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hidistill.parted import is_parted
from hidistill.train.experiment import Experiment
from hidistill.train.stage import Stage
from hidistill.weights import state_of


@dataclass(frozen=True)
class Position:
    """How far a run is: `step` steps of stage `stage` are done, `global_step` steps over all stages."""

    stage: int = 0
    step: int = 0
    global_step: int = 0


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds.

    Args:
        position: of the run.
        state: what is no tensor.
        modules: whole tensors by role and key; empty where networks are held in parts.
        optimizers: their whole states, likewise.
        parts: what this process holds, by role and key, where networks are held in parts.
    """

    position: Position
    state: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    optimizers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """How much is to be written, about."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors."""
        yield from self.parts.values()
        for tensors in self.modules.values():
            yield from tensors.values()
        for optimizer in self.optimizers.values():
            for state in optimizer["state"].values():
                yield from (value for value in state.values() if isinstance(value, Tensor))


def take(
    experiment: Experiment, position: Position, *, recipe: str, score: Mapping[str, float] | None = None,
    copy: bool = False,
) -> Snapshot:  # fmt: skip
    """The state at a position.

    Args:
        experiment: whose state it is.
        position: where it is.
        recipe: name of the recipe.
        score: numbers of the newest short evaluation, if it is of this very state.
        copy: whether the networks may change before the snapshot is written.
    """
    stage = stage_at(experiment, position.stage)
    state = {
        "recipe": recipe,
        "seed": experiment.seed,
        "stages": [[each.name, each.steps] for each in experiment.stages],
        "stage": position.stage,
        "step": position.step,
        "global_step": position.global_step,
        "averages": {name: average.updates for name, average in stage.averages.items()},
    }
    watched = {name: update.spikes.state() for name, update in stage.updates.items() if update.spikes is not None}
    if watched:
        state["spikes"] = watched
    if score:
        state["score"] = dict(score)
    modules, optimizers = networks(experiment, stage), {name: each.optimizer for name, each in stage.updates.items()}
    if sharded(experiment):
        from hidistill.train.distributed.parts import groups_of, tensors_of

        parts = tensors_of(modules, optimizers)
        held = {name: value.detach().clone() if copy else value.detach() for name, value in parts.items()}
        return Snapshot(position, state | {"groups": groups_of(optimizers)}, parts=held)
    whole = {name: state_of(module) for name, module in modules.items()}
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    if copy:
        whole = {name: {key: value.clone() for key, value in tensors.items()} for name, tensors in whole.items()}
        states = deepcopy(states)
    return Snapshot(position, state, whole, states)


def sharded(experiment: Experiment) -> bool:
    """Whether this process holds networks of an experiment in parts."""
    return any(is_parted(each) for module in experiment.modules.values() for each in module.parameters())


def networks(experiment: Experiment, stage: Stage) -> dict[str, nn.Module]:
    """Everything with weights that a checkpoint within this stage holds, by file name."""
    averages = {f"{name}-average": average.module for name, average in stage.averages.items()}
    return dict(experiment.modules) | averages


def stage_at(experiment: Experiment, index: int) -> Stage:
    """The stage of an index; behind the last one an empty stage."""
    return experiment.stages[index] if index < len(experiment.stages) else Stage("end", {}, 0)
