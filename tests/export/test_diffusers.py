"""Students as folders: what stock diffusers makes of them, and what is in them."""

import json
from hashlib import sha256

import diffusers
import pytest
import small_pipelines
import torch
from export_folders import CASES, NEAR, difference
from fresh_process import in_a_fresh_process
from stock import as_tensor

from hidistill.export.card import Card, license_of
from hidistill.export.diffusers import export_one_step
from hidistill.export.fold import fold
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.folder import Folder, FolderError
from hidistill.foreign.network import Network
from hidistill.foreign.scheduler import convention_of
from hidistill.foreign.text import prompt_encoder
from hidistill.sampling import jump
from hidistill.teachers import sana

QUICK = ("dit", "pixart sigma", "flux dev", "stable diffusion under edm", "unet of classes")


def exported(case, folder, student, out, **options):
    scheduler = folder.config("scheduler")
    return export_one_step(fold(student), folder, out, scheduler=scheduler, card=Card("a teacher"), **options)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
@pytest.mark.parametrize("degree", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_the_stock_pipeline_makes_the_students_samples_in_one_step(tmp_path, name, degree):
    case = CASES[name]
    folder = case.write(tmp_path / "teacher")
    student = case.student(folder, degree)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    made = exported(case, folder, student, tmp_path / "student")
    assert made.pipeline == (case.expected or case.pipeline)
    pipeline = getattr(diffusers, made.pipeline).from_pretrained(made.path, **dict.fromkeys(case.null))
    ours = case.ours(student)
    assert (ours.abs() < 1).float().mean() > 0.3 or not case.divisor  # what is cut off says nothing
    assert difference(case.theirs(pipeline), ours) < NEAR.get(name, 2e-6)
    for key, value in student.state_dict().items():
        assert torch.equal(value, before[key])


def prompted(tmp_path):
    """A folder whose pipeline has every part, a student of it, and what it draws for two prompts."""
    root = small_pipelines.saved(small_pipelines.sana(vae=small_pipelines.autoencoder_tiny()), tmp_path / "sana")
    folder = Folder(root)
    teacher = Network(folder.network("transformer"), sana.FAMILY, convention_of(folder.config("scheduler")))
    student = teacher.student().eval().requires_grad_(False)
    prompts = list(small_pipelines.SENTENCES[:2])
    with torch.no_grad():
        cond = prompt_encoder(folder, instruction=())(prompts)
        z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        ours = codec_of(folder).decode(jump(student, z, cond=cond))
    call = {"prompt": prompts, "output_type": "pt", "guidance_scale": 1.0, "complex_human_instruction": None}
    return folder, student, ours, call


def test_a_fresh_process_draws_the_same_pictures_for_prompts(tmp_path):
    folder, student, ours, call = prompted(tmp_path)
    made = exported(None, folder, student, tmp_path / "student")
    assert "height=32, width=32, use_resolution_binning=False" in made.usage
    size = {"height": 32, "width": 32, "use_resolution_binning": False}
    [images] = in_a_fresh_process(tmp_path, [(made.path, made.pipeline, call | size, [])])
    assert images.std() > 0.05
    assert difference(images, ours) < 1e-5


@pytest.mark.slow
def test_a_fresh_process_makes_the_samples_of_every_family(tmp_path):
    jobs, ours = [], []
    for number, case in enumerate(CASES.values()):
        folder = case.write(tmp_path / f"{number}-teacher")
        student = case.student(folder)
        made = exported(case, folder, student, tmp_path / f"{number}-student")
        arguments = case.arguments()
        if isinstance(arguments.get("class_labels"), torch.Tensor):
            arguments["class_labels"] = arguments["class_labels"].tolist()
        jobs.append((made.path, made.pipeline, arguments, list(case.null)))
        ours.append(case.ours(student))
    for images, expected, case in zip(in_a_fresh_process(tmp_path, jobs), ours, CASES.values(), strict=True):
        assert difference(2 * images - 1 if case.divisor else images, expected) < 2e-5


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """A teacher with a license, and a student of it."""
    case = CASES["dit"]
    folder = case.write(tmp_path_factory.mktemp("folders") / "teacher")
    (folder.root / "README.md").write_text("---\ntags:\n- x\n  license: no\nlicense: 'mit'\n---\n# A teacher\n")
    (folder.root / "LICENSE.txt").write_text("Do what you like.")
    return case, folder, case.student(folder)


def digests(root):
    return {path: sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def test_asked_for_its_usual_steps_the_pipeline_says_that_there_are_none(tmp_path, dit):
    case, folder, student = dit
    pipeline = diffusers.DiTPipeline.from_pretrained(exported(case, folder, student, tmp_path / "student").path)
    with pytest.raises(ValueError, match="cannot be larger"):
        pipeline(class_labels=[1])


def test_parts_are_copied_and_the_teacher_is_left_alone(tmp_path, dit):
    case, folder, student = dit
    before = digests(folder.root)
    out = exported(case, folder, student, tmp_path / "new" / "student", classes=("cat", "dog")).path
    assert digests(folder.root) == before
    for name in ("vae/config.json", "vae/diffusion_pytorch_model.safetensors", "LICENSE.txt"):
        assert (out / name).read_bytes() == (folder.root / name).read_bytes()
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    network = {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}
    assert found == network | {
        "model_index.json", "README.md", "LICENSE.txt", "scheduler/scheduler_config.json",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert not {"_name_or_path"} & json.loads((out / "transformer" / "config.json").read_text()).keys()
    assert [path.name for path in out.parent.iterdir()] == ["student"]
    assert diffusers.DiTPipeline.from_pretrained(out).get_label_ids(["dog"]) == [1]


def test_the_card_says_whose_license_it_is_and_what_was_measured(tmp_path, dit):
    _, folder, student = dit
    card = Card("a teacher", {"seed": "3"}, [{"": "student", "FD": "7.1"}], ["A note."], license_of(folder.root))
    out = tmp_path / "student"
    export_one_step(fold(student), folder, out, scheduler=folder.config("scheduler"), card=card)
    page = (out / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: diffusers\nlicense: mit\ntags:")
    for words in ("| student | 7.1 |", "- seed: 3", "A note.", "As the teacher's: mit.", "guidance_scale=1.0"):
        assert words in page


def test_a_license_that_nobody_stated_is_not_invented(tmp_path):
    assert license_of(tmp_path) == {}
    (tmp_path / "README.md").write_text("license: apache-2.0\n")
    assert license_of(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicense:\n- mit\nlicense_name: own\n---\n")
    assert license_of(tmp_path) == {"license_name": "own"}


def test_places_that_are_taken_are_refused(tmp_path, dit):
    case, folder, student = dit
    for out in (folder.root, folder.root / "student", folder.root.parent):
        with pytest.raises(ValueError, match="never changed"):
            exported(case, folder, student, out, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        exported(case, folder, student, tmp_path / "file")
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        exported(case, folder, student, strange)
    with pytest.raises(ValueError, match=r"holds thesis.tex"):
        exported(case, folder, student, strange, force=True)
    assert (strange / "thesis.tex").exists()


def test_force_replaces_an_exported_folder_as_a_whole(tmp_path, dit):
    case, folder, student = dit
    out = exported(case, folder, student, tmp_path / "student").path
    (out / "stale.txt").write_text("")
    with pytest.raises(ValueError, match="--force"):
        exported(case, folder, student, out)
    exported(case, folder, student, out, force=True)
    assert not (out / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_pickles_are_not_copied_and_alone_they_are_refused(tmp_path):
    case = CASES["dit"]
    folder = case.write(tmp_path / "teacher")
    student, weights = case.student(folder), folder.root / "vae" / "diffusion_pytorch_model.safetensors"
    (weights.parent / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (weights.parent / "diffusion_pytorch_model.bin.index.json").write_text("{}")
    out = exported(case, folder, student, tmp_path / "student").path
    assert sorted(path.name for path in (out / "vae").iterdir()) == ["config.json", weights.name]
    weights.unlink()
    with pytest.raises(FolderError, match=r"in diffusion_pytorch_model.bin alone.*save_pretrained"):
        exported(case, folder, student, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "teacher"]


def test_weights_of_a_variant_lose_its_name(tmp_path):
    case = CASES["dit"]
    folder = case.write(tmp_path / "teacher")
    student, part = case.student(folder), folder.root / "vae"
    (part / "diffusion_pytorch_model.safetensors").rename(part / "diffusion_pytorch_model.fp16.safetensors")
    out = exported(case, Folder(folder.root, "fp16"), student, tmp_path / "student").path
    pipeline = diffusers.DiTPipeline.from_pretrained(out)
    assert difference(case.theirs(pipeline), case.ours(student)) < 2e-6


def test_a_part_that_is_named_and_missing_is_refused(tmp_path):
    case = CASES["dit"]
    folder = case.write(tmp_path / "teacher")
    student = case.student(folder)
    (folder.root / "vae").rename(tmp_path / "vae")
    with pytest.raises(FolderError, match="has no folder vae"):
        exported(case, folder, student, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_teacher_without_an_autoencoder_gets_one_that_changes_nothing(tmp_path, dit):
    """As for a network of pixels, whose pipeline decodes latents."""
    case, folder, student = dit
    index = {key: value for key, value in folder.index.items() if key != "vae"}
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model_index.json").write_text(json.dumps(index))
    scheduler = folder.config("scheduler")
    alone = Folder(tmp_path / "teacher")
    made = export_one_step(fold(student), alone, tmp_path / "student", scheduler=scheduler, card=Card("a teacher"))
    pipeline = diffusers.DiTPipeline.from_pretrained(made.path)
    generator = torch.Generator().manual_seed(3)
    pixels = 2 * as_tensor(pipeline(**case.arguments(), num_inference_steps=1, generator=generator).images) - 1
    torch.testing.assert_close(pixels, jump(student, case.z, cond=case.cond()).clamp(-1, 1), rtol=0, atol=1e-3)


def test_what_no_pipeline_takes_is_refused(tmp_path):
    case = CASES["sana"]
    folder = case.write(tmp_path / "teacher")
    student = case.student(folder)
    student.network.convention = CASES["dit"].teacher(CASES["dit"].write(tmp_path / "dit")).convention
    with pytest.raises(ValueError, match=r"takes steps of flows.*export to onnx"):
        exported(case, folder, student, tmp_path / "student")
    assert not (tmp_path / "student").exists()
