import pytest
from both_samplers import of_stable_diffusion_3
from small_transformers import SD35
from stock import DTYPES, relative


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, SD35])
def test_sampling_is_that_of_the_stock_pipeline(dtype, options):
    assert relative(*of_stable_diffusion_3(dtype, **options)) < 2e-5
