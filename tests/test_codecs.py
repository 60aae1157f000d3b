import torch

from hidistill.codecs import Pixels
from hidistill.types import Codec


def test_pixels_round_trip_and_scale():
    codec = Pixels()
    assert isinstance(codec, Codec)
    images = torch.rand(3, 1, 4, 4)
    torch.testing.assert_close(codec.decode(codec.encode(images)), images)
    torch.testing.assert_close(
        codec.encode(torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)).flatten().tolist(), [-1.0, 0.0, 1.0]
    )


def test_decoding_clamps():
    assert Pixels().decode(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0.0, 1.0]
