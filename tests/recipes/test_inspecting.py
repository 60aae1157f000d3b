"""Descriptions and self-tests of real small folders, checkpoints and the bundled teacher."""

import json
import shutil

import exact_network as exact
import fashion_network
import numpy as np
import pytest
import small_originals
import small_pipelines as small
import torch
from PIL import Image
from safetensors.torch import save_file

from hidistill.cli import main
from hidistill.codecs import Autoencoder, Pixels
from hidistill.conventions import Diffusion, Flow
from hidistill.data import fashion
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.folder import Folder
from hidistill.foreign.questions import betas
from hidistill.recipes.caching import write_cache
from hidistill.recipes.inspecting import WrongTeacherError, inspect_teacher, refuse_wrong, self_test, spaces_of
from hidistill.recipes.teachers import load


def pictures(root, *, count=40, classes=0, size=16, captions=False):
    """Stripes of two colors, in folders by class or with captions."""
    generator = np.random.default_rng(1)
    rows = []
    for i in range(count):
        place = root / (f"class{i % classes}" if classes else ".")
        place.mkdir(parents=True, exist_ok=True)
        colors = generator.integers(0, 256, (2, 3))
        stripes = colors[(np.arange(size) // (2 + i % 3)) % 2]
        Image.fromarray(np.repeat(stripes[None], size, 0).astype(np.uint8)).save(place / f"{i:03d}.png")
        rows.append({"file_name": f"{i:03d}.png", "text": small.SENTENCES[i % 4] + " and mat" * (i // 4 % 3)})
    if captions:
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A pipeline with classes, and pictures of them."""
    root = tmp_path_factory.mktemp("labelled")
    torch.manual_seed(0)
    return small.saved(small.dit(), root / "teacher"), pictures(root / "images", classes=2, count=120)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A pipeline with prompts, and pictures with captions."""
    root = tmp_path_factory.mktemp("told")
    torch.manual_seed(0)
    return small.saved(small.stable_diffusion_3(), root / "teacher"), pictures(root / "images", captions=True)


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """Pictures of the bundled teacher's classes, in folders in their order."""
    root = tmp_path_factory.mktemp("clothes")
    split = fashion.bundled("test")
    for i in range(40):
        place = root / f"{int(split.labels[i])} {fashion.CLASSES[split.labels[i]]}"
        place.mkdir(exist_ok=True)
        Image.fromarray(split.images[i, 0].numpy()).save(place / f"{i}.png")
    return root


def verdicts(found):
    return {one.check: one.verdict for one in found.findings}


def test_a_folder_with_classes_in_words(labelled):
    teacher, images = labelled
    found = inspect_teacher(teacher=teacher, images=images, samples=16)
    net = load(teacher).network.net
    rows = found.rows
    assert rows["pipeline"] == "DiTPipeline"
    assert rows["family"] == "dit (DiTTransformer2DModel)"
    assert rows["parameters"] == f"{sum(p.numel() for p in net.parameters()):,} of float32"
    assert rows["convention"] == "diffusion: answer epsilon, ends at t = 0.9937"
    assert rows["scheduler"] == "DDIMScheduler, prediction_type epsilon, beta_schedule linear"
    assert (rows["latents"], rows["classes"], rows["null condition"]) == ("4 x 8 x 8", "2", "label 2")
    assert "AutoencoderKL, 2 x 2 pixels" in rows["codec"]
    assert "scale 0.18215 and shift 0" in rows["codec"]
    assert rows["digest of weights"] == Folder(teacher).digest("transformer")
    assert found.test == f"on 16 pictures of {images}"


def test_an_untrained_folder_warns_and_does_not_fail(labelled):
    teacher, images = labelled
    for found in (
        inspect_teacher(teacher=teacher, images=images, samples=16),
        inspect_teacher(teacher=teacher, samples=16),
    ):
        assert not found.failed
        assert verdicts(found)["velocity"] == "warn"
    assert "own samples" in found.test


def test_a_folder_with_prompts(told):
    teacher, images = told
    found = inspect_teacher(teacher=teacher, images=images, samples=16)
    assert not found.failed
    assert found.rows["condition"] == "prompts as text, pooled"
    assert found.rows["text encoders"] == "CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel"
    assert "scale 1.5 and shift 0.06" in found.rows["codec"]
    own = inspect_teacher(teacher=teacher, samples=16)
    assert not own.failed
    assert "own samples" in own.test


def test_a_folder_without_its_text_encoders_is_described_at_least(told, tmp_path):
    shutil.copytree(told[0], tmp_path / "teacher")
    shutil.rmtree(tmp_path / "teacher" / "text_encoder")
    found = inspect_teacher(teacher=tmp_path / "teacher")
    assert (found.test, verdicts(found)) == ("not made", {"self-test": "warn"})
    assert found.rows["pipeline"] == "StableDiffusion3Pipeline"


def test_a_cache_shows_the_same_as_its_pictures(labelled, tmp_path):
    teacher, images = labelled
    write_cache(teacher=teacher, images=str(images), out=tmp_path / "cache")
    found = inspect_teacher(teacher=teacher, cache=tmp_path / "cache", samples=32)
    assert found.test == f"on the latents of 32 pictures in {tmp_path / 'cache'}"
    assert not found.failed
    shown = inspect_teacher(teacher=teacher, images=images, samples=32)
    one, other = (next(f.found for f in way.findings if f.check == "latents") for way in (found, shown))
    numbers = [[float(part.split()[-1]) for part in words.split(",")] for words in (one, other)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.03)


def test_pictures_that_do_not_fit_are_refused(labelled, told, tmp_path):
    teacher, images = labelled
    with pytest.raises(ValueError, match="give one of them"):
        inspect_teacher(teacher=teacher, images=images, cache=tmp_path)
    with pytest.raises(ValueError, match="at least 16"):
        inspect_teacher(teacher=teacher, samples=4)
    with pytest.raises(ValueError, match="3 classes, and the teacher 2"):
        inspect_teacher(teacher=teacher, images=pictures(tmp_path / "three", classes=3))
    with pytest.raises(ValueError, match="has no captions"):
        inspect_teacher(teacher=told[0], images=pictures(tmp_path / "plain"))
    with pytest.raises(ValueError, match="holds 8 pictures"):
        inspect_teacher(teacher=teacher, images=pictures(tmp_path / "few", classes=2, count=8))


@pytest.mark.parametrize("kind", ["dit", "sit"])
def test_a_checkpoint_in_words(kind, tmp_path):
    torch.manual_seed(0)
    original = small_originals.Original(dim=384, depth=1, heads=6, answered=8 if kind == "dit" else 4)
    save_file(original.state_dict(), tmp_path / "net.safetensors")
    found = inspect_teacher(teacher=tmp_path / "net.safetensors", kind=kind, samples=16)
    assert not found.failed
    assert found.rows["checkpoint"] == f"of the repository of {'DiT' if kind == 'dit' else 'SiT'}"
    assert found.rows["convention"].startswith("diffusion: answer epsilon" if kind == "dit" else "flow: t = 1 is data")
    with pytest.raises(ValueError, match="no autoencoder"):
        inspect_teacher(teacher=tmp_path / "net.safetensors", kind=kind, images=tmp_path)


def test_a_file_that_says_nothing_needs_its_kind(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="--kind dit or --kind sit"):
        inspect_teacher(teacher=tmp_path / "net.pt")


def test_our_own_teacher_passes_by_command_and_leaves_its_outcome(clothes, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "models").mkdir(parents=True)
    shutil.copy(fashion_network.TEACHER, run / "models" / "teacher.safetensors")
    arguments = ["inspect", "--teacher", str(run), "--images", str(clothes), "--samples", "40"]
    assert main([*arguments, "--json", str(tmp_path / "found.json")]) == 0
    words = capsys.readouterr().out
    assert "DiT of hidistill" in words
    assert f"self-test: on 40 pictures of {clothes}" in words
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"]["null condition"] == "label 10"
    assert {one["verdict"] for one in found["findings"]} == {"ok"}


def test_classes_in_another_order_fail_by_command(clothes, tmp_path, capsys):
    for place in clothes.iterdir():
        number, name = place.name.split(" ", 1)
        shutil.copytree(place, tmp_path / f"{(int(number) + 3) % 10} {name}")
    arguments = ["inspect", "--teacher", str(fashion_network.TEACHER), "--images", str(tmp_path), "--samples", "40"]
    assert main(arguments) == 1
    assert "classes in another order" in " ".join(capsys.readouterr().out.split())


def test_a_run_without_a_teacher_is_refused(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match="give the teacher that it distills"):
        inspect_teacher(teacher=tmp_path)


def test_a_run_is_refused_for_a_wrong_teacher_with_the_cure():
    told = Diffusion("epsilon", betas(1e-4, 0.02, power=1))
    truth = Diffusion("v_prediction", told.times)
    x_0, labels = exact.samples(32)
    with pytest.raises(WrongTeacherError, match="says epsilon; the network answers v_prediction"):
        refuse_wrong(self_test(exact.network(truth, told), x_0, labels, seed=0))
    refuse_wrong(self_test(exact.network(truth), x_0, labels, seed=0))


@pytest.mark.parametrize("count", [8, 64])
def test_a_run_tests_batches_of_any_size(count):
    x_0, labels = exact.samples(count)
    refuse_wrong(self_test(exact.network(Flow()), x_0, labels, seed=0))
    with pytest.raises(WrongTeacherError, match="time direction"):
        refuse_wrong(self_test(exact.network(Flow(), Flow(reversed=True)), x_0, labels, seed=0))


def test_a_run_with_two_samples_a_step_is_not_stopped():
    refuse_wrong(self_test(exact.network(Flow()), *exact.samples(2), seed=0))


def test_spaces_are_the_codecs_latents_by_other_numbers(told):
    codec = codec_of(Folder(told[0]))
    assert isinstance(codec, Autoencoder)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        x_0 = codec.encode(images)
    raw = x_0 / 1.5 + 0.06
    spaces = {space.words: space for space in spaces_of(codec)}
    torch.testing.assert_close(spaces["not scaled"].of(x_0), raw - 0.06)
    torch.testing.assert_close(spaces["without the shift"].of(x_0), 1.5 * raw)
    torch.testing.assert_close(spaces["divided by the scale"].of(x_0), (raw - 0.06) / 1.5)
    for space in spaces.values():
        torch.testing.assert_close(space.undone(space.of(x_0)), x_0)
    assert spaces["without the shift"].dimension == "latent shift"
    assert spaces["not scaled"].dimension == "latent scale"
    assert spaces_of(Pixels()) == []
