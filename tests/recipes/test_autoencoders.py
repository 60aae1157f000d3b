"""A small autoencoder of real pictures stops, goes on, and ends as one that did not; diffusers reads what it left."""

import json
from functools import partial

import pytest
import torch
from diffusers import AutoencoderDC
from PIL import Image
from safetensors.torch import load_file
from shapes import draw_shapes

from hidistill.data.captioned import read
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.folder import Folder
from hidistill.recipes import autoencoders
from hidistill.train.driver import execute

SMALL = {"size": 16, "width": 8, "latent_channels": 8, "steps": 4, "batch_size": 8}


class Stop(Exception):
    pass


def go(images, folder, *, stop_at=None):
    def on_event(event):
        if event.kind == "step" and event.global_step == stop_at:
            raise Stop

    arguments = {"images": images, **SMALL}
    execute(
        autoencoders.train(**arguments),
        folder,
        recipe="autoencoders.train",
        arguments=arguments,
        checkpoint_every=1,
        on_event=on_event,
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp("shapes"), count=80, size=16)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.set_num_threads(1)
    go(images, folder)
    return folder


def test_a_run_that_stops_is_the_run_that_did_not(images, run, tmp_path):
    with pytest.raises(Stop):
        go(images, tmp_path, stop_at=3)
    go(images, tmp_path)
    whole, parts = (load_file(folder / "models" / "autoencoder.safetensors") for folder in (run, tmp_path))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_diffusers_reads_the_folder_and_latents_have_unit_size(images, run):
    stock = AutoencoderDC.from_pretrained(run / "vae").eval()
    codec = codec_of(Folder(run / "vae"))
    assert (codec.factor, codec.channels) == (4, 8)
    pictures = torch.stack([record.image for record in read(images, size=16).records(0)]).float() / 255
    with torch.no_grad():
        latents = codec.encode(pictures)
        shown = (stock.decode(stock.encode(2 * pictures - 1).latent).sample + 1) / 2
        torch.testing.assert_close(codec.decode(latents), shown.clamp(0, 1), rtol=0, atol=1e-5)
    assert latents.shape == (80, 8, 4, 4)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.05)


def test_what_it_loses_of_held_out_pictures_is_written(images, run):
    numbers = json.loads((run / "reconstructions.json").read_text())
    assert 1 <= numbers["pictures"] < 40
    stock = AutoencoderDC.from_pretrained(run / "vae").eval()
    records = [r for r in read(images, size=16).records(0) if autoencoders.fold_in(0, r.key) % 20 == 0]
    assert len(records) == numbers["pictures"]
    pictures = torch.stack([record.image for record in records]).float() / 255
    with torch.no_grad():
        shown = ((stock.decode(stock.encode(2 * pictures - 1).latent).sample + 1) / 2).clamp(0, 1)
    error = float((shown - pictures).square().mean())
    assert numbers["psnr"] == pytest.approx(-10 * torch.tensor(error).log10().item(), abs=1e-3)
    with Image.open(run / "samples" / "reconstructions.png") as sheet:
        assert sheet.height > 2 * 90


def test_training_lowers_the_loss_and_the_error(images, tmp_path):
    arguments = {"images": images, **SMALL, "steps": 60, "lr": 4e-3}
    losses, found = [], {}

    def on_event(event):
        if event.kind == "step":
            losses.append(event.metrics["autoencoder/loss"])
        if event.kind == "probe":
            found[event.step] = event.metrics["psnr"]

    execute(
        autoencoders.train(**arguments), tmp_path, recipe="autoencoders.train", arguments=arguments, on_event=on_event
    )
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert found[60] > found[6] + 2


def test_batches_are_a_function_of_the_step(images):
    experiment = autoencoders.train(images=images, **SMALL)
    first, again, other = (experiment.batch_at(step).x for step in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (8, 3, 16, 16)
    assert first.min() >= -1
    assert first.max() <= 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"factor": 3}, "factor=3"),
        ({"factor": 1}, "factor=1"),
        ({"size": 18}, "size=18"),
        ({"latent_channels": 6}, "latent_channels=6: must divide the 32 channels"),
        ({"steps": 0}, "steps=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said, tmp_path):
    make = partial(autoencoders.train, images=tmp_path / "none")
    with pytest.raises(ValueError, match=said):
        make(**{**SMALL, **wrong})


def test_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="too few to hold one in 20 out"):
        autoencoders.train(images=draw_shapes(tmp_path, count=2, size=16), **SMALL)
