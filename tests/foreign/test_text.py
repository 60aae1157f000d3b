"""Against the stock pipelines, loaded whole and called plainly: what reaches their networks is what is compared."""

import json
import shutil
import warnings
from importlib.util import find_spec
from inspect import signature

import pytest
import small_pipelines as small
import torch
from diffusers import DiffusionPipeline

from hidistill.foreign.folder import Folder, FolderError
from hidistill.foreign.text import WAYS, prompt_encoder, text_digest

PROMPTS = ["a small Red cat", "two green birds fly over the old house"]
LONG = "a red cat " * 400
BUILDERS = {
    "SanaPipeline": small.sana,
    "SanaSprintPipeline": small.sana_sprint,
    "PixArtAlphaPipeline": small.pixart_alpha,
    "PixArtSigmaPipeline": small.pixart,
    "StableDiffusionPipeline": small.stable_diffusion,
    "StableDiffusionXLPipeline": small.stable_diffusion_xl,
    "StableDiffusion3Pipeline": small.stable_diffusion_3,
    "FluxPipeline": small.flux,
}
PLACES = {"text": "encoder_hidden_states", "mask": "encoder_attention_mask", "pooled": "pooled_projections"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {name: small.saved(build(), root / name) for name, build in BUILDERS.items()}


class Seen(Exception):
    """Ends a call of a pipeline at its network."""


def called(pipeline):
    """The tensors that a call hands to the network."""
    pipeline.set_progress_bar_config(disable=True)
    network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer

    def look(module, args, kwargs):
        named = kwargs | dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False))
        raise Seen({key: named.get(place) for key, place in PLACES.items()} | (named.get("added_cond_kwargs") or {}))

    sizes = (
        {"use_resolution_binning": False} if "use_resolution_binning" in signature(pipeline.__call__).parameters else {}
    )
    handle = network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        pipeline(PROMPTS, num_inference_steps=2, height=32, width=32, output_type="latent", **sizes)
    except Seen as found:
        return dict(found.args[0])
    finally:
        handle.remove()
    raise AssertionError("the network was not called")


def seen(root, **options):
    """What a plain call of the pipeline hands to its network: for the default negative prompt, and for the prompts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*safety checker.*")  # the folder has none
        warnings.filterwarnings("ignore", message="__array__ implementation")  # of a scheduler, about numpy
        values = called(DiffusionPipeline.from_pretrained(root, **options))
    values["pooled"] = values.pop("text_embeds", values["pooled"])
    values = {key: value for key, value in values.items() if key in PLACES and value is not None}
    guided = len(values["text"]) == 2 * len(PROMPTS)
    return tuple({key: value[rows] for key, value in values.items()} for rows in (
        (slice(0, 1), slice(2, None)) if guided else (slice(0, 0), slice(0, None))
    ))  # fmt: skip


@pytest.mark.parametrize("name", BUILDERS)
def test_prompts_become_what_a_plain_call_of_the_pipeline_makes_of_them(folders, name):
    null, expected = seen(folders[name])
    encoder = prompt_encoder(Folder(folders[name]))
    found = encoder(PROMPTS)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.to(found[key].dtype), rtol=0, atol=1e-6)
    for key, value in encoder.null().items():
        assert value.shape == (1, *found[key].shape[1:])
        if len(null["text"]):  # plain calls of FLUX and SANA-Sprint have no negative prompt
            torch.testing.assert_close(value, null[key].to(value.dtype), rtol=0, atol=1e-6)


def test_rows_do_not_depend_on_their_batch_and_nothing_learns(folders):
    encoder = prompt_encoder(Folder(folders["SanaPipeline"]))
    both, alone = encoder(PROMPTS), encoder(PROMPTS[1:])
    torch.testing.assert_close(both["text"][1:], alone["text"])
    assert not both["text"].requires_grad
    again = prompt_encoder(Folder(folders["SanaPipeline"]))(PROMPTS)
    assert torch.equal(again["text"], both["text"])


def test_the_instruction_of_sana_can_be_left_out(folders):
    folder = Folder(folders["SanaPipeline"])
    stock, none = prompt_encoder(folder), prompt_encoder(folder, instruction=())
    assert stock.settings.instruction[0].startswith("Given a user prompt")
    assert not torch.allclose(stock(PROMPTS)["text"], none(PROMPTS)["text"])
    torch.testing.assert_close(stock.null()["text"], none([""])["text"])
    with pytest.raises(ValueError, match="puts no instruction"):
        prompt_encoder(Folder(folders["FluxPipeline"]), instruction=("Draw:",))


def test_a_prompt_that_fills_the_length_passes_and_one_token_more_is_refused(folders):
    encoder = prompt_encoder(Folder(folders["SanaPipeline"]))
    whole = " ".join(["cat"] * 298)  # and two marks
    assert encoder.cut([whole]) == [()]
    with pytest.raises(ValueError, match=r"'cat cat .*has 301 tokens, and a SanaPipeline takes 300 \(1 of these 2"):
        encoder(["a dog", whole + " cat"])
    cutting = prompt_encoder(Folder(folders["SanaPipeline"]), longer="cut")
    assert cutting.cut(["a dog", whole + " cat"]) == [(), ("text_encoder",)]
    torch.testing.assert_close(cutting([whole + " cat"])["text"], cutting([whole + " cat dog"])["text"])


@pytest.mark.parametrize("name", BUILDERS)
def test_long_prompts_are_refused_by_all(folders, name, caplog):
    with pytest.raises(ValueError, match=r"'a red cat .*has 1\d\d\d tokens, and a "):
        prompt_encoder(Folder(folders[name]))(["a dog", LONG])
    cut = prompt_encoder(Folder(folders[name]), longer="cut")
    assert all(cut.cut([LONG])[0])
    assert cut([LONG])["text"].isfinite().all()
    assert "truncated" not in caplog.text


def test_a_prompt_that_one_encoder_takes_whole_is_accepted_and_told(folders):
    encoder = prompt_encoder(Folder(folders["FluxPipeline"]))
    middle = " ".join(["cat"] * 100)
    assert encoder.cut(["a dog", middle]) == [(), ("text_encoder",)]
    assert encoder([middle])["text"].shape == (1, 512, 32)


def test_a_shorter_length(folders):
    encoder = prompt_encoder(Folder(folders["PixArtSigmaPipeline"]), length=16)
    assert encoder(PROMPTS)["text"].shape == (2, 16, 16)
    assert encoder(PROMPTS)["mask"].sum(1).tolist() == [6, 10]
    with pytest.raises(ValueError, match="as many tokens as its tokenizers say"):
        prompt_encoder(Folder(folders["StableDiffusionPipeline"]), length=16)


def test_the_empty_prompt_of_stable_diffusion_xl_is_what_its_folder_says(tmp_path, folders):
    assert not prompt_encoder(Folder(folders["StableDiffusionXLPipeline"])).null()["text"].any()
    root = small.saved(small.stable_diffusion_xl(zeros=False), tmp_path / "xl")
    null, _ = seen(root)
    found = prompt_encoder(Folder(root)).null()
    torch.testing.assert_close(found["text"], null["text"], rtol=0, atol=1e-6)
    assert found["text"].any()


def test_stable_diffusion_3_without_its_third_encoder(tmp_path):
    root = small.saved(small.stable_diffusion_3(with_t5=False), tmp_path / "sd3")
    _, expected = seen(root, text_encoder_3=None, tokenizer_3=None)
    found = prompt_encoder(Folder(root))(PROMPTS)
    torch.testing.assert_close(found["text"], expected["text"], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="takes 16"):
        prompt_encoder(Folder(root))([LONG])


def test_captions_are_cleaned_only_where_the_packages_are(folders):
    there = all(find_spec(name) for name in ("bs4", "ftfy"))
    encoder = prompt_encoder(Folder(folders["PixArtAlphaPipeline"]))
    assert encoder.settings.clean is there
    assert there or "not cleaned" in encoder.notes[0]
    if not there:
        with pytest.raises(ModuleNotFoundError, match="pip install beautifulsoup4 ftfy"):
            prompt_encoder(Folder(folders["PixArtAlphaPipeline"]), clean=True)
    with pytest.raises(ValueError, match="does not clean"):
        prompt_encoder(Folder(folders["FluxPipeline"]), clean=True)
    assert prompt_encoder(Folder(folders["PixArtAlphaPipeline"]), clean=False).notes == ()


def test_the_digest_changes_with_weights_and_with_words(tmp_path, folders):
    digests = {text_digest(Folder(root)) for root in folders.values()}
    assert len(digests) == len(folders)
    root = shutil.copytree(folders["SanaPipeline"], tmp_path / "sana")
    first = text_digest(Folder(root))
    assert first == text_digest(Folder(folders["SanaPipeline"]))
    weights = root / "text_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    second = text_digest(Folder(root))
    words = root / "tokenizer" / "tokenizer.json"
    words.write_text(words.read_text().replace("cat", "cot"))
    assert len({first, second, text_digest(Folder(root))}) == 3


def test_weights_that_lack_something_are_refused(tmp_path, folders):
    root = shutil.copytree(folders["SanaPipeline"], tmp_path / "sana")
    config = root / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 2, "layer_types": None}))
    with pytest.raises(FolderError, match=r"text_encoder lacks \d+ of the weights of a Gemma2Model.*layers\.1"):
        prompt_encoder(Folder(root))


def test_folders_without_text_encoders_are_refused(tmp_path, folders):
    with pytest.raises(FolderError, match=r"is a DiTPipeline, whose prompts are not known.*SanaPipeline"):
        prompt_encoder(Folder(small.saved(small.dit(), tmp_path / "dit")))
    root = shutil.copytree(folders["SanaPipeline"], tmp_path / "sana")
    index = root / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"text_encoder": [None, None]}))
    with pytest.raises(FolderError, match="has no text_encoder"):
        prompt_encoder(Folder(root))
    index.write_text(json.dumps(content | {"text_encoder": ["somewhere", "Gemma2Model"]}))
    with pytest.raises(FolderError, match="text_encoder is a Gemma2Model of somewhere"):
        prompt_encoder(Folder(root))
    index.write_text(json.dumps(content))
    (root / "text_encoder" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(FolderError, match="copy the folder again"):
        prompt_encoder(Folder(root))


def test_every_pipeline_that_is_known_is_tested():
    assert set(BUILDERS) == set(WAYS)
