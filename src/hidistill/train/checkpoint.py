"""Checkpoints: one folder each, written whole or not at all, with a sum for every file."""

import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hidistill.files import damage, facts, synchronize
from hidistill.train.distributed.ranks import ALONE, LostRank, Ranks
from hidistill.train.experiment import Experiment
from hidistill.train.folder import OVER
from hidistill.train.snapshot import Position, Snapshot, networks, sharded, stage_at, take
from hidistill.train.stage import Stage
from hidistill.weights import WeightsError, load_into

MANIFEST = "manifest.json"
STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are not those that were written; an older one may do."""


class OutgrownCheckpoint(CheckpointError):
    """A checkpoint that lies beyond a stage whose number of steps was changed."""


@dataclass(frozen=True)
class Best:
    """Which checkpoint is the best.

    Args:
        metric: a number of the short evaluations.
        largest: whether more is better.
    """

    metric: str
    largest: bool = False

    def of(self, folders: list[Path]) -> Path | None:
        """The best of some checkpoints; None if none was evaluated."""
        scores = {}
        for folder in folders:
            score = json.loads((folder / STATE).read_text()).get("score", {}) if (folder / STATE).exists() else {}
            if self.metric in score:
                scores[folder] = score[self.metric]
        return (max if self.largest else min)(scores, key=lambda folder: scores[folder]) if scores else None


def newest_first(root: Path) -> list[Path]:
    """The checkpoints in a folder, whether good or damaged."""
    return sorted(
        (path for path in root.glob("[0-9]*") if path.name.isdecimal()), key=lambda p: int(p.name), reverse=True
    )


def save(
    root: Path, experiment: Experiment, position: Position, *, recipe: str, keep: int, ranks: Ranks = ALONE
) -> Path:
    """Write the state of a run at a position; see `store`."""
    return store(root, take(experiment, position, recipe=recipe), keep=keep, ranks=ranks)


def store(root: Path, snapshot: Snapshot, *, keep: int, best: Best | None = None, ranks: Ranks = ALONE) -> Path:
    """Write a snapshot, then remove all but the `keep` newest checkpoints up to it, and the best one.

    Checkpoints of later steps are removed too: the run went back behind them.

    Args:
        root: folder of the checkpoints.
        snapshot: what is written.
        keep: number of checkpoints that stay.
        best: which further one stays.
        ranks: the processes, each of which comes here with what it holds; where that is everything, the first alone.

    Raises:
        OSError: if the disk is full or refuses; what was there before is intact.
    """
    position = snapshot.position
    target = root / f"{position.global_step:08d}"
    partial = root / f".{target.name}.partial"

    def begin() -> None:
        recover(root)
        partial.mkdir(parents=True)

    def complete() -> None:
        write(partial, snapshot, sums)
        exchange(partial, target)

    sums: dict[str, Any] = {}
    try:
        ranks.from_first("begin to save", begin)
        if snapshot.parts:
            sums = write_parts(partial, snapshot, ranks)
        ranks.from_first("save", complete)
        if ranks.first:
            prune(root, position, keep, best)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors do not raise OSError
        if not ranks.first or isinstance(error, LostRank):
            raise
        raise OSError(
            f"cannot write the checkpoint {target} ({snapshot.bytes:,} bytes are needed, {free(root):,} are "
            f"free there): {error}. Earlier checkpoints are intact: free some space, then run the same command again"
        ) from error
    finally:
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def free(root: Path) -> int:
    """Bytes that are free in a folder, which may not be there."""
    return shutil.disk_usage(root if root.exists() else root.parent).free


def write(folder: Path, snapshot: Snapshot, sums: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint that the first process writes, and wait until they are on the disk."""
    for name, tensors in snapshot.modules.items():
        save_file(dict(tensors), folder / f"{name}.safetensors")
    for name, state in snapshot.optimizers.items():
        torch.save(state, folder / f"optimizer-{name}.pt")
    (folder / STATE).write_text(json.dumps(snapshot.state, indent=2) + "\n")
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    found = {path.name: facts(path) for path in files} | dict(sums)
    (folder / MANIFEST).write_text(json.dumps(found, indent=2) + "\n")
    for path in (*folder.iterdir(), folder):
        synchronize(path)


def write_parts(partial: Path, snapshot: Snapshot, ranks: Ranks) -> dict[str, Any]:
    """Write what each process holds; size and sum of every file."""
    from hidistill.train.distributed import parts

    folder = partial / parts.PARTS
    parts.write(folder, snapshot.parts, ranks.group)
    own = {}
    for path in sorted(folder.glob(f"shard-{ranks.rank + 1:05d}-*")):
        synchronize(path)
        own[f"{parts.PARTS}/{path.name}"] = facts(path)
    return {name: found for each in ranks.gather(own) for name, found in each.items()}


def prune(root: Path, position: Position, keep: int, best: Best | None) -> None:
    """Remove what is no longer kept."""
    found = newest_first(root)
    newer = [path for path in found if int(path.name) > position.global_step]
    older = found[len(newer) :]
    kept = best.of(older) if best is not None else None
    for path in (*newer, *older[keep:]):
        if path != kept:
            shutil.rmtree(path)


def load(folder: Path, experiment: Experiment, *, recipe: str, ranks: Ranks = ALONE) -> Position:
    """Give an experiment the state in a checkpoint; nothing moves unless the files are those that were written.

    Whether networks are held in parts, and by how many processes, may differ between then and now.

    Raises:
        DamagedCheckpoint: if a file is missing, truncated or changed.
        OutgrownCheckpoint: if a stage that it has behind it has another number of steps now.
        CheckpointError: if it is of another experiment; names what differs.
    """
    if found := ranks.from_first("verify", lambda: damaged(folder)):
        raise DamagedCheckpoint(found)
    state = json.loads((folder / STATE).read_text())
    position = Position(state["stage"], state["step"], state["global_step"])
    refuse_stranger(folder, state, experiment, recipe)
    stage = stage_at(experiment, position.stage)
    in_parts = "groups" in state
    refuse_other_files(folder, networks(experiment, stage), stage, in_parts=in_parts)
    try:
        (load_parts if in_parts else load_whole)(folder, experiment, stage, state)
    except (WeightsError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"checkpoint {folder} is of another experiment: {error}; use another --out") from error
    for name, average in stage.averages.items():
        average.updates = state["averages"][name]
    for name, update in stage.updates.items():
        if update.spikes is not None and name in state.get("spikes", {}):
            update.spikes.load(state["spikes"][name])
    return position


def load_whole(folder: Path, experiment: Experiment, stage: Stage, state: Mapping[str, Any]) -> None:
    """Load what one process has written."""
    del state
    for name, module in networks(experiment, stage).items():
        load_into(module, load_file(folder / f"{name}.safetensors"), source=str(folder / f"{name}.safetensors"))
    for name, update in stage.updates.items():
        file = folder / f"optimizer-{name}.pt"
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        if sharded(experiment):
            from hidistill.train.distributed.parts import parted_state

            loaded = parted_state(update.optimizer, loaded)
        update.optimizer.load_state_dict(loaded)


def load_parts(folder: Path, experiment: Experiment, stage: Stage, state: Mapping[str, Any]) -> None:
    """Load what several processes have written."""
    from hidistill.train.distributed import parts

    place = folder / parts.PARTS
    for name, module in networks(experiment, stage).items():
        parts.load_module(place, name, module)
    for name, update in stage.updates.items():
        parts.load_optimizer(place, name, update.optimizer, state["groups"][name])


def refuse_other_files(folder: Path, modules: Mapping[str, nn.Module], stage: Stage, *, in_parts: bool) -> None:
    """Refuse a checkpoint of other roles."""
    if in_parts:
        from hidistill.train.distributed import parts

        names = {name.partition("/")[0] for name in parts.shapes(folder / parts.PARTS)}
        present = {name for name in names if not name.startswith("optimizer-")}
        files = set(modules)
    else:
        files = {f"{name}.safetensors" for name in modules} | {f"optimizer-{name}.pt" for name in stage.updates}
        present = {path.name for path in folder.iterdir()} - {STATE, MANIFEST}
    if files != present:
        raise CheckpointError(
            f"{folder} is of another experiment: it misses {sorted(files - present)} and has the unexpected "
            f"{sorted(present - files)}; use another --out"
        )


def damaged(folder: Path) -> str:
    """In words the first file that is not what was written; empty if all are."""
    try:
        sums = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{folder / MANIFEST} is missing or cut off ({error})"
    return next((found for name, expected in sums.items() if (found := damage(folder / name, expected))), "")


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
