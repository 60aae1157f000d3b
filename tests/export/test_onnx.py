"""Generators as ONNX files, run by onnxruntime."""

import numpy as np
import pytest
import torch
from small_transformers import FAMILIES as TRANSFORMERS
from small_unets import FAMILIES as UNETS
from test_fold import learned

from hidistill.codecs import Autoencoder
from hidistill.export.fold import fold
from hidistill.export.onnx import OPSET, Generator, export_onnx, rms_norm
from hidistill.foreign.autoencoder import latents_of
from hidistill.foreign.identity import identity_autoencoder

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
FAMILIES = TRANSFORMERS | UNETS
QUICK = ("diffusers dit", "pixart sigma", "flux schnell")
TOKENS = {"text": {1: "tokens"}, "mask": {1: "tokens"}}


def generator_of(name):
    given = FAMILIES[name]
    folded = fold(learned(given["teacher"](), degree=8))
    cond = given["cond"]() if "cond" in given else {"label": torch.tensor([0, 1, 0, 1, 1])}
    example = {"noise": torch.randn(5, *given["shape"])} | cond
    return Generator(folded, texts=folded.family.texts), {key: value[:3] for key, value in example.items()}


def run(path, given):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}
    return torch.from_numpy(session.run(None, {key: value.numpy() for key, value in given.items() if key in known})[0])


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_the_file_gives_what_torch_gives_for_any_count_of_rows_and_tokens(tmp_path, name):
    generator, example = generator_of(name)
    made = export_onnx(generator, example, tmp_path / "new" / "it.onnx", dynamic=TOKENS)
    assert made.difference < 1e-6
    longer = {key: torch.cat([value, value], 1) if key in TOKENS else value for key, value in example.items()}
    one = {key: value[:1] for key, value in longer.items()}
    for given in (longer, one):
        expected = generator(*given.values())
        assert (run(made.path, given) - expected).abs().max() < 1e-6 * expected.abs().max()
    assert [path.name for path in made.path.parent.iterdir()] == ["it.onnx"]
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]


def small(**options):
    return Generator(lambda noise, cond: 2 * noise + cond[:, None], **options), {
        "noise": torch.randn(4, 3),
        "label": torch.arange(4),
    }


def test_pixels_come_out_where_an_autoencoder_goes_in(tmp_path):
    codec = Autoencoder(identity_autoencoder(3), latents_of, 1, 3, scale=(2.0**10,))
    generator = Generator(lambda noise, cond: noise + 0.1 * cond[:, None, None, None], codec=codec)
    example = {"noise": torch.randn(3, 3, 4, 4), "label": torch.arange(3)}
    made = export_onnx(generator, example, tmp_path / "it.onnx", output="images")
    pixels = ((example["noise"] + 0.1 * example["label"][:, None, None, None] + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(run(made.path, example), pixels, rtol=0, atol=1e-5)
    assert made.output == "images"


def test_the_card_is_in_the_files_metadata(tmp_path):
    generator, example = small()
    made = export_onnx(generator, example, tmp_path / "it.onnx", card={"seed": "3"})
    found = {entry.key: entry.value for entry in onnx.load(made.path).metadata_props}
    assert found == {"producer": "hidistill", "seed": "3"}
    assert made.inputs == ("noise", "label")


def test_weights_too_large_for_one_message_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("hidistill.export.onnx.LARGE", 100)
    large = torch.nn.Linear(3, 500)
    generator = Generator(lambda noise, cond: large(noise) + cond[:, None])
    generator.large = large
    example = {"noise": torch.randn(3, 3), "label": torch.arange(3)}
    made = export_onnx(generator, example, tmp_path / "it.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.onnx", "it.onnx.data"]
    assert (tmp_path / "it.onnx").stat().st_size < 4_000
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (made.path, tmp_path / "it.onnx.data"):
        path.rename(moved / path.name)
    torch.testing.assert_close(run(moved / "it.onnx", example), generator(*example.values()).detach())


def test_what_differs_or_fixes_its_rows_is_not_written(tmp_path):
    generator, example = small()
    generator.step = lambda noise, cond: noise + float(noise.sum()) + cond[:, None]  # a constant, once it is traced
    with pytest.raises(ValueError, match="differs by"):
        export_onnx(generator, example, tmp_path / "it.onnx")
    generator.step = lambda noise, cond: noise + cond[:, None] + torch.tensor([0.0] * len(noise))[:, None]
    with pytest.raises(ValueError, match=r"with 4 rows.*fixes the count"):
        export_onnx(generator, example, tmp_path / "it.onnx")
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken_are_refused(tmp_path):
    generator, example = small()
    path = tmp_path / "it.onnx"
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists"):
        export_onnx(generator, example, path)
    assert path.read_text() == "mine"
    export_onnx(generator, example, path, force=True)
    with pytest.raises(ValueError, match=r"ends in \.onnx"):
        export_onnx(generator, example, tmp_path / "folder")
    with pytest.raises(ValueError, match="5 rows came"):
        export_onnx(generator, {key: torch.cat([value, value[:1]]) for key, value in example.items()}, path, force=True)


def test_root_mean_squares_are_torchs():
    x, weight = torch.randn(2, 3, 4), torch.randn(3, 4)
    for shape, given in (((4,), weight[0]), ((3, 4), weight), ((4,), None)):
        expected = torch.nn.functional.rms_norm(x, shape, given, 1e-5)
        np.testing.assert_allclose(rms_norm(x, shape, given, 1e-5), expected, rtol=1e-5)
