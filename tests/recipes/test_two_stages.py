"""Every image recipe takes steps at a tiny size, stops, goes on, and ends with the weights of an undisturbed run."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from hidistill import weights
from hidistill.data.fashion import CLASSES as FASHION
from hidistill.guidance import Guided
from hidistill.metrics.classifier import Classifier, save_classifier
from hidistill.recipes import digits, fashion, images
from hidistill.recipes.judging import read_teacher
from hidistill.recipes.two_stages import Plan, check_derivative, distillation
from hidistill.teachers.dit import DiT, Size
from hidistill.train.driver import execute
from hidistill.types import Batch

PLAN: dict[str, Any] = {
    "sketch_steps": 1,
    "refine_steps": 1,
    "batch_size": 8,
    "guidance": 1.5,
    "discriminator": "adaptive",
    "derivative": "forward",
    "trajectory_weight": 0.02,
    "evaluate_samples": 50,
    "seed": 0,
}


def tiny_teacher(path, *, size, channels, classes, patch):
    net = DiT(image_size=size, channels=channels, classes=classes, patch=patch, size=Size(32, 2, 2), taps=(0, 1))
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    weights.save(path, net, family="dit", config=net.config)
    return path


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8) + (120 if name == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def fashion_run(tmp_path, pictures):
    del pictures
    path = tiny_teacher(tmp_path / "fashion.safetensors", size=28, channels=1, classes=10, patch=7)
    return fashion.distill, {"teacher_weights": path, "batch_size": 8, "evaluate_samples": 20}


def digits_run(tmp_path, pictures):
    del pictures
    path = tiny_teacher(tmp_path / "digits.safetensors", size=8, channels=1, classes=10, patch=2)
    return digits.smoke, {"teacher": path, "evaluate_samples": 20}


def images_run(tmp_path, pictures):
    path = tiny_teacher(tmp_path / "images.safetensors", size=8, channels=3, classes=2, patch=2)
    return images.distill, {"images": pictures, "teacher": path, "batch_size": 8, "evaluate_samples": 12}


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("made", "classes"),
    [
        (fashion_run, FASHION),
        pytest.param(digits_run, tuple("0123456789"), marks=pytest.mark.slow),
        pytest.param(images_run, ("dark", "light"), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_stops_in_either_stage_is_the_run_that_did_not(made, classes, tmp_path, pictures):
    recipe, arguments = made(tmp_path, pictures)
    arguments = {**arguments, "sketch_steps": 3, "refine_steps": 4}

    def go(folder, stop_at=None, **without):
        def on_event(event):
            if event.kind == "step" and event.global_step == stop_at:
                raise Stop

        execute(
            replace(recipe(**arguments), probe=None, **without),
            folder,
            recipe=recipe.__name__,
            arguments={name: str(value) for name, value in arguments.items()},
            checkpoint_every=1,
            on_event=on_event,
        )

    go(tmp_path / "whole", finish=None)
    for stop_at in (2, 3, 6):
        with pytest.raises(Stop):
            go(tmp_path / "parts", stop_at)
    go(tmp_path / "parts")
    for name in ("sketch", "student"):
        first, second = (load_file(tmp_path / run / "models" / f"{name}.safetensors") for run in ("whole", "parts"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert weights.read(tmp_path / "whole" / "models" / f"{name}.safetensors").classes == classes
    rows = json.loads((tmp_path / "parts" / "evaluation.json").read_text())["rows"]
    assert {"student, 1 step", "sketch, 1 step", "real training images"} <= {row["name"] for row in rows}
    assert (tmp_path / "parts" / "report.html").stat().st_size > 10_000


class Wave(nn.Module):
    """A flow map that swings along t, and may see its times rounded."""

    def __init__(self, speed, kind=torch.float32):
        super().__init__()
        self.speed, self.kind = speed, kind

    def mean_velocity(self, x_t, *, t, r, cond):
        seen = t.to(self.kind).to(t.dtype)
        return x_t * (1 + (self.speed * seen).sin() / self.speed).reshape(-1, 1, 1, 1)


def test_a_run_starts_with_a_rough_student_and_not_with_a_wrong_derivative():
    """Where 1e-3 is too long for a difference, a shorter one tells a rough student from one that rounds its times."""
    net = DiT(image_size=8, channels=1, classes=2, patch=4, size=Size(32, 2, 2)).requires_grad_(False)
    batch = Batch(0.1 * torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]), 0)
    guided = Guided(net, scale=1.0)
    check_derivative(Wave(3e3), guided, batch)
    for step in (1e-3, 1e-4):
        with pytest.raises(RuntimeError, match="times that are rounded to bfloat16"):
            check_derivative(Wave(10.0, torch.bfloat16), guided, batch, step=step)


@pytest.mark.parametrize(
    ("change", "kept"),
    [({}, True), ({"trajectory_weight": 0.0}, False), ({"sketch_steps": 0}, False)],
    ids=["usual", "left out", "no sketch"],
)
def test_refine_keeps_the_sketchs_loss_where_there_is_one(change, kept, tmp_path, pictures):
    recipe, arguments = fashion_run(tmp_path, pictures)
    arguments = {**arguments, "sketch_steps": 1, "refine_steps": 2, **change}
    experiment = replace(recipe(**arguments), probe=None, finish=None)
    execute(experiment, tmp_path / "run", recipe="fashion.distill", arguments={})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["stage"] == "refine" and "student/judged" in line]
    assert ("student/trajectory" in last) == kept
    assert np.isfinite(last["student/loss"])


def test_the_kept_loss_does_not_warm_up_again(tmp_path):
    """Refine counts its steps from 0, which a warm-up of the sketch would take for its own beginning."""
    net = read_teacher(tiny_teacher(tmp_path / "digits.safetensors", size=8, channels=1, classes=10, patch=2))
    plan = Plan(**PLAN, sketch={"warmup_steps": 5})
    batch_at = images.batches(digits.digits("train"), batch_size=8, seed=0)
    first, second = distillation(net, plan, batch_at=batch_at, judges=digits.digits_jury()).stages
    assert first.updates["student"].objective.warmup_steps == 5
    assert second.updates["student"].objective.terms["trajectory"].warmup_steps == 0


@pytest.mark.parametrize(
    ("matching", "head", "judged"),
    [
        ("dmd", "adaptive", {"dmd", "gan"}),
        ("dmd2", "adaptive", {"dmd", "gan"}),
        ("gan", "per_token", {"gan"}),
        ("energy", "none", {"dmd", "align"}),
        ("energy_tokens", "none", {"dmd", "align"}),
        ("sliced", "none", {"dmd", "align"}),
        ("moments", "none", {"dmd", "align"}),
        ("drift", "none", {"dmd", "align"}),
    ],
)
def test_refine_matches_by_what_was_asked_for(matching, head, judged, tmp_path, pictures):
    """The journal shows its losses; the student moves, the teacher does not; a fake score is there for DMD alone."""
    recipe, arguments = fashion_run(tmp_path, pictures)
    arguments = {**arguments, "sketch_steps": 0, "refine_steps": 2, "matching": matching, "discriminator": head}
    experiment = replace(recipe(**arguments), finish=None)
    student, teacher = experiment.modules["student"], experiment.frozen["teacher"]
    before, kept = deepcopy(student.state_dict()), deepcopy(teacher.state_dict())
    fake = experiment.modules.get("fake")
    execute(experiment, tmp_path / "run", recipe="fashion.distill", arguments={})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if "student/loss" in line]
    assert {name for name in ("dmd", "gan", "align") if f"student/{name}" in last} == judged
    assert np.isfinite(last["student/loss"])
    assert (fake is not None) == ("dmd" in judged)
    assert any(not torch.equal(before[key], value) for key, value in student.state_dict().items())
    assert all(torch.equal(kept[key], value) for key, value in teacher.state_dict().items())
    assert any("entropy" in name for line in lines for name in line) == (head == "adaptive")


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_queries_begin_as_large_as_was_asked_for(std, tmp_path, pictures):
    recipe, arguments = fashion_run(tmp_path, pictures)
    head = recipe(**arguments, query_std=std).modules["discriminator"]
    queries = torch.cat([layer.queries.flatten() for layer in head.heads])
    assert queries.std().item() == pytest.approx(std, rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matching": "gan", "discriminator": "none"}, "it is a game of a discriminator; give one"),
        ({"matching": "dmd2", "discriminator": "none"}, "it is a game of a discriminator; give one"),
        ({"matching": "sliced"}, "give discriminator='none' with it"),
        ({"guidance": -1.0}, "guidance=-1.0"),
        ({"guidance": 50.0}, "guidance=50.0"),
        ({"query_std": 1.0, "discriminator": "pooled"}, "queries are the adaptive head"),
        ({"query_std": -1.0}, "query_std=-1.0"),
        ({"sketch_steps": -1}, "sketch_steps=-1"),
        ({"sketch_steps": 0, "refine_steps": 0}, "one must be positive"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"evaluate_samples": 0}, "evaluate_samples=0"),
        ({"trajectory_weight": -0.1}, "trajectory_weight=-0.1"),
        ({"trajectory_weight": float("nan")}, "trajectory_weight=nan"),
    ],
)
def test_a_plan_refuses_what_cannot_be_run(change, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{**PLAN, **change})


def test_pictures_of_another_kind_than_the_teachers_are_refused(tmp_path, pictures):
    path = tiny_teacher(tmp_path / "gray.safetensors", size=8, channels=1, classes=2, patch=2)
    with pytest.raises(ValueError, match="holds pictures of 3 channels in 2 classes; this teacher knows 1"):
        images.distill(images=pictures, teacher=path)


def test_a_teacher_knows_the_names_of_its_classes(pictures):
    experiment = images.teacher(images=pictures, steps=1, model="mini")
    assert {product.classes for product in experiment.products.values()} == {("dark", "light")}


def test_a_class_of_few_pictures_is_named(pictures):
    for path in sorted((pictures / "light").iterdir())[3:]:
        path.unlink()
    notes = " ".join(images.teacher(images=pictures, steps=1, model="mini").notes)
    assert "few training pictures of light (" in notes
    assert "dark" not in notes.split("few training pictures")[1].split(":")[0]


def test_a_patch_that_does_not_divide_the_image_is_refused(pictures):
    with pytest.raises(ValueError, match="patch 3 does not divide images of 8 pixels; use one of"):
        images.teacher(images=pictures, patch=3)


def test_a_folder_without_classes_can_be_learned(tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "flat").mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(0, 255, (10, 12), dtype=np.uint8)).save(tmp_path / "flat" / f"{i}.png")
    experiment = images.teacher(images=tmp_path / "flat", steps=2, model="mini")
    net = experiment.modules["teacher"]
    assert (net.classes, net.channels, net.grid * net.patch) == (0, 1, 8)
    assert experiment.batch_at(0).cond.max() == 0


def test_too_few_images_to_judge_are_refused_before_the_first_step(tmp_path, pictures):
    path = tiny_teacher(tmp_path / "fashion.safetensors", size=28, channels=1, classes=10, patch=7)
    with pytest.raises(ValueError, match="a table of 10 classes needs at least 20"):
        fashion.distill(teacher_weights=path, evaluate_samples=19)
    path = tiny_teacher(tmp_path / "images.safetensors", size=8, channels=3, classes=2, patch=2)
    with pytest.raises(ValueError, match="of 12 test images: a table of 2 classes needs at least 10"):
        images.distill(images=pictures, teacher=path, evaluate_samples=9)


def test_more_images_to_judge_than_there_are_real_ones_are_refused_or_told(tmp_path, pictures):
    path = tiny_teacher(tmp_path / "fashion.safetensors", size=28, channels=1, classes=10, patch=7)
    with pytest.raises(ValueError, match=r"2001 images .* of 2000 test images: .* choose 20 to 2000"):
        fashion.distill(teacher_weights=path, evaluate_samples=2001)
    path = tiny_teacher(tmp_path / "images.safetensors", size=8, channels=3, classes=2, patch=2)
    save_classifier(tmp_path / "classifier.safetensors", Classifier(2, 3), {})  # as if one had been trained
    told = images.distill(images=pictures, teacher=path, evaluate_samples=13)
    assert told.notes == ("12 images a row of the final table rather than 13: there are 12 test pictures",)


@pytest.mark.parametrize("recipe", [partial(images.teacher, images=Path("none")), fashion.teacher, digits.teacher])
@pytest.mark.parametrize("change", [{"steps": 0}, {"steps": -1}, {"batch_size": 0}, {"lr": -1.0}, {"lr": float("nan")}])
def test_a_teacher_without_steps_is_refused_before_data_is_read(recipe, change):
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=f"^{name}={value}: [^_=]*; leave it out"):
        recipe(**change)


def test_a_decay_longer_than_its_stage_is_refused(pictures):
    net = DiT(image_size=8, channels=3, classes=2, patch=2, size=Size(32, 2, 2))
    for lengths in ({"decay_steps": 76, "polish_steps": 0}, {"decay_steps": 9, "polish_steps": -1}):
        with pytest.raises(ValueError, match="of 100 steps the last 0 to 75 can be decay_steps"):
            images.flow_matching(
                net,
                images.load(pictures, None).split("train"),
                steps=100,
                batch_size=8,
                lr=0.1,
                seed=0,
                card={},
                **lengths,
            )


@pytest.mark.parametrize(("size", "words"), [(512, "such as 160.*patch=16"), (29, "such as 28, or choose patch=1 ")])
def test_a_size_that_leaves_coarse_patches_is_refused_unless_a_patch_is_given(pictures, size, words):
    with pytest.raises(ValueError, match=f"size={size}: .*{words}"):
        images.teacher(images=Path("none"), size=size)
    if size == 29:
        net = images.teacher(images=pictures, size=size, patch=29, model="mini").modules["teacher"]
        assert net.patch == 29


def test_models_and_patches_that_there_are_not(pictures):
    with pytest.raises(ValueError, match="model='huge': unknown; choose one of mini"):
        images.teacher(images=pictures, model="huge")
    with pytest.raises(ValueError, match="patch=0"):
        images.teacher(images=pictures, patch=0)
