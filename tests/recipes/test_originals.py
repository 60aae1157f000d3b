"""Checkpoints of DiT's and SiT's own repositories, from the file to the student in every format."""

import json

import diffusers
import numpy as np
import pytest
import small_originals
import small_pipelines as small
import torch
from PIL import Image
from randomized import randomized
from small_families import FAMILIES, TINY, cached, distilled, pictures
from stock import as_tensor

from hidistill import weights
from hidistill.cli import main
from hidistill.codecs import Pixels
from hidistill.data.cache import Cache
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.folder import Folder, FolderError, Parts
from hidistill.guidance import Guided
from hidistill.recipes.caching import write_cache
from hidistill.recipes.exporting import export
from hidistill.recipes.folding import read_one_step
from hidistill.recipes.inspecting import inspect_teacher
from hidistill.recipes.originals import Checkpoint, parts_at
from hidistill.recipes.students import FLOW_MAP, student_config, student_from
from hidistill.recipes.teachers import load
from hidistill.sampling import euler, grid, jump
from hidistill.weights import WeightsError

LABELS = torch.tensor([0, 1, 1])
KINDS = ("dit", "sit")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Both checkpoints with their autoencoder, as arguments of the recipes; made once."""
    found = {}
    for kind in KINDS:
        torch.manual_seed(0)
        found[kind] = FAMILIES[f"original {kind}"].teacher(tmp_path_factory.mktemp(kind))
    return found


def loaded(given):
    return load(given["teacher"], **{name: value for name, value in given.items() if name != "teacher"})


def other_than(given, **changes):
    return {**given, **changes}


@pytest.fixture(scope="module", params=KINDS)
def run(request, shelf, tmp_path_factory):
    """A student of a checkpoint that has learned something, in the folder of a run; and noise."""
    given, root = shelf[request.param], tmp_path_factory.mktemp("run")
    teacher = loaded(given)
    torch.manual_seed(1)
    student = teacher.network.student(degree=6).eval().requires_grad_(False)
    randomized(student.interval)
    config = student_config(teacher, student, (4, 8, 8))
    weights.save(root / "models" / "student.safetensors", student, family=FLOW_MAP, config=config, classes=("a", "b"))
    return root, student, teacher.codec, torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("degree", [None, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_read_back_with_its_teacher_s_frequencies(shelf, tmp_path, kind, degree):
    """And with the noise levels of its repository: in float64 it is the same function."""
    teacher = loaded(shelf[kind])
    student = teacher.network.student(degree=degree).eval().requires_grad_(False)
    path = tmp_path / "student.safetensors"
    weights.save(path, student, family=FLOW_MAP, config=student_config(teacher, student, (4, 8, 8)))
    found = student_from(weights.read(path), source=str(path))
    x, t = torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.tensor([0.1, 0.6, 1.0], dtype=torch.float64)
    one, two = (each.double().mean_velocity(x, t=t, r=t / 2, cond=LABELS) for each in (student, found))
    assert torch.equal(one, two)


def test_the_parts_are_those_of_a_pipeline(shelf):
    parts = parts_at(shelf["dit"]["teacher"], kind="dit", autoencoder=shelf["dit"]["autoencoder"], allow_pickle=True)
    assert isinstance(parts, Parts)
    assert parts.names() == ["transformer", "scheduler", "vae"]
    assert parts.index["vae"] == ["diffusers", "AutoencoderKL"]
    assert parts.place("vae") == shelf["dit"]["autoencoder"]
    assert parts.digest("transformer") != parts.digest("vae") == Folder(shelf["dit"]["autoencoder"]).digest("vae")
    alone = Checkpoint(shelf["dit"]["teacher"], "dit", "pixels", allow_pickle=True)
    assert alone.names() == ["transformer", "scheduler"]
    with pytest.raises(FolderError, match="which has no text_encoder"):
        alone.config("text_encoder")


def test_its_latents_are_those_of_the_pipeline_of_diffusers(shelf, tmp_path):
    """Whose decoder looks at scaling_factor alone, whatever else the autoencoder's configuration says."""
    small.autoencoder_kl(shift_factor=0.2).save_pretrained(tmp_path / "shifted")
    codec = loaded(other_than(shelf["sit"], autoencoder=tmp_path / "shifted")).codec
    assert (codec.shift, codec.scale) == ((0.0,), (0.18215,))
    pipeline = small.saved(small.dit(), tmp_path / "pipeline")
    inside = loaded(other_than(shelf["sit"], autoencoder=pipeline)).codec
    assert inside.digest == codec_of(Folder(pipeline)).digest


def test_a_folder_for_stock_diffusers(run, tmp_path):
    root, student, codec, z = run
    done = export(root, to="diffusers", out=tmp_path / "student")
    assert done.words[0].startswith("DiTPipeline")
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    call = {"class_labels": pipeline.get_label_ids(["a", "b", "b"]), "guidance_scale": 1.0, "output_type": "pt"}
    images = as_tensor(pipeline(**call, num_inference_steps=1, generator=torch.Generator().manual_seed(3)).images)
    expected = codec.decode(jump(student, z, cond=LABELS))
    assert expected.std() > 0.05
    assert (images - expected).abs().max() < 1e-4
    page = (tmp_path / "student" / "README.md").read_text()
    assert "a checkpoint of " in page
    assert not list((tmp_path / "student").rglob("*.pt"))


def test_a_folder_for_several_steps(run, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    root, student, codec, z = run
    path = tmp_path / "student"
    export(root, to="few-step", out=path, steps=2)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(path, custom_pipeline=str(path), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    call = {"class_labels": LABELS.tolist(), "num_inference_steps": 2, "output_type": "pt"}
    images = as_tensor(pipeline(**call, generator=torch.Generator().manual_seed(3)).images)
    assert (images - codec.decode(jump(student, z, cond=LABELS, times=grid(2)))).abs().max() < 1e-4


def test_one_file_of_weights(run, tmp_path):
    root, student, _, z = run
    export(root, to="safetensors", out=tmp_path / "one.safetensors")
    expected = jump(student, z, cond=LABELS)
    found = read_one_step(tmp_path / "one.safetensors")(z, LABELS)
    assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("decode", [False, True])
def test_one_onnx_file(run, tmp_path, decode):
    runtime = pytest.importorskip("onnxruntime")
    root, student, codec, z = run
    export(root, to="onnx", out=tmp_path / "one.onnx", decode=decode)
    session = runtime.InferenceSession(str(tmp_path / "one.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"noise": z.numpy(), "label": LABELS.numpy()})[0])
    expected = jump(student, z, cond=LABELS)
    expected = codec.decode(expected) if decode else expected
    assert (found - expected).abs().max() < (1e-4 if decode else 1e-5 * expected.abs().max())


def test_where_teacher_and_autoencoder_lie_now(run, shelf, tmp_path):
    root, *_ = run
    stored = weights.read(root / "models" / "student.safetensors")
    given = shelf[stored.config["kind"]]
    for name in ("teacher", "autoencoder"):
        config = {**stored.config, name: str(tmp_path / "gone")}
        path = tmp_path / f"{name}.safetensors"
        weights.save(path, student_from(stored, source=""), family=FLOW_MAP, config=config)
        with pytest.raises(ValueError, match=rf"gone, where nothing lies now.*--{name} of hidistill export"):
            export(path, to="diffusers", out=tmp_path / "student")
        export(path, to="diffusers", out=tmp_path / "student", force=True, **{name: given[name]})
    with pytest.raises(ValueError, match="never changed"):
        export(path, to="diffusers", out=given["autoencoder"], autoencoder=given["autoencoder"])
    with pytest.raises(ValueError, match="never changed"):
        export(path, to="diffusers", out=given["teacher"].parent, autoencoder=given["autoencoder"])


def test_a_student_of_a_folder_has_its_own_autoencoder(tmp_path):
    teacher = load(small.saved(small.dit(), tmp_path / "teacher"))
    student = teacher.network.student(degree=6)
    path = tmp_path / "student.safetensors"
    weights.save(path, student, family=FLOW_MAP, config=student_config(teacher, student, (4, 8, 8)))
    with pytest.raises(ValueError, match=r"--autoencoder .*: the student's teacher is the folder of a pipeline"):
        export(path, to="diffusers", out=tmp_path / "student", autoencoder=tmp_path / "teacher")


def test_adapters_on_a_checkpoint_are_read_back_merged(shelf, tmp_path):
    given = shelf["dit"]
    family = FAMILIES["original dit"]
    experiment = distilled(given, cached(family, given, tmp_path), tmp_path / "run", lora_rank=2)
    stored = weights.read(tmp_path / "run" / "models" / "student.safetensors")
    assert any("lora_A" in key for key in stored.tensors)
    student, trained = student_from(stored, source="there"), experiment.modules["student"]
    point = {"t": torch.tensor([0.7, 1.0]), "r": torch.tensor([0.2, 0.0]), "cond": torch.tensor([0, 1])}
    x_t = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        own = trained.mean_velocity(x_t, **point)
        assert (student.mean_velocity(x_t, **point) - own).norm() < 1e-4 * own.norm()


@pytest.mark.slow
def test_the_commands_from_the_checkpoint_to_pictures(shelf, tmp_path, capsys):
    """A cache, a run with its evaluation, the evaluation again, pictures of the student and of an export."""
    given = shelf["sit"]
    teacher = ["--teacher", str(given["teacher"]), "--kind", "sit", "--autoencoder", str(given["autoencoder"])]
    images, cache, run = pictures(tmp_path / "images", classes=2), str(tmp_path / "cache"), str(tmp_path / "run")
    assert main(["inspect", *teacher, "--images", str(images), "--samples", "16"]) == 0
    said = capsys.readouterr().out
    assert "of the repository of SiT" in said
    assert "AutoencoderKL, 2 x 2 pixels" in said
    assert main(["cache", *teacher, "--images", str(images), "--out", cache]) == 0
    tiny = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "pipelines.distill", *teacher, "--cache", cache, "--out", run, *tiny]) == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["arguments"]["kind"] == "sit"
    few = ["--scales", "1.0", "--teacher-steps", "2", "--student-steps", "1"]
    assert main(["evaluate", run, "--samples", "11", *few]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["n"] == 11
    assert main(["sample", run, "--count", "4", "--label", "class1", "--out", str(tmp_path / "run.png")]) == 0
    student = str(tmp_path / "student")
    assert main(["export", run, "--to", "diffusers", "--out", student]) == 0
    assert main(["sample", student, "--count", "4", "--out", str(tmp_path / "student.png")]) == 0
    for name in ("run.png", "student.png"):
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("RGB").getcolors(100_000)) > 10


def test_the_teacher_itself_is_sampled_from(shelf, tmp_path):
    given, out = shelf["dit"], tmp_path / "x.npz"
    words = ["sample", str(given["teacher"]), "--count", "3", "--steps", "4", "--scale", "2", "--label", "1"]
    words += ["--out", str(tmp_path / "x.png"), "--npz", str(out)]
    known = ["--kind", "dit", "--autoencoder", str(given["autoencoder"]), "--allow-pickle"]
    assert main([*words, *known]) == 0
    from hidistill.seeds import fold_in, normal

    teacher = loaded(given)
    noise = normal([fold_in(0, "sample", i) for i in range(3)], (4, 8, 8))
    with torch.no_grad():
        x = euler(Guided(teacher.network, 2.0), noise, cond=torch.tensor([1, 1, 1]), steps=4)
    expected = 255 * teacher.codec.decode(x)
    assert np.abs(np.load(out)["images"] - expected.numpy()).max() < 0.51


def gray(root):
    """A checkpoint on pixels of one channel, and gray pictures of its classes."""
    net = small_originals.Original(dim=384, heads=6, depth=1, patch=4, grid=4, channels=1, answered=1, classes=2)
    return small_originals.saved(net, root / "net.safetensors"), pictures(root / "images", classes=2, channels=1)


def test_a_checkpoint_on_pixels(tmp_path):
    path, images = gray(tmp_path)
    write_cache(teacher=path, images=str(images), out=tmp_path / "cache", kind="sit", autoencoder="pixels")
    cache = Cache.open(tmp_path / "cache")
    part = cache.split("test")
    torch.testing.assert_close(part.x, 2 * (part.images.float() / 255) - 1)
    found = inspect_teacher(teacher=path, kind="sit", autoencoder="pixels", images=images, samples=16)
    assert found.rows["codec"] == "none: pixels in [-1, 1]"
    teacher = load(path, kind="sit", autoencoder="pixels")
    assert teacher.codec == Pixels()
    student = teacher.network.student(degree=6).eval().requires_grad_(False)
    with torch.no_grad():
        student.network.net.proj_out_2.weight *= 0.3
    file = tmp_path / "student.safetensors"
    weights.save(file, student, family=FLOW_MAP, config=student_config(teacher, student, (1, 16, 16)))
    export(file, to="diffusers", out=tmp_path / "student")
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    call = {"class_labels": LABELS.tolist(), "guidance_scale": 1.0, "num_inference_steps": 1, "output_type": "pt"}
    images = as_tensor(pipeline(**call, generator=torch.Generator().manual_seed(3)).images)
    z = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    pixels = jump(student, z, cond=LABELS)
    assert (pixels.abs() < 1).float().mean() > 0.3
    assert (images - teacher.codec.decode(pixels)).abs().max() < 1e-5


def test_what_was_not_said_is_asked_for(shelf, tmp_path, capsys):
    given = shelf["sit"]
    path, vae = given["teacher"], given["autoencoder"]
    with pytest.raises(ValueError, match=r"is a file, and not the folder of a pipeline.*--kind dit or --kind sit"):
        write_cache(teacher=path, images=str(tmp_path), out=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"a network alone, and no autoencoder came; say --autoencoder DIR"):
        write_cache(teacher=path, images=str(tmp_path), out=tmp_path / "cache", kind="sit")
    with pytest.raises(WeightsError, match=r"there is no file .*gone; give the path of a SiT checkpoint"):
        load(tmp_path / "gone", kind="sit", autoencoder=vae)
    with pytest.raises(FolderError, match="gone is no folder"):
        load(path, kind="sit", autoencoder=tmp_path / "gone")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(FolderError, match="holds a AutoencoderKLWan"):
        load(path, kind="sit", autoencoder=tmp_path / "vae")
    folder = small.saved(small.dit(), tmp_path / "folder")
    with pytest.raises(ValueError, match=r"--kind sit and --autoencoder pixels came with .*, which is no file"):
        load(folder, kind="sit", autoencoder="pixels")
    with pytest.raises(ValueError, match=r"--kind dit came with .*, which is no file"):
        inspect_teacher(teacher=folder, kind="dit")
    assert main(["sample", str(path), "--out", str(tmp_path / "x.png")]) == 2
    assert "--kind dit or --kind sit" in capsys.readouterr().err
    assert main(["inspect", "--teacher", str(path)]) == 2
    assert "--kind dit or --kind sit" in capsys.readouterr().err
    assert main(["sample", str(shelf["dit"]["teacher"]), "--out", str(tmp_path / "x.png")]) == 2
    assert "--kind dit or --kind sit" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="is a pickle, not safetensors"):
        load(shelf["dit"]["teacher"], kind="dit", autoencoder=vae)


def test_an_autoencoder_of_other_latents_is_refused(shelf, tmp_path):
    small.autoencoder_kl(latent_channels=8).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"has latents of 8 channels, and the network in .* takes 4"):
        loaded(other_than(shelf["sit"], autoencoder=tmp_path / "wide"))
    with pytest.raises(ValueError, match="takes 4 channels, and pixels have 1 or 3"):
        loaded(other_than(shelf["sit"], autoencoder="pixels"))
