import pytest
import torch

from hidistill.discriminators.adaptive import Adaptive
from hidistill.discriminators.convolutional import Convolutional
from hidistill.discriminators.matching import matched_width, parameters
from hidistill.discriminators.per_token import PerToken
from hidistill.discriminators.pooled import Pooled

CHANNELS = (384, 384, 384)


@pytest.mark.parametrize("build", [Pooled, PerToken, Convolutional])
def test_heads_of_another_kind_get_the_size_of_awd(build):
    """As near as one unit of width allows, and nearer than a twentieth."""
    target = parameters(Adaptive(CHANNELS))
    width = matched_width(lambda w: build(CHANNELS, width=w), target)
    sizes = [abs(parameters(build(CHANNELS, width=w)) - target) for w in (width - 1, width, width + 1)]
    assert min(sizes) == sizes[1]
    assert sizes[1] < 0.05 * target


def test_a_head_matches_itself():
    assert matched_width(lambda w: Adaptive((32, 48), width=w), parameters(Adaptive((32, 48), width=17))) == 17


def test_parameters_by_hand():
    """Normalization 2 x 5, value 5 x 3 + 3, normalization 2 x 3, hidden 3 x 3 + 3, verdict 3 + 1."""
    assert parameters(Pooled((5,), width=3)) == 10 + 18 + 6 + 12 + 4


def test_matching_draws_nothing():
    before = torch.random.get_rng_state()
    matched_width(lambda w: Pooled((16,), width=w), 1000)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("target", [3, 10**9])
def test_a_size_out_of_reach_is_refused(target):
    with pytest.raises(ValueError, match="give the size of a head"):
        matched_width(lambda w: Pooled((16,), width=w), target, widest=256)
