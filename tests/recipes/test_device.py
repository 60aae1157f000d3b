"""A run's networks and batches go to one device: nothing of a step stays behind."""

import numpy as np
import pytest
import torch
from elsewhere import differentiated, updates
from PIL import Image

from hidistill import weights
from hidistill.recipes import images
from hidistill.recipes.judging import device_of
from hidistill.teachers.dit import DiT, Size
from hidistill.train.driver import execute


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8) + (120 if name == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def experiment(tmp_path, pictures):
    net = DiT(image_size=8, channels=3, classes=2, patch=2, size=Size(32, 2, 2), taps=(0, 1))
    weights.save(tmp_path / "teacher.safetensors", net, family="dit", config=net.config)
    return images.distill(
        images=pictures, teacher=tmp_path / "teacher.safetensors", sketch_steps=1, refine_steps=1, batch_size=8,
        evaluate_samples=12,
    )  # fmt: skip


def test_every_update_of_both_stages_runs_where_the_run_is(experiment):
    assert differentiated(experiment) == ["sketch, student", "refine, critics", "refine, student"]
    for stage in experiment.stages:
        assert all(device_of(average.module) == "meta" for average in stage.averages.values())


def test_a_network_that_stays_behind_is_refused(experiment):
    experiment.to("meta")
    experiment.frozen["teacher"].to_empty(device="cpu")
    _, sketch, batch = next(updates(experiment))
    with pytest.raises(RuntimeError, match="device"):
        sketch.objective(batch)


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(experiment, tmp_path):
    absent = next(
        name for name, there in (("cuda", torch.cuda.is_available()), ("xpu", torch.xpu.is_available())) if not there
    )
    with pytest.raises(ValueError, match=f"device='{absent}'.*hidistill doctor"):
        execute(experiment, tmp_path / "run", recipe="images.distill", arguments={}, device=absent)
    assert not (tmp_path / "run").exists()
