"""Clips from data to numbers, at the smallest size: cells share a teacher, a judge and the noise of their seed."""

import numpy as np
import pytest
import torch
from costs import cost_of
from PIL import Image

from hidistill.experiments.studies.video import STUDY
from hidistill.experiments.study import Results
from hidistill.experiments.video import Frames, Plan, cell, strips

PLAN = {
    "classes": 3,
    "frames": 3,
    "side": 12,
    "fastest": 2,
    "patch": 4,
    "tubelet": 3,
    "dim": 16,
    "depth": 2,
    "heads": 1,
}
PLAN |= {"teacher_steps": 12, "teacher_lr": 1e-3, "batch": 20, "judged": 30, "classifier_steps": 20}
HD = {"sketch": "meanflow", "sketch_steps": 3, "refine": "dmd+gan", "refine_steps": 2, "head": "adaptive"}


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """Runs a cell in a folder of its own below one for all."""
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("video")
    torch.set_num_threads(1)

    def measured(name, *, seed=0, **arguments):
        folder = out / "cells" / name / str(seed)
        folder.mkdir(parents=True)
        return cell(seed=seed, folder=folder, plan=PLAN, **arguments), folder

    return measured


def test_real_clips_of_other_digits_move_and_look_right(measure):
    numbers, _ = measure("real", real=True)
    assert numbers["motion error, 1"] < 1e-6
    assert numbers["appearance change, 1"] < 1e-6
    assert numbers["high frequency, 1"] == pytest.approx(1, abs=0.2)


def test_a_student_is_judged_in_one_and_two_steps_beside_its_teacher(measure):
    numbers, folder = measure("HD", **HD)
    teacher, _ = measure("teacher in one step", teacher_steps=1)
    assert numbers["diverged"] == 0
    assert {name for name in numbers if name.endswith(", 1")} == {*teacher, "end, 1"}
    shared = folder.parents[1]
    made = {path: path.stat().st_mtime_ns for path in shared.rglob("*.safetensors")}
    assert {path.parent.name for path in made} == {"teacher", "classifier", "ends-0"}
    again, _ = measure("HD again", **HD)
    assert again == numbers
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*.safetensors")} == made


def test_the_filmstrip_begins_with_real_clips(measure):
    _, folder = measure("strip", sketch="meanflow", sketch_steps=1)
    shown = np.asarray(Image.open(folder / "filmstrip.png"))[::3, ::3] / 255
    assert shown.shape == (6 * 14, 3 * (3 * 14) + 2 * 6)
    real = strips(Plan(**PLAN), "test", 6, seed=0)
    for clip in range(6):
        for frame in range(3):
            tile = shown[14 * clip + 1 : 14 * clip + 13, 14 * frame + 1 : 14 * frame + 13]
            np.testing.assert_allclose(tile, real[clip, frame], atol=1e-6)


def test_classes_that_are_not_there_are_refused():
    pytest.importorskip("sklearn")
    assert set(Plan(**PLAN).digits("test").labels.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="classes=11: there are digits of 2 to 10 classes"):
        Plan(**PLAN | {"classes": 11}).digits("test")


def test_frames_are_channels_for_those_who_know_pictures():
    pictures = torch.rand(2, 3, 4, 4)
    points = Frames().encode(pictures)
    assert points.shape == (2, 3, 1, 4, 4)
    assert points[1, 2, 0, 3, 0] == 2 * pictures[1, 2, 3, 0] - 1
    torch.testing.assert_close(Frames().decode(points), pictures)


def test_the_figure_shows_every_variant():
    grid = STUDY.grids["small"]
    keys = [column.key for column in STUDY.columns]
    numbers = {(v.name, s): dict.fromkeys(keys, 1.0 + s) for v in grid.variants for s in grid.seeds}
    picture = STUDY.figure(Results(STUDY, grid, numbers))
    assert "4 frames of 10 x 10 pixels" in picture.caption
    assert picture.png.startswith(b"\x89PNG")
    assert all(f"<!-- {variant.name} -->".encode() in picture.svg for variant in grid.variants)


@pytest.mark.parametrize("size", ["small", "full"])
def test_each_stage_alone_costs_what_both_do(size):
    variants = {variant.name: dict(variant.arguments) for variant in STUDY.grids[size].variants}
    plans = {tuple(sorted(arguments.pop("plan").items())) for arguments in variants.values()}
    assert len(plans) == 1
    Plan(**dict(next(iter(plans))))
    costs = [cost_of(variants[name]) for name in ("sketch alone", "refine alone", "HD")]
    assert max(costs) < 1.01 * min(costs)
