"""Students as folders that make several steps with the small pipeline in them."""

import diffusers
import pytest
from export_folders import CASES, NEAR, difference

from hidistill.export.card import Card
from hidistill.export.few_step import code_for, export_few_step

QUICK = ("dit", "flux dev", "unet of classes", "unet of scores")
ABLE = [name for name in CASES if name != "sana sprint"]


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Where diffusers copies a folder's own code to, which other processes do, too."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def exported(tmp_path, name, **options):
    case = CASES[name]
    folder = case.write(tmp_path / "teacher")
    student = case.student(folder)
    card, out = Card("a teacher"), tmp_path / "student"
    made = export_few_step(student, folder, out, scheduler=folder.config("scheduler"), card=card, **options)
    return case, student, made


def loaded(case, made):
    return diffusers.DiffusionPipeline.from_pretrained(
        made.path, custom_pipeline=str(made.path), trust_remote_code=True, **dict.fromkeys(case.null)
    )


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ABLE]
)
def test_its_steps_are_the_students(tmp_path, name):
    case, student, made = exported(tmp_path, name, steps=4)
    pipeline = loaded(case, made)
    jumps = [case.ours(student, steps) for steps in (1, 3, 4)]
    for steps, ours in zip((1, 3, 4), jumps, strict=True):
        assert difference(case.theirs(pipeline, steps), ours) < 2e-6
    assert difference(jumps[1], jumps[0]) > 1e-2
    stock = getattr(diffusers, made.pipeline).from_pretrained(made.path, **dict.fromkeys(case.null))
    assert difference(case.theirs(stock), jumps[0]) < NEAR.get(name, 2e-6)


def test_what_it_does_not_know_it_refuses(tmp_path):
    case, _, made = exported(tmp_path, "dit", steps=3)
    pipeline = loaded(case, made)
    with pytest.raises(ValueError, match="this folder knows 1, 2, 3 steps"):
        pipeline(class_labels=[1], num_inference_steps=4)
    with pytest.raises(ValueError, match="guidance is built in"):
        pipeline(class_labels=[1], guidance_scale=4.0)
    assert isinstance(pipeline.scheduler, diffusers.DDIMScheduler)
    assert "trust_remote_code=True" in made.usage
    assert "num_inference_steps=4, guidance_scale=1.0" in made.usage


def test_times_of_ones_own_are_refused(tmp_path):
    case, _, made = exported(tmp_path, "stable diffusion 3", steps=2)
    pipeline = loaded(case, made)
    with pytest.raises(ValueError, match="equal steps"):
        pipeline(**case.arguments(), sigmas=[1.0, 0.3], num_inference_steps=2)


def test_a_pipeline_with_a_path_of_its_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="on a path of its own"):
        exported(tmp_path, "sana sprint")
    with pytest.raises(ValueError, match="steps=0"):
        exported(tmp_path, "dit", steps=0)


@pytest.mark.parametrize("pipeline", ["DiTPipeline", "SanaPipeline"])
def test_the_code_in_the_folder_is_about_nothing_else(pipeline):
    code = code_for(pipeline)
    compile(code, "pipeline.py", "exec")
    assert f"class FlowMapPipeline({pipeline}):" in code
    assert "hidistill" not in code
    assert "noqa" not in code
    assert len(code.splitlines()) < 100
