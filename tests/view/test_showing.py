"""What the command finds: students, their teachers and discriminators; what it refuses, and why."""

import base64
import io
import json
import sys

import numpy as np
import pytest
import small_pipelines as small
import torch
from PIL import Image
from safetensors.torch import save_file

from hidistill import weights
from hidistill.cli import main
from hidistill.cli.showing import scene
from hidistill.codecs import Pixels
from hidistill.discriminators.adaptive import Adaptive
from hidistill.recipes.students import student_config
from hidistill.recipes.teachers import load, shape_of
from hidistill.sampling import jump
from hidistill.seeds import fold_in, normal
from hidistill.teachers.dit import DiT, Size
from hidistill.view.answers import Answers
from hidistill.view.wishes import IN_TURN
from hidistill.weights import state_of

NAMES = ("bag", "coat", "sandal")
FIELDS = {"asked": IN_TURN, "seed": 0, "count": 3, "student_steps": 1, "teacher_steps": 2, "scale": 1.5}


def network(size=8):
    net = DiT(image_size=size, channels=1, classes=3, patch=4, size=Size(8, 2, 1), taps=(0, 1))
    torch.nn.init.normal_(net.unpatchify.weight)
    return net


def save(path, module, family):
    weights.save(path, module, family=family, config=module.config, classes=NAMES)
    return path


@pytest.fixture
def run(tmp_path):
    """A run of images.distill as its recipe leaves it, and its teacher's file."""
    folder, teacher = tmp_path / "run", network()
    file = save(tmp_path / "teacher" / "models" / "teacher.safetensors", teacher, "dit")
    for role in ("student", "sketch"):
        save(folder / "models" / f"{role}.safetensors", teacher.student(), "dit-flow-map")
    checkpoint = folder / "checkpoints" / "00000012"
    checkpoint.mkdir(parents=True)
    save_file(state_of(Adaptive(teacher.feature_channels)), checkpoint / "discriminator.safetensors")
    write_recipe(folder, "images.distill", teacher=str(file.parent.parent), guidance=2.5)
    return folder


def write_recipe(folder, name, **arguments):
    (folder / "recipe.json").write_text(json.dumps({"recipe": name, "arguments": arguments, "version": "0"}))


def test_a_run_gives_its_students_its_teacher_and_its_discriminator(run):
    found = scene([run], teacher=None, votes=None)
    assert list(found.matches) == ["run, student", "run, sketch"]
    assert found.runs == {"run": run}
    assert found.votes == run / "votes.jsonl"
    match = found.match("run, student")
    assert match.scale == 2.5
    assert match.space.names == NAMES
    assert match.head is not None
    assert match.teacher is found.match("run, sketch").teacher
    assert "hd-pair" in Answers(found).compare("run, student", **FIELDS)
    assert "hd-looks" in Answers(found).attention("run, student", 0.3, **FIELDS)


def test_the_weights_file_of_a_run_knows_the_run(run):
    found = scene([run / "models" / "student.safetensors"], teacher=None, votes=None)
    assert found.match("run, student").head is not None
    assert found.runs == {}


def test_a_weights_file_alone_needs_its_teacher(run, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "models" / "student.safetensors").read_bytes())
    with pytest.raises(ValueError, match="no recipe beside it says who its teacher is; give --teacher"):
        scene([alone], teacher=None, votes=tmp_path / "votes.jsonl")
    found = scene([alone], teacher=tmp_path / "teacher", votes=tmp_path / "votes.jsonl")
    match = found.match("alone")
    assert match.head is None
    said = Answers(found).attention("alone", 0.3, **FIELDS)
    assert "does not lie in a run folder" in said
    with pytest.raises(ValueError, match="holds a student; give a teacher's weights"):
        scene([alone], teacher=alone, votes=tmp_path / "votes.jsonl")


def test_two_runs_of_one_name_are_two(run, tmp_path):
    other = tmp_path / "other" / "run"
    other.parent.mkdir()
    other.symlink_to(run)
    assert list(scene([run, other], teacher=None, votes=None).runs) == ["run", "run (2)"]


def test_a_run_that_has_just_begun_is_shown_without_a_student(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "stage": "sketch", "step": 1, "global_step": 1}\n')
    found = scene([tmp_path], teacher=None, votes=None)
    assert not found.matches
    assert "step 1" in Answers(found).run(tmp_path.name)


def test_a_run_in_training_shows_samples_of_its_newest_checkpoint(run):
    """The picture on the page is that of the checkpoint's weights, and changes with the next checkpoint."""
    for file in (run / "models").iterdir():
        file.unlink()
    (run / "metrics.jsonl").write_text('{"kind": "step", "stage": "sketch", "step": 1, "global_step": 1}\n')
    answers = Answers(scene([run], teacher=None, votes=None))
    assert not answers.scene.matches
    assert "from the first checkpoint on" in answers.run("run")
    shown = []
    for step in (20, 100):
        folder = run / "checkpoints" / f"{step:08d}"
        folder.mkdir()
        student = network().student()
        torch.nn.init.normal_(student.net.unpatchify.weight, std=step / 100)
        save_file(state_of(student), folder / "student-average.safetensors")
        html = answers.run("run")
        assert f"Samples in one step at step {step}" in html
        shown.append(html.split("data:image/png;base64,")[1].split('"')[0])
    assert shown[0] != shown[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[1]))).convert("L"))
    own = jump(student.eval(), normal([fold_in(0, "sample", 0)], (1, 8, 8)), cond=torch.tensor([0]))
    first = (Pixels().decode(own)[0, 0] * 255).round().byte().numpy()
    np.testing.assert_array_equal(pixels[: 8 * 7 : 7, : 8 * 7 : 7], first)


def test_other_discriminators_are_said_to_have_no_attention(run):
    write_recipe(run, "images.distill", teacher=str(run.parent / "teacher"), guidance=1.5, discriminator="pooled")
    match = scene([run], teacher=None, votes=None).match("run, student")
    assert match.head is None
    assert "only the adaptive one has attention" in match.headless


def test_what_cannot_be_shown(run, tmp_path):
    with pytest.raises(ValueError, match="nothing to show"):
        scene([], teacher=None, votes=None)
    with pytest.raises(ValueError, match="there is no such file or folder"):
        scene([tmp_path / "none"], teacher=None, votes=None)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="is no run folder"):
        scene([empty], teacher=None, votes=None)
    with pytest.raises(ValueError, match="holds a teacher; give a student's weights"):
        scene([tmp_path / "teacher" / "models" / "teacher.safetensors"], teacher=None, votes=None)
    large = save(tmp_path / "large.safetensors", network(16), "dit")
    with pytest.raises(ValueError, match="give its own teacher as --teacher"):
        scene([run], teacher=large, votes=None)
    write_recipe(run, "images.distill", teacher=str(tmp_path / "moved"), guidance=1.5)
    with pytest.raises(ValueError, match="say with --teacher where it is"):
        scene([run], teacher=None, votes=None)


@pytest.mark.parametrize(("name", "asked"), [("dit", "class1"), ("sana", "a small red cat")])
def test_students_of_other_libraries_stand_beside_their_teachers(tmp_path, name, asked):
    """At its start a student is its teacher: in one step from the same noise both draw the same picture."""
    loaded = load(small.saved(getattr(small, name)(), tmp_path / "teacher"))
    student, shape = loaded.network.student(), shape_of(loaded.network)
    classes = ["class0", "class1"] if name == "dit" else []
    file = tmp_path / "run" / "models" / "student.safetensors"
    weights.save(file, student, family="flow-map", config=student_config(loaded, student, shape), classes=classes)
    write_recipe(tmp_path / "run", "pipelines.distill", teacher=str(tmp_path / "teacher"), guidance=None)
    found = scene([tmp_path / "run"], teacher=None, votes=None)
    match = found.match("run, student")
    assert (match.space.encode is None) == (name == "dit")
    said = Answers(found).compare("run, student", **FIELDS | {"asked": asked, "teacher_steps": 1, "scale": 1.0})
    assert said.count("<img") == 6
    pictures = [part.split('"')[0] for part in said.split('src="')[1:]]
    assert pictures[::2] == pictures[1::2]
    assert match.scale == 1.5
    guided = Answers(found).compare("run, student", **FIELDS | {"asked": asked, "teacher_steps": 1, "scale": 3.0})
    assert 'role="alert"' not in guided
    assert guided.count("<img") == 6
    pickled = student_config(loaded, student, shape) | {"allow_pickle": True}
    weights.save(file, student, family="flow-map", config=pickled, classes=classes)
    with pytest.raises(ValueError, match="is a pickle, which the page does not read"):
        scene([tmp_path / "run"], teacher=None, votes=None)


def test_the_command_says_what_is_wrong(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("gradio")
    assert main(["view", "--port", "0"]) == 2
    assert "nothing to show" in " ".join(capsys.readouterr().err.split())
    assert main(["view", str(run), "--port", "70000"]) == 2
    assert "ports are 1 to 65535" in " ".join(capsys.readouterr().err.split())
    assert main(["view", str(run), "--port", "0", "--votes", str(tmp_path)]) == 2
    assert "is a folder" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["view", str(run), "--port", "0"]) == 2
    assert "pip install 'hidistill[view]'" in " ".join(capsys.readouterr().err.split())
