import pytest
import torch
from stock import as_tensor

from hidistill.foreign.identity import identity_autoencoder

diffusers = pytest.importorskip("diffusers")


def levels():
    """The 256 levels of 8 bits in [-1, 1]."""
    return torch.linspace(-1, 1, 256).view(1, 1, 16, 16)


@pytest.fixture(params=[1, 3])
def reloaded(request, tmp_path):
    """What a saved folder gives back."""
    identity_autoencoder(request.param).save_pretrained(tmp_path)
    return diffusers.AutoencoderTiny.from_pretrained(tmp_path)


@torch.no_grad()
def test_pixels_come_back(reloaded):
    channels = reloaded.config.in_channels
    pixels = torch.rand(8, channels, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = reloaded.encode(pixels).latents
    assert latents.shape == pixels.shape
    torch.testing.assert_close(latents * reloaded.config.scaling_factor, pixels, rtol=0, atol=2e-7)
    torch.testing.assert_close(reloaded.decode(latents).sample, pixels, rtol=0, atol=2e-7)


@torch.no_grad()
def test_values_outside_the_pixels_are_not_clamped():
    autoencoder = identity_autoencoder(3)
    values = torch.tensor([-4.0, 4.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(autoencoder.decode(values / autoencoder.config.scaling_factor).sample, values)


@torch.no_grad()
def test_half_precision_keeps_all_levels():
    autoencoder = identity_autoencoder(1).half()
    decoded = autoencoder.decode((levels() / autoencoder.config.scaling_factor).half()).sample.float()
    assert torch.equal((decoded / 2 + 0.5).mul(255).round(), torch.arange(256.0).view(1, 1, 16, 16))


def test_no_channels_are_refused():
    with pytest.raises(ValueError, match="channels=0"):
        identity_autoencoder(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_text_pipeline_shows_its_latents(channels):
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=1,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=1,
        cross_attention_head_dim=8,
        cross_attention_dim=8,
        caption_channels=4,
        patch_size=4,
    )
    pipeline = diffusers.SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=identity_autoencoder(channels),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    asked = {
        "prompt_embeds": torch.zeros(1, 2, 4),
        "prompt_attention_mask": torch.ones(1, 2),
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
        "height": 32,
        "width": 32,
        "use_resolution_binning": False,
    }
    latents = pipeline(**asked, generator=torch.Generator().manual_seed(0), output_type="latent").images
    shown = pipeline(**asked, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert latents.shape == (1, channels, 32, 32)
    torch.testing.assert_close(shown, (latents / 2 + 0.5).clamp(0, 1), rtol=0, atol=2e-7)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_class_pipeline_shows_the_end_of_its_steps(channels):
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=8,
        in_channels=channels,
        out_channels=channels,
        num_layers=1,
        sample_size=12,
        patch_size=4,
        num_embeds_ada_norm=3,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipeline = diffusers.DiTPipeline(
        transformer=transformer.eval(), vae=identity_autoencoder(channels), scheduler=scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}
    shown = as_tensor(pipeline([2], generator=torch.Generator().manual_seed(0), **asked).images)
    noise = torch.randn(1, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(1)
    [time] = scheduler.timesteps
    with torch.no_grad():
        predicted = transformer(noise, timestep=time[None], class_labels=torch.tensor([2])).sample
    end = scheduler.step(predicted, time, noise).prev_sample
    torch.testing.assert_close(shown, (end / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
