"""From a diffusers folder and a folder of pictures to a run, for every family, at tiny size."""

import inspect

import pytest
import small_pipelines as small
import torch
from elsewhere import differentiated
from PIL import Image
from small_families import PLACES, THINGS, TINY, WORDS, pictures

from hidistill import weights
from hidistill.cli import main
from hidistill.conventions import Diffusion, Flow, Table
from hidistill.data.cache import CacheError
from hidistill.foreign.folder import FolderError
from hidistill.recipes import pipelines
from hidistill.recipes.again import judge
from hidistill.recipes.caching import write_cache
from hidistill.recipes.students import student_from
from hidistill.recipes.teachers import load
from hidistill.scores import Evaluation
from hidistill.train.driver import execute

FAMILIES = {
    "dit": (small.dit, 2),
    "sana": (small.sana, 0),
    "pixart": (small.pixart, 0),
    "stable diffusion": (small.stable_diffusion, 0),
    "stable diffusion 3": (small.stable_diffusion_3, 0),
    "flux": (small.flux, 0),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A teacher's folder and a cache for it, made once per family."""
    made = {}

    def of(name):
        if name not in made:
            root = tmp_path_factory.mktemp(name.replace(" ", "-"))
            build, classes = FAMILIES[name]
            teacher = small.saved(build(), root / "teacher")
            images = pictures(root / "images", classes=classes)
            size = {"size": 16} if name == "flux" else {}
            write_cache(teacher=teacher, images=str(images), out=root / "cache", **size)
            made[name] = {"teacher": teacher, "cache": root / "cache"}
        return made[name]

    return of


def carried_out(folder, **arguments):
    defaults = inspect.signature(pipelines.distill).parameters.items()
    arguments = {name: each.default for name, each in defaults if each.default is not each.empty} | arguments
    experiment = pipelines.distill(**arguments)
    execute(experiment, folder, recipe="pipelines.distill", arguments=arguments)
    return experiment


def files_below(root):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "dit" else pytest.mark.slow) for n in FAMILIES])
def test_both_stages_run_and_leave_a_student_that_is_read_back(shelf, tmp_path, name):
    given = shelf(name)
    before = files_below(given["teacher"])
    carried_out(tmp_path, **given, **TINY)
    stored = weights.read(tmp_path / "models" / "student.safetensors")
    student = student_from(stored, source="there")
    assert all(torch.equal(student.state_dict()[key], value) for key, value in stored.tensors.items())
    evaluation = Evaluation.load(tmp_path / "evaluation.json")
    names = [row.name for row in evaluation.rows]
    assert names[:3] == ["sketch, 1 step", "sketch, 2 steps", "sketch, 4 steps"] or names[0] == "student, 1 step"
    assert (tmp_path / "report.html").exists()
    assert files_below(given["teacher"]) == before


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "sana" else pytest.mark.slow) for n in FAMILIES])
def test_every_update_runs_where_the_run_is(shelf, name):
    experiment = pipelines.distill(**shelf(name), **TINY)
    assert differentiated(experiment) == ["sketch, student", "refine, critics", "refine, student"]


def test_a_port_learns_its_teacher_and_is_a_pipeline_of_stock_diffusers(tmp_path):
    """Two steps of a tiny network: the folder is whole, its scale is the teacher's, and sampling is the adapter's."""
    from diffusers import DiTPipeline

    from hidistill.guidance import Guided
    from hidistill.sampling import euler

    arguments = {"patch": 14, "width": 8, "depth": 1, "heads": 1, "steps": 2, "polish_steps": 1, "batch_size": 2}
    execute(pipelines.port(**arguments), tmp_path, recipe="pipelines.port", arguments=arguments)
    root = tmp_path / "pipeline"
    pipeline = DiTPipeline.from_pretrained(root)
    pipeline.set_progress_bar_config(disable=True)
    assert not list(root.rglob("*.bin"))
    assert pipeline.labels["sneaker"] == 7
    loaded = load(root)
    noise = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for weight in (*pipeline.transformer.parameters(), *loaded.network.net.parameters()):
            weight.copy_(torch.linspace(-0.3, 0.4, weight.numel()).reshape(weight.shape))
    theirs = pipeline([3, 8], 2.0, torch.Generator().manual_seed(3), 5, output_type="np").images
    alphas = pipeline.scheduler.alphas_cumprod[pipeline.scheduler.timesteps].double()
    ratio = ((1 - alphas) / alphas).sqrt()
    times = [float(r / (1 + r)) if r.isfinite() else 1.0 for r in ratio]
    ours = euler(Guided(loaded.network, 2.0), noise, cond=torch.tensor([3, 8]), times=(*times, 0.0))
    difference = loaded.codec.decode(ours).movedim(1, -1).squeeze(-1) - torch.from_numpy(theirs).squeeze(-1)
    assert difference.abs().max() < 1e-4


@pytest.mark.slow
def test_adapters_share_the_teachers_weights_and_are_read_back_merged(shelf, tmp_path):
    given = shelf("dit")
    experiment = carried_out(tmp_path, **given, **TINY, lora_rank=2)
    stored = weights.read(tmp_path / "models" / "student.safetensors")
    assert any("lora_A" in key for key in stored.tensors)
    assert not any(key.endswith("to_q.weight") for key in stored.tensors)
    student, trained = student_from(stored, source="there"), experiment.modules["student"]
    point = {"t": torch.tensor([0.7, 1.0]), "r": torch.tensor([0.2, 0.0]), "cond": torch.tensor([0, 1])}
    x_t = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        own = trained.mean_velocity(x_t, **point)
        assert (student.mean_velocity(x_t, **point) - own).norm() < 1e-4 * own.norm()


@pytest.mark.slow
def test_from_prompts_alone_the_teacher_draws_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr("hidistill.recipes.material.DRAWING_STEPS", 2)
    teacher = small.saved(small.sana(), tmp_path / "teacher")
    words = [f"a {color} {thing} {place}" for color in WORDS for thing in THINGS for place in PLACES[:2]]
    (tmp_path / "prompts.txt").write_text("\n".join(words) + "\n")
    cache = tmp_path / "cache"
    write_cache(teacher=teacher, images=str(tmp_path / "prompts.txt"), out=cache)
    given = {"teacher": teacher, "cache": cache, **TINY, "guidance": 2.0}
    experiment = carried_out(tmp_path / "run", **given)
    assert "samples of the teacher itself" in experiment.notes[0]
    (drawn,) = cache.glob("drawn-*.safetensors")
    first = drawn.read_bytes()
    again = pipelines.distill(**given)
    assert drawn.read_bytes() == first
    assert torch.equal(again.batch_at(1).x, experiment.batch_at(1).x)


def test_a_cache_of_another_autoencoder_is_refused(shelf, tmp_path):
    other = small.saved(small.dit(vae=small.autoencoder_kl(scaling_factor=0.3)), tmp_path / "other")
    with pytest.raises(CacheError, match="autoencoder"):
        pipelines.distill(teacher=other, cache=shelf("dit")["cache"], **TINY)


def test_a_cache_of_labels_is_refused_for_prompts(shelf):
    with pytest.raises(ValueError, match="holds labels as conditions; a sana needs texts"):
        pipelines.distill(teacher=shelf("sana")["teacher"], cache=shelf("dit")["cache"], **TINY)


def test_a_rank_below_zero_is_refused(shelf):
    with pytest.raises(ValueError, match="lora_rank=-1: a rank is 1 or more"):
        pipelines.distill(**shelf("dit"), **TINY, lora_rank=-1)


@pytest.mark.slow
def test_a_finished_run_is_evaluated_again_and_sampled_from(shelf, tmp_path):
    given = shelf("dit")
    carried_out(tmp_path / "run", **given, **TINY)
    judge(tmp_path / "run", samples=12, scales=(1.0,), teacher_steps=(2,), student_steps=(1,))
    assert Evaluation.load(tmp_path / "run" / "evaluation.json").n == 12
    picture = tmp_path / "x.png"
    assert main(["sample", str(tmp_path / "run"), "--count", "4", "--label", "class1", "--out", str(picture)]) == 0
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(100_000)) > 10


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_teacher_in_half_precision_is_distilled_with_weights_in_float32(shelf, tmp_path, rank):
    given = shelf("dit")
    half = small.dit()
    half.transformer.load_state_dict(load(given["teacher"]).network.net.state_dict())
    half.transformer.to(torch.bfloat16)
    half.vae.load_state_dict(load(given["teacher"]).codec.module.state_dict())
    teacher = small.saved(half, tmp_path / "half")
    experiment = carried_out(tmp_path / "run", teacher=teacher, cache=given["cache"], **TINY, lora_rank=rank)
    moving = [p for stage in experiment.stages for update in stage.updates.values() for p in update.parameters()]
    assert {parameter.dtype for parameter in moving} == {torch.float32}
    assert main(["export", str(tmp_path / "run"), "--to", "diffusers", "--out", str(tmp_path / "student")]) == 0
    with pytest.raises(FolderError, match="does not look at its time"):
        load(tmp_path / "student")


def test_guidance_is_not_given_twice(shelf, tmp_path):
    sprint = load(small.saved(small.sana_sprint(), tmp_path / "sprint"))
    assert pipelines.scale_of(sprint, None) == 1.0
    assert pipelines.scale_of(load(shelf("dit")["teacher"]), None) == 1.5
    assert pipelines.scale_of(sprint, 2.0) == 2.0


def test_a_fake_score_of_noise_counts_errors_in_the_noise():
    """The weighted error of the velocity is the plain error of the network's own answer, at any time."""
    convention = Diffusion("epsilon", Table.of((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)))
    t = torch.tensor([0.1, 0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
    weight = pipelines.weight_of(convention)
    errors = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(weight(t) * (convention.at(t).gain * errors).square(), errors.square())
    assert pipelines.weight_of(Flow()) is None
