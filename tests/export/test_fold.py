"""Students at t = 1, r = 0, in their teachers' own architectures."""

import pytest
import torch
from randomized import randomized
from small_transformers import FAMILIES as TRANSFORMERS
from small_transformers import dit
from small_unets import FAMILIES as UNETS

from hidistill.export.fold import fold, interval
from hidistill.foreign.lora import low_rank
from hidistill.foreign.network import FlowMap
from hidistill.sampling import jump

FAMILIES = TRANSFORMERS | UNETS
NEAR = 3e-7
"""In float64, parts of which diffusers computes in float32: root mean squares, rotations, SANA's attention."""


def learned(network, degree=None):
    student = FlowMap(network, degree=degree)
    randomized(student.interval)
    for name, parameter in network.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return student


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fold_is_the_student_at_one_and_zero_whatever_time_it_is_fed(name):
    given = FAMILIES[name]
    student, z = learned(given["teacher"](), degree=8).double(), torch.randn(5, *given["shape"], dtype=torch.float64)
    cond = given["cond"]() if "cond" in given else torch.tensor([0, 1, 0, 1, 1])
    if not isinstance(cond, torch.Tensor):
        cond = {key: value.double() if value.is_floating_point() else value for key, value in cond.items()}
    folded, ours = fold(student), jump(student, z, cond=cond)
    assert (folded(z, cond) - ours).abs().max() < NEAR * ours.abs().max()
    if getattr(folded.net.config, "time_embedding_type", "") != "fourier":  # which divides by it
        folded.time = 3.0
        assert (folded(z, cond) - ours).abs().max() < NEAR * ours.abs().max()


def test_the_interval_says_what_the_network_is_told_between_two_times():
    student = learned(dit(), degree=8)
    late, early = interval(student, t=0.8, r=0.3), interval(student, t=0.8, r=0.1)
    assert len(late.embeddings) == 4
    assert (late.skip, late.gain, late.scale, late.time) == (early.skip, early.gain, early.scale, early.time)
    change = student.interval(torch.tensor([0.5])) - student.interval(torch.tensor([0.7]))
    for one, other in zip(late.embeddings, early.embeddings, strict=True):
        torch.testing.assert_close(one - other, change.squeeze(0), rtol=1e-4, atol=1e-5)


def test_adapters_are_merged_into_a_copy():
    teacher = dit()
    student = learned(low_rank(teacher, rank=2))
    z, cond = torch.randn(3, 4, 4, 4), torch.tensor([0, 1, 0])
    folded = fold(student)
    assert not any("lora" in key for key in folded.net.state_dict())
    ours = jump(student, z, cond=cond)
    assert (folded(z, cond) - ours).abs().max() < 1e-5 * ours.abs().max()
    assert (jump(FlowMap(teacher), z, cond=cond) - ours).abs().max() > 0.01 * ours.abs().max()


def test_what_cannot_hold_a_constant_is_refused():
    network = dit()
    network.net.transformer_blocks[1].norm1.emb.timestep_embedder.post_act = torch.nn.SiLU()
    with pytest.raises(ValueError, match="a constant cannot be written there"):
        fold(FlowMap(network))
