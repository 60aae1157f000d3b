"""Checkpoints that are damaged, foreign, or cannot be written."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import Field, build

from hidistill.train import checkpoint
from hidistill.train.checkpoint import (
    CheckpointError,
    DamagedCheckpoint,
    OutgrownCheckpoint,
    Position,
    load,
    newest_first,
    save,
)

WITHIN = Position(stage=1, step=3, global_step=15)


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "checkpoints", build(), WITHIN, recipe="r", keep=2)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["student-average.safetensors", "optimizer-fake.pt", "state.json"])
@pytest.mark.parametrize(
    ("damage", "words"), [(cut, "were written"), (flip, "sha256 differs"), (Path.unlink, "missing")]
)
def test_damaged_file_is_named(folder, name, damage, words):
    damage(folder / name)
    with pytest.raises(DamagedCheckpoint, match=words) as caught:
        load(folder, build(), recipe="r")
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("damage", [lambda path: path.write_text(path.read_text()[:90]), Path.unlink])
def test_damaged_manifest(folder, damage):
    damage(folder / "manifest.json")
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json"):
        load(folder, build(), recipe="r")


def test_checkpoint_of_another_recipe_or_seed(folder):
    with pytest.raises(CheckpointError, match=r"recipe is 'r' there and 'other' here"):
        load(folder, build(), recipe="other")
    with pytest.raises(CheckpointError, match=r"seed is 3 there and 4 here"):
        load(folder, build(seed=4), recipe="r")


def test_checkpoint_of_other_stages(folder):
    experiment = build()
    stages = [experiment.stages[0], replace(experiment.stages[1], name="polish")]
    with pytest.raises(CheckpointError, match=r"stages is \['sketch', 'refine'\] there and \['sketch', 'polish'\]"):
        load(folder, replace(experiment, stages=stages, products={}), recipe="r")


def test_checkpoint_of_other_roles(folder):
    experiment = build()
    with pytest.raises(CheckpointError, match=r"misses \['critic.safetensors'\]"):
        load(folder, replace(experiment, modules={**experiment.modules, "critic": Field()}), recipe="r")


def test_missing_and_unexpected_keys_are_named(folder):
    experiment = build()
    experiment.modules["fake"].register_buffer("scale", torch.ones(1))
    with pytest.raises(CheckpointError, match=r"fake\.safetensors does not fit a Field: it misses scale"):
        load(folder, experiment, recipe="r")
    experiment = build()
    experiment.modules["fake"].layers[0].register_parameter("bias", None)
    with pytest.raises(CheckpointError, match=r"has the unexpected layers\.0\.bias"):
        load(folder, experiment, recipe="r")
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight is \(16, 3\) there and \(8, 3\) here"):
        load(folder, build(width=8), recipe="r")


def test_optimizer_with_other_groups(folder):
    experiment = build()
    experiment.stages[1].updates["fake"].optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    with pytest.raises(CheckpointError, match="different number of parameter groups"):
        load(folder, experiment, recipe="r")


def test_stage_that_is_behind_cannot_change_its_length(folder):
    with pytest.raises(OutgrownCheckpoint, match="12 steps of stage 'sketch' behind it, which has 16 now"):
        load(folder, build(16), recipe="r")


def test_the_newest_are_kept_and_later_ones_go(tmp_path):
    experiment = build()

    def names(step, keep):
        save(tmp_path, experiment, Position(0, step, step), recipe="r", keep=keep)
        return [path.name for path in newest_first(tmp_path)]

    assert names(2, 2) == ["00000002"]
    assert names(4, 2) == ["00000004", "00000002"]
    assert names(6, 2) == ["00000006", "00000004"]
    assert names(5, 2) == ["00000005", "00000004"]
    assert names(5, 1) == ["00000005"]


def test_what_a_killed_process_left_is_tidied_up(folder):
    root = folder.parent
    (root / ".00000020.partial").mkdir()
    folder.rename(root / ".00000015.aside")
    checkpoint.recover(root)
    assert [path.name for path in root.iterdir()] == ["00000015"]
    assert load(folder, build(), recipe="r") == WITHIN


def test_no_space_left_keeps_the_checkpoint_before(folder):
    root, large = folder.parent, build(width=4000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(OSError, match=r"00000020 \([0-9,]+ bytes are needed.*large.*free some space") as caught:
            save(root, large, Position(1, 8, 20), recipe="r", keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    size = sum(value.nbytes for module in large.modules.values() for value in module.state_dict().values())
    assert f"{size + 4 * (6 * 4000 + 2):,} bytes" in str(caught.value)  # the average is one student more
    assert [path.name for path in root.iterdir()] == ["00000015"]
    assert load(folder, build(), recipe="r") == WITHIN


def test_full_disk_while_the_optimizer_is_written(folder):
    root, experiment = folder.parent, build(width=400)
    for parameter in experiment.modules["student"].parameters():
        parameter.grad = torch.ones_like(parameter)
    experiment.stages[1].updates["student"].optimizer.step()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))  # weights are 10 kB, Adam's moments twice that
    try:
        with pytest.raises(OSError, match=r"cannot write the checkpoint"):
            save(root, experiment, Position(1, 8, 20), recipe="r", keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in root.iterdir()] == ["00000015"]
