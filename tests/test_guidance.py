import pytest
import torch
from torch import nn

from hidistill.guidance import Guided
from hidistill.teachers.dit import DiT
from hidistill.teachers.mixture import Mixture
from hidistill.types import Probe, Teacher

LABELS = torch.tensor([0, 1, 1, 0, 1])
T = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95])


def mixture():
    means = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)
    return Mixture(means, torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64), classes=[[0], [1, 2]])


def dit():
    net = DiT(image_size=4, channels=1, classes=2, patch=2, size="mini").requires_grad_(False)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    return net


class Described:
    """A mixture conditioned by a mapping."""

    def __init__(self, teacher):
        self.teacher = teacher
        self.feature_channels = teacher.feature_channels

    def velocity(self, x_t, *, t, cond):
        return self.teacher.velocity(x_t + cond["shift"], t=t, cond=cond["label"])

    def features(self, x_t, *, t, cond):
        return self.teacher.features(x_t + cond["shift"], t=t, cond=cond["label"])

    def probe(self, x_t, *, t, cond):
        return Probe(self.velocity(x_t, t=t, cond=cond), self.features(x_t, t=t, cond=cond))

    def null(self, cond):
        return {"label": self.teacher.null(cond["label"]), "shift": torch.zeros_like(cond["shift"])}


def cases():
    points = torch.randn(5, 2, dtype=torch.float64)
    shift = torch.randn(5, 1, dtype=torch.float64)
    return {
        "mixture": (mixture(), points, T.double(), LABELS),
        "mapping": (Described(mixture()), points, T.double(), {"label": LABELS, "shift": shift}),
        "dit": (dit().double(), torch.randn(5, 1, 4, 4, dtype=torch.float64), T.double(), LABELS),
    }


@pytest.fixture(params=["mixture", "mapping", "dit"])
def case(request):
    return cases()[request.param]


def by_hand(teacher, x_t, *, t, cond, scale, low, high):
    conditional = teacher.velocity(x_t, t=t, cond=cond)
    null = teacher.velocity(x_t, t=t, cond=teacher.null(cond))
    factor = torch.where((t >= low) & (t <= high), scale, 1.0).reshape(-1, *([1] * (x_t.ndim - 1))).to(x_t.dtype)
    return null + factor * (conditional - null)


INTERVALS = [(0.0, 1.0), (0.1, 0.6), (0.0, 0.2), (0.96, 1.0)]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_velocity_is_two_passes_combined_inside_the_interval(case, scale, low, high):
    teacher, x_t, t, cond = case
    expected = by_hand(teacher, x_t, t=t, cond=cond, scale=scale, low=low, high=high)
    guided = Guided(teacher, scale, low, high)
    torch.testing.assert_close(guided.velocity(x_t, t=t, cond=cond), expected)
    torch.testing.assert_close(guided.probe(x_t, t=t, cond=cond).velocity, expected)
    torch.testing.assert_close(guided.probe(x_t.clone().requires_grad_(), t=t, cond=cond).velocity, expected)


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_channels_behind_the_guided_ones_stay_conditional(case, low, high):
    teacher, x_t, t, cond = case
    everything = by_hand(teacher, x_t, t=t, cond=cond, scale=2.5, low=low, high=high)
    conditional = teacher.velocity(x_t, t=t, cond=cond)
    expected = torch.cat([everything[:, :1], conditional[:, 1:]], 1)
    guided = Guided(teacher, 2.5, low, high, channels=1)
    for given in (x_t, x_t.clone().requires_grad_()):
        torch.testing.assert_close(guided.probe(given, t=t, cond=cond).velocity, expected)
    torch.testing.assert_close(guided.velocity(x_t, t=t, cond=cond), expected)
    torch.testing.assert_close(
        Guided(teacher, 2.5, low, high, channels=x_t.shape[1]).velocity(x_t, t=t, cond=cond), everything
    )


@pytest.mark.parametrize("channels", [0, -1])
def test_guidance_of_no_channels_is_refused(channels):
    with pytest.raises(ValueError, match=r"needs 1 channel or more; use None"):
        Guided(mixture(), 2.0, channels=channels)


def test_guidance_of_more_channels_than_there_are_is_refused():
    teacher, x_t, t, cond = cases()["mixture"]
    guided = Guided(teacher, 2.0, channels=3)
    with pytest.raises(ValueError, match=r"met points of 2 channels"):
        guided.velocity(x_t, t=t, cond=cond)


def test_scale_0_is_the_null_class(case):
    teacher, x_t, t, cond = case
    null = teacher.velocity(x_t, t=t, cond=teacher.null(cond))
    torch.testing.assert_close(Guided(teacher, 0.0).velocity(x_t, t=t, cond=cond), null)


@pytest.mark.parametrize(
    ("scale", "low", "high", "rows"), [(1.0, 0.0, 1.0, 5), (3.0, 0.0, 1.0, 10), (3.0, 0.1, 0.6, 7)]
)
def test_one_call_and_no_more_rows_than_needed(scale, low, high, rows):
    net, calls = dit(), []
    net.patchify.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    guided, x_t = Guided(net, scale, low, high), torch.randn(5, 1, 4, 4)
    guided.velocity(x_t, t=T, cond=LABELS)
    guided.probe(x_t, t=T, cond=LABELS)
    assert calls == [rows, rows]
    guided.velocity(x_t, t=torch.full((5,), 0.99), cond=LABELS)
    assert calls[2] == (10 if (scale, high) == (3.0, 1.0) else 5)


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_probe_keeps_the_graph_of_the_conditional_features_alone(low, high):
    net, x_t = dit(), torch.randn(5, 1, 4, 4, requires_grad=True)
    velocity, features = Guided(net, 2.0, low, high).probe(x_t, t=T, cond=LABELS)
    assert not velocity.requires_grad
    plain = net.features(x_t, t=T, cond=LABELS)
    weights = [torch.randn_like(layer) for layer in plain]
    gradients = [
        torch.autograd.grad(sum((w * layer).sum() for w, layer in zip(weights, layers, strict=True)), x_t)[0]
        for layers in (features, plain)
    ]
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_the_null_pass_of_a_probe_with_gradient_keeps_no_graph():
    net, graphs = dit(), []
    net.patchify.register_forward_hook(
        lambda _module, _inputs, output: graphs.append((len(output), output.requires_grad))
    )
    Guided(net, 2.0).probe(torch.randn(5, 1, 4, 4, requires_grad=True), t=T, cond=LABELS)
    assert graphs == [(5, True), (5, False)]


def test_probe_never_lets_gradient_into_a_velocity_even_when_the_teacher_learns():
    net = dit().requires_grad_(True)
    for scale in (1.0, 2.0):
        assert not Guided(net, scale).probe(torch.randn(5, 1, 4, 4), t=T, cond=LABELS).velocity.requires_grad


def test_guided_is_a_teacher_with_the_conditional_features(case):
    teacher, x_t, t, cond = case
    guided = Guided(teacher, 3.0)
    assert isinstance(guided, Teacher)
    assert guided.feature_channels == teacher.feature_channels
    expected = teacher.features(x_t, t=t, cond=cond)
    for layers in (guided.features(x_t, t=t, cond=cond), guided.probe(x_t, t=t, cond=cond).features):
        assert len(layers) == len(expected)
        for layer, own in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer, own)


def test_guided_twice_multiplies_what_is_added():
    """g_2(g_1) with the null class of the inner one equal to the teacher's: scales multiply."""
    teacher, x_t, t, cond = cases()["mixture"]
    twice = Guided(Guided(teacher, 2.0), 1.5).velocity(x_t, t=t, cond=cond)
    torch.testing.assert_close(twice, Guided(teacher, 3.0).velocity(x_t, t=t, cond=cond))


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(ValueError, match=r"finite number >= 0; use 0"):
        Guided(mixture(), scale)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.8, 0.2)])
def test_impossible_intervals_are_refused(low, high):
    with pytest.raises(ValueError, match=r"0 <= low < high <= 1"):
        Guided(mixture(), 2.0, low, high)
