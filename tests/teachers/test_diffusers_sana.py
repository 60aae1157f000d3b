import pytest
import torch
from both_samplers import of_sana, of_sprint
from small_transformers import masked, sana_teacher
from stock import DTYPES, relative

from hidistill.conventions import Flow
from hidistill.teachers import sana


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"timestep_scale": 0.001}, {"qk_norm": "rms_norm_across_heads"}])
def test_sampling_is_that_of_the_stock_pipeline(dtype, options):
    assert relative(*of_sana(dtype, **options)) < 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_sprint_samples_as_its_stock_pipeline(dtype, guidance, steps):
    """The pipeline starts at 1.5708, beyond a quarter turn by 4e-6."""
    assert relative(*of_sprint(dtype, guidance=guidance, steps=steps)) < 1e-4


def test_the_embedded_guidance_matters_and_is_refused_where_there_is_none():
    noise, point = torch.randn(5, 4, 4, 4), {"t": torch.rand(5), "cond": masked()}
    torch.manual_seed(1)
    default = sana_teacher(Flow(unit=1.0), guidance_embeds=True).velocity(noise, **point)
    for guidance, same in ((4.5, True), (3.0, False)):
        torch.manual_seed(1)
        teacher = sana_teacher(Flow(unit=1.0), sana.family(guidance), guidance_embeds=True)
        assert torch.equal(teacher.velocity(noise, **point), default) == same
    with pytest.raises(ValueError, match=r"scale of 3\.0 came, but this network embeds none"):
        sana_teacher(family=sana.family(3.0)).velocity(noise, **point)
