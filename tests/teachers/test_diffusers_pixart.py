import pytest
import torch
from both_samplers import ALPHA, of_pixart
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from stock import DTYPES, relative

from hidistill.teachers import pixart


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("stock", "options"), [(PixArtAlphaPipeline, ALPHA), (PixArtSigmaPipeline, {})])
def test_sampling_is_that_of_the_stock_pipeline(dtype, stock, options):
    assert relative(*of_pixart(dtype, stock=stock, **options)) < 2e-5


def test_the_size_is_told_in_pixels_height_first():
    told = pixart.size(torch.randn(5, 4, 4, 6))
    assert told["resolution"].tolist() == [[32.0, 48.0]] * 5
    torch.testing.assert_close(told["aspect_ratio"], torch.full((5, 1), 2 / 3))
