"""An autoencoder that changes nothing, so that a model of pixels runs in pipelines that decode latents."""

from typing import TYPE_CHECKING

import torch

from hidistill.foreign.folder import library

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

SCALE = 2.0**10
"""Latents are pixels divided by this.

The decoder begins with `3 tanh(z / 3)`, which is z (1 - z**2 / 27) for small z: pixels in [-1, 1] come back with a
relative error below 4e-8, and latents of float16 still tell all 256 levels apart. A power of two rounds nothing.
"""


def identity_autoencoder(channels: int) -> "AutoencoderTiny":
    """An `AutoencoderTiny` of diffusers whose latents times its `scaling_factor` are the pixels in [-1, 1].

    One latent per pixel and channel. Two convolutions on each side, of which only the center is not zero: the encoder
    has nothing else, and the decoder's rectifier is undone by `relu(z) - relu(-z) = z`. It is saved and loaded like
    any other autoencoder. Call `decode(encode(x).latents)`, as pipelines do: its `forward` rounds latents to 8 bits.

    Args:
        channels: of the pictures: 1 for gray, 3 for color.

    Raises:
        ModuleNotFoundError: if diffusers is not installed.
        ValueError: if there are no channels.
    """
    if channels < 1:
        raise ValueError(f"channels={channels}: a picture has at least 1; give 1 for gray or 3 for color")
    autoencoder = library().AutoencoderTiny(
        in_channels=channels,
        out_channels=channels,
        latent_channels=channels,
        encoder_block_out_channels=(channels,),
        decoder_block_out_channels=(2 * channels,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        scaling_factor=SCALE,
    )
    unit = torch.eye(channels)
    pairs = torch.cat([unit, -unit])
    encoder, decoder = autoencoder.encoder.layers, autoencoder.decoder.layers
    # The encoder shows its layers (x + 1) / 2, and the decoder gives 2 y - 1 of what its layers give.
    center(encoder[0], 2 * unit, bias=-1.0)
    center(encoder[1], unit / SCALE, bias=0.0)
    center(decoder[0], pairs, bias=0.0)
    center(decoder[2], pairs.T * SCALE / 2, bias=0.5)
    return autoencoder.eval()


@torch.no_grad()
def center(convolution: torch.nn.Module, matrix: torch.Tensor, *, bias: float) -> None:
    """Make a convolution mix the channels of each pixel by a matrix and see no neighbors."""
    assert isinstance(convolution, torch.nn.Conv2d)
    assert convolution.bias is not None
    convolution.weight.zero_()
    convolution.weight[:, :, 1, 1] = matrix
    convolution.bias.fill_(bias)
