"""Checkpoints: one folder each, written whole or not at all, with a sum for every file."""

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hidistill.files import damage, facts, synchronize
from hidistill.train.experiment import Experiment
from hidistill.train.folder import OVER
from hidistill.train.stage import Stage
from hidistill.weights import WeightsError, load_into, state_of

MANIFEST = "manifest.json"
STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are not those that were written; an older one may do."""


class OutgrownCheckpoint(CheckpointError):
    """A checkpoint that lies beyond a stage whose number of steps was changed."""


@dataclass(frozen=True)
class Position:
    """How far a run is: `step` steps of stage `stage` are done, `global_step` steps over all stages."""

    stage: int = 0
    step: int = 0
    global_step: int = 0


def newest_first(root: Path) -> list[Path]:
    """The checkpoints in a folder, whether good or damaged."""
    return sorted(
        (path for path in root.glob("[0-9]*") if path.name.isdecimal()), key=lambda p: int(p.name), reverse=True
    )


def save(root: Path, experiment: Experiment, position: Position, *, recipe: str, keep: int) -> Path:
    """Write the state of a run at a position, then remove all but the `keep` newest checkpoints up to it.

    Checkpoints of later steps are removed too: the run went back behind them.

    Raises:
        OSError: if the disk is full or refuses; what was there before is intact.
    """
    target = root / f"{position.global_step:08d}"
    partial = root / f".{target.name}.partial"
    recover(root)
    partial.mkdir(parents=True)
    try:
        write(partial, experiment, position, recipe)
        exchange(partial, target)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors do not raise OSError
        needed = sum(tensor.nbytes for tensor in everything(experiment, position))
        raise OSError(
            f"cannot write the checkpoint {target} ({needed:,} bytes are needed, {shutil.disk_usage(root).free:,} are "
            f"free there): {error}. Earlier checkpoints are intact: free some space, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    found = newest_first(root)
    newer = [path for path in found if int(path.name) > position.global_step]
    for path in newer + found[len(newer) + keep :]:
        shutil.rmtree(path)
    return target


def write(folder: Path, experiment: Experiment, position: Position, recipe: str) -> None:
    """Write all files of a checkpoint and wait until they are on the disk."""
    stage = stage_at(experiment, position.stage)
    for name, module in networks(experiment, stage).items():
        save_file(state_of(module), folder / f"{name}.safetensors")
    for name, update in stage.updates.items():
        torch.save(update.optimizer.state_dict(), folder / f"optimizer-{name}.pt")
    state = {
        "recipe": recipe,
        "seed": experiment.seed,
        "stages": [[each.name, each.steps] for each in experiment.stages],
        "stage": position.stage,
        "step": position.step,
        "global_step": position.global_step,
        "averages": {name: average.updates for name, average in stage.averages.items()},
    }
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n")
    sums = {path.name: facts(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(sums, indent=2) + "\n")
    for path in (*folder.iterdir(), folder):
        synchronize(path)


def load(folder: Path, experiment: Experiment, *, recipe: str) -> Position:
    """Give an experiment the state in a checkpoint; nothing moves unless the files are those that were written.

    Raises:
        DamagedCheckpoint: if a file is missing, truncated or changed.
        OutgrownCheckpoint: if a stage that it has behind it has another number of steps now.
        CheckpointError: if it is of another experiment; names what differs.
    """
    verify(folder)
    state = json.loads((folder / STATE).read_text())
    position = Position(state["stage"], state["step"], state["global_step"])
    refuse_stranger(folder, state, experiment, recipe)
    stage = stage_at(experiment, position.stage)
    modules = networks(experiment, stage)
    files = {f"{name}.safetensors" for name in modules} | {f"optimizer-{name}.pt" for name in stage.updates}
    present = {path.name for path in folder.iterdir()} - {STATE, MANIFEST}
    if files != present:
        raise CheckpointError(
            f"{folder} is of another experiment: it misses {sorted(files - present)} and has the unexpected "
            f"{sorted(present - files)}; use another --out"
        )
    try:
        for name, module in modules.items():
            load_into(module, load_file(folder / f"{name}.safetensors"), source=str(folder / f"{name}.safetensors"))
        for name, update in stage.updates.items():
            file = folder / f"optimizer-{name}.pt"
            update.optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (WeightsError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"checkpoint {folder} is of another experiment: {error}; use another --out") from error
    for name, average in stage.averages.items():
        average.updates = state["averages"][name]
    return position


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        DamagedCheckpoint: naming the first file that is not what was written.
    """
    try:
        sums = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{folder / MANIFEST} is missing or cut off ({error})") from error
    for name, expected in sums.items():
        if found := damage(folder / name, expected):
            raise DamagedCheckpoint(found)


def refuse_stranger(folder: Path, state: Mapping[str, Any], experiment: Experiment, recipe: str) -> None:
    """Refuse a checkpoint of another recipe, seed or sequence of stages."""
    names = [stage.name for stage in experiment.stages]
    ours = {"recipe": recipe, "seed": experiment.seed, "stages": names}
    theirs = {"recipe": state["recipe"], "seed": state["seed"], "stages": [name for name, _ in state["stages"]]}
    differing = [f"{key} is {theirs[key]!r} there and {ours[key]!r} here" for key in ours if ours[key] != theirs[key]]
    if differing:
        raise CheckpointError(f"checkpoint {folder} is of another run: {'; '.join(differing)}; use another --out")
    for index, stage in enumerate(experiment.stages[: state["stage"] + 1]):
        over = index < state["stage"]
        done = state["stages"][index][1] if over else state["step"]
        if done > stage.steps or (over and done != stage.steps):
            allowed = f"{OVER}: give it {done} steps again" if over else f"Give it at least {done} steps"
            raise OutgrownCheckpoint(
                f"checkpoint {folder} has {done} steps of stage {stage.name!r} behind it, which has {stage.steps} now. "
                f"{allowed}, or use another --out to start anew"
            )


def networks(experiment: Experiment, stage: Stage) -> dict[str, nn.Module]:
    """Everything with weights that a checkpoint within this stage holds, by file name."""
    averages = {f"{name}-average": average.module for name, average in stage.averages.items()}
    return dict(experiment.modules) | averages


def everything(experiment: Experiment, position: Position) -> Iterator[Tensor]:
    """All tensors of a checkpoint."""
    stage = stage_at(experiment, position.stage)
    for module in networks(experiment, stage).values():
        yield from module.state_dict().values()
    for update in stage.updates.values():
        for state in update.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def stage_at(experiment: Experiment, index: int) -> Stage:
    """The stage of an index; behind the last one an empty stage."""
    return experiment.stages[index] if index < len(experiment.stages) else Stage("end", {}, 0)


def exchange(partial: Path, target: Path) -> None:
    """Put a finished folder in its place; one that is there already steps aside until the new one stands."""
    aside = target.with_name(f".{target.name}.aside")
    if target.exists():
        target.rename(aside)
    partial.rename(target)
    synchronize(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def recover(root: Path) -> None:
    """Tidy up after a process that was killed while it wrote."""
    for aside in root.glob(".*.aside"):
        target = aside.with_name(aside.name.removeprefix(".").removesuffix(".aside"))
        if target.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(target)
    for partial in root.glob(".*.partial"):
        shutil.rmtree(partial)
