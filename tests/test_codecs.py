import pytest
import torch
from torch import nn

from hidistill.codecs import Autoencoder, Pixels, round_trip
from hidistill.types import Codec


class Answer:
    def __init__(self, value):
        self.latent = self.sample = value


class Halved(nn.Module):
    """An autoencoder that is exact on pictures of 2 x 2 squares: it keeps a pixel of each, times 5, plus 3."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(5.0))

    def encode(self, x):
        return Answer(self.weight * x[:, :, ::2, ::2] + 3)

    def decode(self, z):
        return Answer(((z - 3) / self.weight).repeat_interleave(2, 2).repeat_interleave(2, 3))


def halved(**options):
    settings = {"latent": lambda answer: answer.latent, "factor": 2, "channels": 3, "shift": (3.0,), "scale": (0.5,)}
    return Autoencoder(Halved(), **settings | options)


def squares(*shape):
    return torch.rand(*shape).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_pixels_round_trip_and_scale():
    codec = Pixels()
    assert isinstance(codec, Codec)
    assert codec.factor == 1
    images = torch.rand(3, 1, 4, 4)
    torch.testing.assert_close(codec.decode(codec.encode(images)), images)
    torch.testing.assert_close(
        codec.encode(torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)).flatten().tolist(), [-1.0, 0.0, 1.0]
    )


def test_decoding_clamps():
    assert Pixels().decode(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0.0, 1.0]
    assert halved().decode(torch.full((1, 3, 1, 1), 9.0)).unique().tolist() == [1.0]


def test_an_autoencoder_s_latents_are_shifted_then_scaled():
    codec, images = halved(), squares(2, 3, 4, 4)
    assert isinstance(codec, Codec)
    torch.testing.assert_close(codec.encode(images), 2.5 * (2 * images[:, :, ::2, ::2] - 1))
    torch.testing.assert_close(codec.decode(codec.encode(images)), images)


def test_a_shift_and_a_scale_for_each_channel():
    codec, images = halved(shift=(3.0, 2.0, 1.0), scale=(0.5, 1.0, 2.0)), squares(2, 3, 4, 4)
    kept = 5 * (2 * images[:, :, ::2, ::2] - 1)
    torch.testing.assert_close(codec.encode(images)[:, 0], 0.5 * kept[:, 0])
    torch.testing.assert_close(codec.encode(images)[:, 2], 2 * (kept[:, 2] + 2))
    torch.testing.assert_close(codec.decode(codec.encode(images)), images)


def test_an_autoencoder_of_another_type_gives_float32():
    codec = halved()
    codec.module.bfloat16()
    assert codec.encode(squares(1, 3, 4, 4)).dtype == torch.float32
    assert codec.decode(torch.rand(1, 3, 4, 4)).dtype == torch.float32


def test_the_round_trip_is_zero_for_what_is_exact_and_one_for_the_mean():
    assert round_trip(Pixels(), torch.rand(4, 3, 8, 8)) < 1e-6
    assert round_trip(halved(), squares(4, 3, 4, 4)) < 1e-6
    images = torch.rand(64, 3, 8, 8)
    # Of four independent values three are answered with the first: each is off by sqrt(2) standard deviations.
    assert round_trip(halved(), images) == pytest.approx((0.75 * 2) ** 0.5, rel=0.02)

    class Mean:
        def encode(self, images):
            return images

        def decode(self, x_0):
            return x_0.mean((0, 2, 3), keepdim=True).expand_as(x_0)

    assert round_trip(Mean(), images) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="one color"):
        round_trip(Pixels(), torch.ones(2, 3, 4, 4))


def test_pictures_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"5 x 8 pixels came.*multiples of 2.*e\.g\. to 4 x 8"):
        halved().encode(torch.rand(1, 3, 5, 8))
    with pytest.raises(ValueError, match=r"pictures of 1 channels came; this autoencoder takes 3 \(color\)"):
        halved().encode(torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"takes \(b, 3, h, w\)"):
        halved().decode(torch.rand(1, 4, 4, 4))


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="give one number or 3"):
        halved(shift=(0.0, 1.0))
    with pytest.raises(ValueError, match="no scale of 0"):
        halved(scale=(0.0,))
