"""Stock pipelines of diffusers around small networks, and the times at which their schedulers ask the networks."""

import torch
from diffusers import AutoencoderDC, AutoencoderKL, FlowMatchEulerDiscreteScheduler

SCALE = 2.5
"""Of guidance; above 1, so that the answers to the null condition count too."""
STEPS = 4


def autoencoder(channels=4):
    """Eight pixels to a side of a latent."""
    downs, ups = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(
        down_block_types=downs,
        up_block_types=ups,
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        latent_channels=channels,
        scaling_factor=1.0,
        use_post_quant_conv=False,
    ).eval()


def deep_autoencoder():
    """Thirty-two pixels to a side of a latent."""
    blocks, widths, layers = ("ResBlock",) * 6, (4,) * 6, (1,) * 6
    return AutoencoderDC(
        latent_channels=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
    ).eval()


def flow_scheduler():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def sampled(pipe, steps=STEPS, **given):
    """What a pipeline answers, silently."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_inference_steps=steps, **given).images


def flow_times(scheduler):
    """Times of the scheduler's last run on the linear path."""
    return scheduler.sigmas.tolist()


def noise_times(scheduler):
    """Times of a DDIM scheduler's last run on the linear path, and by what its first latents are to be divided."""
    kept = scheduler.alphas_cumprod[scheduler.timesteps].double()
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    return [*(sigma / (alpha + sigma)).tolist(), 0.0], float((alpha + sigma)[0])


def relative(ours, theirs):
    return float((ours.detach() - theirs).norm() / theirs.norm())


def converted(cond, dtype):
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in cond.items()}


def repeated(cond, rows=5):
    return {key: value.expand(rows, *value.shape[1:]) for key, value in cond.items()}


DTYPES = [torch.float32, torch.float64]


def as_tensor(images):
    """Pictures as (b, c, h, w): older DiTPipelines give arrays whatever they are asked for."""
    return images if isinstance(images, torch.Tensor) else torch.from_numpy(images).movedim(-1, 1)
