"""`hidistill export`, from runs and weights files to every format."""

import json

import diffusers
import numpy as np
import pytest
import small_pipelines
import torch
from randomized import randomized
from stock import as_tensor
from torch import nn

from hidistill import weights
from hidistill.cli import main
from hidistill.recipes.exporting import export
from hidistill.recipes.folding import read_one_step
from hidistill.recipes.students import FLOW_MAP, student_config
from hidistill.recipes.teachers import load
from hidistill.sampling import grid, jump
from hidistill.teachers.dit import DiT, FlowMapDiT, Size

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
runtime = pytest.importorskip("onnxruntime")
LABELS = torch.tensor([0, 1, 1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that distilled a small pipeline, its student, and noise."""
    root = tmp_path_factory.mktemp("run")
    teacher = small_pipelines.saved(small_pipelines.dit(small_pipelines.autoencoder_tiny()), root / "teacher")
    loaded = load(teacher)
    torch.manual_seed(0)
    student = loaded.network.student(degree=6).eval().requires_grad_(False)
    randomized(student.interval)
    write(root / "run", student, FLOW_MAP, student_config(loaded, student, (4, 8, 8)))
    return root, student, torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def write(run, student, family, config, **options):
    path = run / "models" / "student.safetensors"
    weights.save(path, student, family=family, config=config, card={"recipe": "a.b", "seed": "0"}, **options)
    metrics = {"fd/some-features": 11.0, "agreement": 0.95}
    rows = [{"name": "student, 1 step", "kind": "student", "nfe": 1, "metrics": metrics}]
    rows += [{"name": "teacher, scale 2, 50 steps", "kind": "teacher", "nfe": 100, "metrics": metrics}]
    (run / "evaluation.json").write_text(json.dumps({"rows": rows}))
    return path


def test_a_folder_for_stock_diffusers(tmp_path, run, capsys):
    root, student, z = run
    assert main(["export", str(root / "run"), "--to", "diffusers", "--out", str(tmp_path / "student")]) == 0
    assert "DiTPipeline.from_pretrained" in capsys.readouterr().out
    page = (tmp_path / "student" / "README.md").read_text()
    assert "Distilled from teacher, a DiTPipeline" in page
    assert "| student, 1 step | 1 | 11.00 | 95.0 % |" in page
    assert "As the teacher's: not stated" in page
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    call = {"class_labels": LABELS.tolist(), "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}
    images = as_tensor(pipeline(**call, generator=torch.Generator().manual_seed(3)).images)
    expected = load(root / "teacher").codec.decode(jump(student, z, cond=LABELS))
    assert (images - expected).abs().max() < 1e-4


def test_sampling_from_the_folder_is_sampling_from_the_run(tmp_path, run, capsys):
    root, _, _ = run
    folder, out = tmp_path / "student", str(tmp_path / "x.png")
    export(root / "run", to="diffusers", out=folder)
    found = []
    for source in (root / "run", folder):
        words = ["--count", "3", "--label", "1", "--seed", "5", "--out", out, "--npz", str(tmp_path / "x.npz")]
        assert main(["sample", str(source), *words]) == 0
        found.append(np.load(tmp_path / "x.npz")["images"].astype(int))
    assert abs(found[0] - found[1]).max() <= 1  # rounding
    assert abs(found[0][0] - found[0][1]).max() > 20
    capsys.readouterr()
    assert main(["sample", str(folder), "--steps", "2", "--out", out]) == 2
    assert "exported for one step; leave --steps out" in " ".join(capsys.readouterr().err.split())


def test_a_folder_for_several_steps(tmp_path, run, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    root, student, z = run
    path = tmp_path / "student"
    export(root / "run", to="few-step", out=path, steps=2)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(path, custom_pipeline=str(path), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    call = {"class_labels": LABELS.tolist(), "num_inference_steps": 2, "output_type": "pt"}
    images = as_tensor(pipeline(**call, generator=torch.Generator().manual_seed(3)).images)
    expected = load(root / "teacher").codec.decode(jump(student, z, cond=LABELS, times=grid(2)))
    assert (images - expected).abs().max() < 1e-4


def test_one_file_of_weights(tmp_path, run):
    root, student, z = run
    export(root / "run", to="safetensors", out=tmp_path / "one.safetensors")
    expected = jump(student, z, cond=LABELS)
    found = read_one_step(tmp_path / "one.safetensors")(z, LABELS)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
    stored = weights.read(tmp_path / "one.safetensors")
    stock = diffusers.DiTTransformer2DModel.from_config(stored.config["network"])
    stock.load_state_dict(dict(stored.tensors))  # the keys are diffusers' own
    with pytest.raises(ValueError, match="exists"):
        export(root / "run", to="safetensors", out=tmp_path / "one.safetensors")
    with pytest.raises(weights.WeightsError, match=r"a 'one-step' or 'dit-one-step' is needed"):
        read_one_step(root / "run" / "models" / "student.safetensors")


@pytest.mark.parametrize("decode", [False, True])
def test_one_onnx_file(tmp_path, run, decode):
    root, student, z = run
    done = export(root / "run", to="onnx", out=tmp_path / "one.onnx", decode=decode)
    session = runtime.InferenceSession(str(tmp_path / "one.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"noise": z.numpy(), "label": LABELS.numpy()})[0])
    expected = jump(student, z, cond=LABELS)
    if decode:
        expected = load(root / "teacher").codec.decode(expected)
    assert (found - expected).abs().max() < (1e-4 if decode else 1e-5 * expected.abs().max())
    assert "noise, label -> " + ("images" if decode else "samples") in done.words[0]


def test_where_the_teacher_lies_now(tmp_path, run):
    root, _, _ = run
    path = tmp_path / "models" / "student.safetensors"
    stored = weights.read(root / "run" / "models" / "student.safetensors")
    weights.save(
        path, Held(stored.tensors), family=FLOW_MAP, config={**stored.config, "teacher": str(tmp_path / "gone")}
    )
    with pytest.raises(ValueError, match=r"gone, where nothing lies now.*--teacher"):
        export(path, to="diffusers", out=tmp_path / "student")
    export(path, to="diffusers", out=tmp_path / "student", teacher=root / "teacher")
    assert "Measured" not in (tmp_path / "student" / "README.md").read_text()


class Held(nn.Module):
    """Tensors by their keys, as a module has them."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = tensors

    def state_dict(self):
        return self.tensors


@pytest.fixture
def ours(request):
    """A student of our own DiT, whose gain is the same for all classes unless it is said otherwise."""
    torch.manual_seed(0)
    net = DiT(image_size=8, channels=3, patch=4, classes=2, size=Size(32, 2, 4), **getattr(request, "param", {}))
    student = randomized(randomized(net).student())
    nn.init.zeros_(student.gain.weight)
    nn.init.constant_(student.gain.bias, -0.26)
    with torch.no_grad():
        for layer in (net.unpatchify, student.net.unpatchify):
            layer.weight *= 0.3
            layer.bias *= 0.3
    return student, torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def written(tmp_path, student):
    return write(tmp_path / "run", student, "dit-flow-map", student.config, classes=("cat", "dog"))


def test_a_dit_of_ours_in_stock_diffusers(tmp_path, ours):
    student, z = ours
    export(written(tmp_path, student), to="diffusers", out=tmp_path / "student")
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    call = {"class_labels": pipeline.get_label_ids(["cat", "dog", "dog"]), "output_type": "pt"}
    call |= {"num_inference_steps": 1, "guidance_scale": 1.0}
    images = as_tensor(pipeline(**call, generator=torch.Generator().manual_seed(3)).images)
    pixels = jump(student, z, cond=LABELS)
    assert (pixels.abs() < 1).float().mean() > 0.5
    assert (images - ((pixels + 1) / 2).clamp(0, 1)).abs().max() < 1e-5
    assert "differ" not in (tmp_path / "student" / "README.md").read_text()


def test_a_gain_that_differs_between_classes_is_said_or_refused(tmp_path, ours):
    student, _ = ours
    nn.init.normal_(student.gain.weight, std=2e-4)
    export(written(tmp_path, student), to="diffusers", out=tmp_path / "student")
    assert "samples differ by up to 0.00" in (tmp_path / "student" / "README.md").read_text()
    nn.init.normal_(student.gain.weight, std=0.1)
    with pytest.raises(ValueError, match=r"differs by up to .* between its classes"):
        export(written(tmp_path, student), to="diffusers", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("ours", [{"pixel_channels": 6, "activation": "silu"}], indirect=True)
def test_a_dit_with_convolutions_around_its_blocks(tmp_path, ours):
    student, z = ours
    nn.init.normal_(student.gain.weight)
    path, expected = written(tmp_path, student), jump(student, z, cond=LABELS)
    with pytest.raises(ValueError, match="diffusers' DiT has no place"):
        export(path, to="diffusers", out=tmp_path / "student")
    with pytest.raises(ValueError, match="several steps cannot be"):
        export(path, to="few-step", out=tmp_path / "student")
    export(path, to="safetensors", out=tmp_path / "one.safetensors")
    found = read_one_step(tmp_path / "one.safetensors")
    assert isinstance(found.student, FlowMapDiT)
    torch.testing.assert_close(found(z, LABELS), expected)
    early = {"t": torch.full((3,), 0.4), "r": torch.zeros(3), "cond": LABELS}
    assert (found.student.mean_velocity(z, **early) - student.mean_velocity(z, **early)).abs().max() > 0.01
    export(path, to="onnx", out=tmp_path / "one.onnx", decode=True)
    session = runtime.InferenceSession(str(tmp_path / "one.onnx"), providers=["CPUExecutionProvider"])
    images = torch.from_numpy(session.run(["images"], {"noise": z.numpy(), "label": LABELS.numpy()})[0])
    torch.testing.assert_close(images, ((expected + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)


def test_what_is_no_student_is_refused(tmp_path, ours, capsys):
    student, _ = ours
    path = tmp_path / "teacher.safetensors"
    weights.save(path, student.net, family="dit", config=student.net.config)
    assert main(["export", str(path), "--to", "diffusers", "--out", str(tmp_path / "student")]) == 2
    assert "holds a 'dit'; what can be exported is a student" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no student in it"):
        export(tmp_path, to="diffusers", out=tmp_path / "student")
    path, out = written(tmp_path, student), tmp_path / "student"
    with pytest.raises(ValueError, match="--decode with --to diffusers"):
        export(path, to="diffusers", out=out, decode=True)
    with pytest.raises(ValueError, match="--steps 4 with --to onnx"):
        export(path, to="onnx", out=out, steps=4)
    with pytest.raises(ValueError, match="needs nothing of its teacher's"):
        export(path, to="diffusers", out=out, teacher=tmp_path)


def test_another_teacher_than_its_own_is_refused(tmp_path, run):
    root, _, _ = run
    other = small_pipelines.saved(small_pipelines.dit(num_layers=2), tmp_path / "other")
    with pytest.raises(ValueError, match=r"num_layers is 2 there and 1 in the student"):
        export(root / "run", to="diffusers", out=tmp_path / "student", teacher=other)
    with pytest.raises(ValueError, match="never changed"):
        export(root / "run", to="few-step", out=root / "teacher" / "student")
