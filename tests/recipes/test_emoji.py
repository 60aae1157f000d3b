"""A tiny text-to-image teacher of real pictures and captions stops, goes on, and becomes a stock pipeline."""

import pytest
import torch
from diffusers import SanaPipeline
from PIL import Image
from safetensors.torch import load_file
from shapes import SENTENCES, draw_shapes
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from hidistill.conventions import Flow
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.folder import Folder
from hidistill.foreign.network import Network
from hidistill.guidance import Guided
from hidistill.recipes import autoencoders, emoji, prompted
from hidistill.sampling import euler
from hidistill.teachers import sana
from hidistill.train.driver import execute

SMALL = {"width": 32, "layers": 2, "patch": 2, "steps": 3, "polish_steps": 2, "batch_size": 8}
PROMPTS = ["red disc", "a green apple"]


class Stop(Exception):
    pass


def bert(folder):
    """A random text encoder of the real class, and a tokenizer that knows a few words."""
    torch.manual_seed(1)
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    words.train_from_iterator((*SENTENCES, *emoji.SHOWN), trainers.WordLevelTrainer(special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=512, **names).save_pretrained(folder / "tokenizer")
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).eval().save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("given")
    for name in ("images", "held_out", "text"):
        (root / name).mkdir()
    torch.manual_seed(2)
    vae = autoencoders.build(factor=4, latent_channels=4, width=8)
    vae.register_to_config(scaling_factor=0.7)
    vae.save_pretrained(root / "vae")
    draw_shapes(root / "held_out", count=12, size=32)
    return {
        "images": draw_shapes(root / "images", count=36, size=32),
        "text": bert(root / "text"),
        "vae": root / "vae",
        "held_out": root / "held_out",
    }


def go(given, folder, *, stop_at=None, on_probe=None):
    def on_event(event):
        if event.kind == "step" and event.global_step == stop_at:
            raise Stop
        if event.kind == "probe" and on_probe is not None:
            on_probe(event)

    arguments = {**given, **SMALL}
    experiment = emoji.teacher(**arguments)
    execute(experiment, folder, recipe="emoji.teacher", arguments=arguments, checkpoint_every=1, on_event=on_event)


@pytest.fixture(scope="module")
def run(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    torch.set_num_threads(1)
    go(given, folder)
    return folder


@pytest.fixture(scope="module")
def stock(run):
    pipeline = SanaPipeline.from_pretrained(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights_in(folder):
    return load_file(folder / "models" / "teacher.safetensors")


def test_a_run_that_stops_in_either_stage_is_the_run_that_did_not(given, run, tmp_path):
    for stop_at in (2, 4):
        with pytest.raises(Stop):
            go(given, tmp_path, stop_at=stop_at)
    go(given, tmp_path)
    whole, parts = weights_in(run), weights_in(tmp_path)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_the_pipeline_holds_the_weights_of_the_run(run, stock):
    state, found = weights_in(run), stock.transformer.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert not stock.transformer.proj_out.weight.eq(0).all()


@pytest.mark.parametrize(("scale", "steps"), [(1.0, 1), (3.0, 1)])
def test_the_stock_pipeline_does_by_prompt_what_we_do(given, run, stock, scale, steps):
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    shown = stock(
        PROMPTS,
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=scale,
        height=32,
        width=32,
        use_resolution_binning=False,
        complex_human_instruction=None,
        output_type="pt",
    ).images
    prompts = prompted.encoder(given["text"], ["red left half"])
    network = Network(stock.transformer, sana.FAMILY, Flow(), null=prompts([""]))
    latents = euler(Guided(network, scale), noise, cond=prompts(PROMPTS), steps=steps)
    with torch.no_grad():
        ours = codec_of(Folder(run / "pipeline")).decode(latents)
    torch.testing.assert_close(ours, shown, rtol=0, atol=1e-4)


def test_the_loss_on_held_out_pictures_is_told_with_their_captions_and_with_others(given, tmp_path):
    found = []
    go(given, tmp_path, on_probe=lambda event: found.append(event.metrics))
    assert len(found) >= 5
    assert all(set(numbers) == {"held_out", "held_out_other_captions"} for numbers in found)
    assert found[-1]["held_out"] < found[0]["held_out"]
    assert all(numbers["held_out"] != numbers["held_out_other_captions"] for numbers in found[1:])


def test_samples_are_drawn(run):
    with Image.open(run / "samples" / "prompts.png") as sheet:
        assert sheet.height > len(emoji.SHOWN) * 60
        assert len(sheet.convert("RGB").getcolors(1 << 20)) > 50


def test_a_side_that_a_caption_names_is_kept(given):
    prompts = prompted.encoder(given["text"], ["red left half"])
    records = prompted.captioned(given["images"], 32)
    codec = codec_of(Folder(given["vae"]))
    pairs = prompted.pairs(records, codec, prompts)
    sided = torch.tensor(["left" in record.caption for record in records])
    assert sided.any()
    assert torch.equal(pairs.mirrors, ~sided)
    drawn = torch.cat([pairs.batch(step, batch_size=36, seed=0).x for step in range(3)])
    plain = {tuple(row.flatten()[:8].tolist()) for row in pairs.latents}
    kept = sum(tuple(row.flatten()[:8].tolist()) in plain for row in drawn)
    assert len(drawn) / 2 < kept < len(drawn)
    with torch.no_grad():
        mirrored = codec.encode(records[0].image[None].flip(3).float() / 255)
    torch.testing.assert_close(pairs.mirrored[:1], mirrored, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("caption", "handed"),
    [
        ("left arrow, 3D render", True),
        ("right-facing fist, flat drawing", True),
        ("OK button, flat drawing", True),
        ("ten o'clock, 3D render", True),
        ("bright star, 3D render", False),
        ("red apple, 3D render", False),
    ],
)
def test_which_captions_forbid_mirrors(caption, handed):
    assert (prompted.HANDED.search(caption) is not None) == handed


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 40}, "width=40"),
        ({"layers": 0}, "layers=0"),
        ({"lr": -1.0}, "lr=-1"),
        ({"polish_steps": -1}, "polish_steps=-1"),
        ({"patch": 3}, "multiples of patch=3"),
    ],
)
def test_what_cannot_be_is_refused(given, wrong, said):
    with pytest.raises(ValueError, match=said):
        emoji.teacher(**{**given, **SMALL, **wrong})


def test_pictures_without_captions_are_refused(given, tmp_path):
    for i in range(3):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="without captions"):
        emoji.teacher(**{**given, "images": tmp_path}, **SMALL)


def test_sides_that_the_stock_pipeline_does_not_take_are_refused(given, tmp_path):
    draw_shapes(tmp_path, count=3, size=48)
    with pytest.raises(ValueError, match="multiples of 32"):
        emoji.teacher(**{**given, "images": tmp_path}, **SMALL)


def test_a_folder_without_a_text_encoder_is_refused(given, tmp_path):
    with pytest.raises(ValueError, match="no text_encoder and no tokenizer"):
        emoji.teacher(**{**given, "text": tmp_path}, **SMALL)


def test_pictures_of_several_sizes_are_refused(given, tmp_path):
    for i, side in enumerate((32, 64)):
        Image.new("RGB", (side, side), "red").save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="squares of one size"):
        emoji.teacher(**{**given, "images": tmp_path}, **SMALL)
