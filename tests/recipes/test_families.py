"""Every family from its teacher to a stock pipeline's pictures: cache, both stages, export, one step."""

import math

import diffusers
import pytest
import torch
from export_folders import difference
from small_families import FAMILIES, SEED, asked, cached, distilled, losses
from stock import as_tensor

from hidistill.recipes.exporting import export
from hidistill.recipes.pipelines import scale_of
from hidistill.recipes.teachers import load

QUICK = ("original dit",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_from_the_teacher_to_one_step_of_stock_diffusers(tmp_path, name):
    family = FAMILIES[name]
    given = family.teacher(tmp_path)
    distilled(given, cached(family, given, tmp_path), tmp_path / "run")
    found = losses(tmp_path / "run")
    assert {"sketch", "refine"} == {each.partition(",")[0] for each in found}
    assert all(math.isfinite(value) for values in found.values() for value in values)
    done = export(tmp_path / "run", to="diffusers", out=tmp_path / "student")
    pipeline = getattr(diffusers, done.words[0].partition(":")[0]).from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    call, ours = asked(family, tmp_path / "run")
    generator = torch.Generator().manual_seed(SEED)
    theirs = as_tensor(pipeline(**call, num_inference_steps=1, generator=generator).images)
    assert difference(theirs, ours) < 1e-4


@pytest.mark.parametrize(("name", "scale"), [("dit", 1.5), ("unet", 1.0), ("unet of classes", 1.0)])
def test_what_knows_no_null_condition_is_not_guided_unless_asked(tmp_path, name, scale):
    loaded = load(FAMILIES[name].teacher(tmp_path)["teacher"])
    assert scale_of(loaded, None) == scale
    assert scale_of(loaded, 3.0) == 3.0
