import sys

import pytest
import torch
from randomized import randomized

from hidistill.guidance import Guided
from hidistill.inference import (
    CompiledStudent,
    LowPrecision,
    LowPrecisionField,
    Replayed,
    casting_anew,
    lowered,
    quantized,
    signature,
)
from hidistill.sampling import jump
from hidistill.teachers.dit import DiT
from hidistill.types import Student, Teacher, VelocityField

T, LABELS = torch.tensor([0.913, 0.554, 0.313]), torch.arange(3)


def net():
    torch.manual_seed(0)
    made = DiT(image_size=8, channels=2, classes=3, patch=2, size="mini", pixel_channels=8)
    return randomized(made).requires_grad_(False)


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def test_they_play_the_roles():
    assert isinstance(LowPrecision(net()), Teacher)
    assert isinstance(LowPrecisionField(net()), VelocityField)
    assert isinstance(CompiledStudent(net().student()), Student)
    assert isinstance(Replayed(net().student()), Student)


@pytest.mark.parametrize("halved", [False, True])
def test_low_precision_answers_nearly_the_same_in_the_precision_of_its_points(halved):
    teacher = net()
    low = LowPrecision(lowered(teacher) if halved else teacher)
    x_t = torch.randn(3, 2, 8, 8)
    exact, close = teacher.probe(x_t, t=T, cond=LABELS), low.probe(x_t, t=T, cond=LABELS)
    assert close.velocity.dtype == torch.float32
    assert 0 < relative(close.velocity, exact.velocity) < 0.02
    assert torch.equal(close.velocity, low.velocity(x_t, t=T, cond=LABELS))
    for layer, other, alone in zip(
        close.features, exact.features, low.features(x_t, t=T, cond=LABELS), strict=True
    ):  # fmt: skip
        assert layer.dtype == torch.float32
        assert relative(layer, other) < 0.02
        assert torch.equal(layer, alone)
    assert torch.equal(low.null(LABELS), teacher.null(LABELS))
    assert low.feature_channels == teacher.feature_channels


def test_a_lowered_copy_keeps_frequencies_and_embeddings_and_leaves_the_teacher_alone():
    teacher = net()
    copy = lowered(teacher)
    assert torch.equal(copy.time.frequencies, teacher.time.frequencies)
    assert copy.label.weight.dtype == torch.float32
    assert copy.patchify.weight.dtype == copy.pixels.first.weight.dtype == torch.bfloat16
    assert all(weight.dtype == torch.float32 for weight in teacher.parameters())


def test_features_in_low_precision_carry_the_gradient():
    teacher, x_t = net(), torch.randn(3, 2, 8, 8)

    def gradient(network):
        x = x_t.clone().requires_grad_()
        probe = Guided(network, 1.5).probe(x, t=T, cond=LABELS)
        return torch.autograd.grad(sum(layer.square().mean() for layer in probe.features), x)[0]

    assert relative(gradient(LowPrecision(teacher)), gradient(teacher)) < 0.03


def test_a_field_that_learns_is_seen_as_it_is():
    teacher, x_t = net(), torch.randn(3, 2, 8, 8)
    low = LowPrecisionField(teacher)
    before = low.velocity(x_t, t=T, cond=LABELS)
    with torch.no_grad():
        teacher.unpatchify.weight.mul_(2)
        teacher.pixels.last.weight.mul_(2)
    assert relative(low.velocity(x_t, t=T, cond=LABELS), before) > 0.1


def test_a_graph_for_gpus_is_refused_elsewhere():
    student = Replayed(net().student())
    with pytest.raises(ValueError, match="points on cpu came to a CUDA graph; move them to a GPU"):
        jump(student, torch.randn(3, 2, 8, 8), cond=LABELS)


def test_a_pass_that_is_recorded_casts_its_weights_itself():
    """Autocast remembers what it cast of a weight that requires a gradient, and goes on taking that once it moved."""
    student, x_t = net().student().requires_grad_(True), torch.randn(3, 2, 8, 8)
    at = {"t": T, "r": 0.5 * T, "cond": LABELS}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = student.mean_velocity(x_t, **at)
        student.net.unpatchify.weight.mul_(2)
        student.net.pixels.join.weight.mul_(2)
        with casting_anew("cpu"):
            recorded = student.mean_velocity(x_t, **at)
            assert torch.get_autocast_dtype("cpu") == torch.bfloat16
            assert torch.is_autocast_enabled("cpu")
        torch.clear_autocast_cache()
        expected = student.mean_velocity(x_t, **at)
    assert torch.equal(recorded, expected)
    assert not torch.equal(recorded, before)


def test_casting_anew_casts_nothing_where_autocast_is_off():
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    with casting_anew("cpu"):
        assert layer(x).dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")


def test_a_recording_is_told_apart_by_shape_type_and_autocast():
    x, y = torch.zeros(2, 3), torch.zeros(2)
    plain = signature([x, y])
    with torch.autocast("cpu", torch.bfloat16):
        low = signature([x, y])
    with torch.autocast("cpu", torch.float16):
        half = signature([x, y])
    others = [low, half, signature([x.double(), y]), signature([x[:1], y])]
    assert len({plain, *others}) == 5
    assert signature([x + 1, y]) == plain


def test_without_torchao_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match=r"pip install 'hidistill\[quantized\]'"):
        quantized(net(), "int8")


def test_weights_of_other_types_are_refused():
    with pytest.raises(ValueError, match="weights='int4': those of 8 bits are 'int8' and 'float8'"):
        quantized(net(), "int4")


@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_weights_of_8_bits_answer_nearly_the_same(weights):
    pytest.importorskip("torchao", exc_type=ImportError)
    student, x_t = net().student().requires_grad_(False), torch.randn(3, 2, 8, 8)
    with torch.no_grad():
        student.net.patchify.weight[0] = 0
    at = {"t": T, "r": 0.5 * T, "cond": LABELS}
    apart = relative(quantized(student, weights).mean_velocity(x_t, **at), student.mean_velocity(x_t, **at))
    assert 0 < apart < 0.05


@pytest.mark.gpu
def test_a_replayed_pass_is_the_pass():
    student = net().student().cuda()
    replayed = Replayed(student)
    for seed in range(3):
        torch.manual_seed(seed)
        noise, labels = torch.randn(3, 2, 8, 8, device="cuda"), LABELS.roll(seed).cuda()
        for times in ((1.0, 0.0), (1.0, 0.5, 0.0)):
            torch.testing.assert_close(
                jump(replayed, noise, cond=labels, times=times), jump(student, noise, cond=labels, times=times)
            )
    assert len(replayed.recorded) == 1


@pytest.mark.gpu
def test_a_replayed_pass_under_autocast_sees_weights_move():
    student = net().student().cuda().requires_grad_(True)
    replayed, x_t = Replayed(student), torch.randn(3, 2, 8, 8, device="cuda")
    at = {"t": T.cuda(), "r": 0.5 * T.cuda(), "cond": LABELS.cuda()}
    exact = replayed.mean_velocity(x_t, **at)
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            torch.testing.assert_close(replayed.mean_velocity(x_t, **at), student.mean_velocity(x_t, **at))
        with torch.no_grad():
            student.net.unpatchify.weight.mul_(2)
    assert len(replayed.recorded) == 2
    assert not torch.equal(replayed.mean_velocity(x_t, **at), exact)
