"""Against stock pipelines: what they decode from latents is what the codec decodes."""

import json
import warnings
from inspect import signature

import pytest
import small_pipelines as small
import torch
from diffusers import DiffusionPipeline, VQModel

from hidistill.codecs import Pixels, round_trip
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.folder import Folder, FolderError
from hidistill.foreign.identity import identity_autoencoder


def standardized():
    numbers = {"latents_mean": (0.5, -0.25, 0.1, 0.0), "latents_std": (2.0, 0.5, 1.0, 1.5), "scaling_factor": 0.5}
    return small.stable_diffusion_xl(vae=small.autoencoder_kl(**numbers))


def tiny():
    return small.stable_diffusion_xl(vae=small.autoencoder_tiny(scaling_factor=2.0))


BUILDERS = {
    "scaled": small.pixart,
    "scaled, DC": small.sana,
    "shifted": small.stable_diffusion_3,
    "packed": small.flux,
    "standardized": standardized,
    "tiny": tiny,
}


def decoded(root, *, kind):
    """What a plain call of the pipeline gives, from the same noise each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation")  # of a scheduler, about numpy
        pipeline = DiffusionPipeline.from_pretrained(root)
        pipeline.set_progress_bar_config(disable=True)
        more = (
            {"use_resolution_binning": False}
            if "use_resolution_binning" in signature(pipeline.__call__).parameters
            else {}
        )
        options = {"num_inference_steps": 1, "height": 32, "width": 32, "generator": torch.Generator().manual_seed(0)}
        answer = pipeline("a cat", output_type=kind, **options, **more).images
    packed = kind == "latent" and answer.ndim == 3
    return pipeline._unpack_latents(answer, 32, 32, pipeline.vae_scale_factor) if packed else answer


@pytest.mark.parametrize("name", BUILDERS)
def test_latents_decode_to_what_the_pipeline_decodes_them_to(tmp_path, name):
    root = small.saved(BUILDERS[name](), tmp_path / "pipeline")
    codec = codec_of(Folder(root))
    latents = decoded(root, kind="latent")
    torch.testing.assert_close(codec.decode(latents), decoded(root, kind="pt"), rtol=0, atol=2e-6)
    assert (codec.factor * latents.shape[2], codec.channels) == (32, latents.shape[1])


@pytest.mark.parametrize("name", BUILDERS)
def test_encoding_is_the_module_s_own_mean_under_the_inverse_of_the_decoder_s_scaling(tmp_path, name):
    pipeline = BUILDERS[name]()
    codec = codec_of(Folder(small.saved(pipeline, tmp_path / "pipeline")))
    images = torch.rand(2, 3, 16, 16)
    answer = pipeline.vae.encode(2 * images - 1)
    latent = answer.latent_dist.mean if hasattr(answer, "latent_dist") else answer[0]
    seen = []
    decode = codec.module.decode
    codec.module.decode = lambda z: seen.append(z) or decode(z)
    codec.decode(codec.encode(images))
    torch.testing.assert_close(seen[0], latent, rtol=1e-4, atol=1e-5)
    assert torch.equal(codec.encode(images), codec.encode(images))


def test_gray_pictures_and_an_exact_codec(tmp_path):
    vae = identity_autoencoder(1)
    codec = codec_of(Folder(small.saved(small.dit(vae=vae, in_channels=1, out_channels=2), tmp_path / "gray")))
    assert (codec.factor, codec.channels, codec.image_channels) == (1, 1, 1)
    images = torch.rand(2, 1, 8, 8)
    assert round_trip(codec, images) < 1e-6
    torch.testing.assert_close(codec.encode(images), 2 * images - 1, rtol=0, atol=1e-5)


def test_pipelines_that_scale_alone_leave_other_numbers_out_and_say_so(tmp_path, caplog):
    root = small.saved(small.dit(vae=small.autoencoder_kl(shift_factor=0.5)), tmp_path / "dit")
    with caplog.at_level("INFO"):
        codec = codec_of(Folder(root))
    assert (codec.shift, codec.scale) == ((0.0,), (0.18215,))
    assert "DiTPipeline scales latents by scaling_factor alone" in caplog.text


def test_an_autoencoder_alone_has_all_its_numbers(tmp_path):
    small.saved(small.autoencoder_kl(shift_factor=0.5, scaling_factor=2.0), tmp_path / "vae")
    codec = codec_of(Folder(tmp_path / "vae"))
    assert (codec.shift, codec.scale) == ((0.5,), (2.0,))
    numbers = {"shift_factor": 0.5, "latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4}
    small.saved(small.autoencoder_kl(**numbers), tmp_path / "both")
    with pytest.raises(FolderError, match="both shift_factor and latents_mean"):
        codec_of(Folder(tmp_path / "both"))


def test_weights_in_half_precision_are_used_in_float32(tmp_path):
    exact = small.autoencoder_kl()
    small.saved(exact.half(), tmp_path / "vae")
    codec = codec_of(Folder(tmp_path / "vae"))
    assert {weight.dtype for weight in codec.module.parameters()} == {torch.float32}


def test_the_digest_changes_with_weights_and_with_numbers(tmp_path):
    root = small.saved(small.sana(), tmp_path / "one")
    first = codec_of(Folder(root)).digest
    assert first == codec_of(Folder(root)).digest
    config = root / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    assert codec_of(Folder(root)).digest != first
    torch.manual_seed(1)
    assert codec_of(Folder(small.saved(small.sana(), tmp_path / "two"))).digest != first


def test_a_pipeline_of_pixels(tmp_path):
    assert codec_of(Folder(small.saved(small.ddpm(), tmp_path / "ddpm"))) == Pixels()


def test_unknown_and_missing_autoencoders_are_refused(tmp_path):
    root = small.saved(small.dit(), tmp_path / "dit")
    index, content = root / "model_index.json", json.loads((root / "model_index.json").read_text())
    index.write_text(json.dumps(content | {"vae": [None, None]}))
    with pytest.raises(FolderError, match="saved without its vae, which a DiTPipeline needs"):
        codec_of(Folder(root))
    index.write_text(
        json.dumps({key: value for key, value in content.items() if key != "vae"} | {"vqvae": ["diffusers", "VQModel"]})
    )
    with pytest.raises(FolderError, match=r"with the autoencoder vqvae \(VQModel\), which is not known"):
        codec_of(Folder(root))
    VQModel(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vq")
    with pytest.raises(
        FolderError, match=r"holds a VQModel, not an autoencoder that is known; known are AutoencoderKL"
    ):
        codec_of(Folder(tmp_path / "vq"))
