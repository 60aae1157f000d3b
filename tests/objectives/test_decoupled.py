import pytest
import torch
from torch import nn

from hidistill.guidance import Guided
from hidistill.objectives.combine import OnNoised, OnSamples
from hidistill.objectives.decoupled import Augmentation
from hidistill.objectives.dmd import DMD
from hidistill.path import interpolate
from hidistill.teachers.dit import DiT, Size
from hidistill.times import Uniform
from hidistill.types import Batch, Noised, Probe, Rollout

SHAPE = (5, 2, 4, 4)
COND = torch.tensor([0, 1, 0, 1, 0])


def network():
    net = DiT(image_size=4, channels=2, patch=2, classes=2, size=Size(16, 2, 2))
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.3)
    return net.eval().requires_grad_(False)


def noised(teacher, x_0, noise, t):
    x_t = interpolate(x_0, noise, t)
    velocity = teacher.velocity(x_t, t=t, cond=COND).detach()
    return Noised(x_0, x_t, t, COND, Probe(velocity, []), known=[(teacher, velocity)])


def direction(objective, sample):
    """What arrives at x_0, without the mean over components and the divisor."""
    (gradient,) = torch.autograd.grad(objective(sample).value.sum(), sample.x_0, retain_graph=True)
    real = sample.x_t - sample.t[:, None, None, None] * sample.probe.velocity
    divisor = (sample.x_0 - real).abs().mean((1, 2, 3), keepdim=True)
    return (32 * gradient * divisor).detach()


def test_matching_and_augmentation_add_up_to_matching_with_a_guided_real_score():
    """At common times and noise, before each is divided by its own size."""
    teacher, fake = network(), network()
    x_0, noise, t = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE), torch.linspace(0.1, 0.9, 5)
    plain, guided = noised(teacher, x_0, noise, t), noised(Guided(teacher, 3.5), x_0, noise, t)
    apart = direction(DMD(fake), plain) + direction(Augmentation(teacher, 3.5), plain)
    torch.testing.assert_close(apart, direction(DMD(fake), guided), rtol=1e-3, atol=1e-4)


def test_a_scale_of_one_adds_nothing():
    x_0 = torch.randn(SHAPE, requires_grad=True)
    teacher = network()
    loss = Augmentation(teacher, 1.0)(noised(teacher, x_0, torch.randn(SHAPE), torch.full((5,), 0.5)))
    loss.value.sum().backward()
    assert x_0.grad.abs().max() < 1e-7
    assert loss.metrics["augmentation_gradient"] == 0


def test_descending_moves_samples_from_the_null_condition_to_theirs():
    """Of a network whose velocity is its label: from label 2, the null class, to label 0 or 1."""

    class Label:
        feature_channels = ()

        def features(self, x_t, *, t, cond):
            return ()

        def probe(self, x_t, *, t, cond):
            return Probe(self.velocity(x_t, t=t, cond=cond), ())

        def velocity(self, x_t, *, t, cond):
            return cond.float()[:, None, None, None].expand_as(x_t)

        def null(self, cond):
            return torch.full_like(cond, 2)

    x_0, t, label = torch.randn(SHAPE, requires_grad=True), torch.full((5,), 0.5), Label()
    Augmentation(label, 3.0)(noised(label, x_0, torch.randn(SHAPE), t)).value.sum().backward()
    # Denoised samples are x_t - t velocity: the smaller label's are larger, so the loss falls as samples rise.
    assert (x_0.grad < 0).all()


def test_both_parts_have_times_of_their_own():
    """Two bridges in one draw of the student: matching over all times, augmentation near data."""
    teacher, fake = network(), network()
    student = network().student().requires_grad_()
    seen = {}

    class Noting:
        def __init__(self, name, objective):
            self.name, self.objective = name, objective

        def __call__(self, sample):
            seen[self.name] = sample
            return self.objective(sample)

    terms = {
        "matching": OnNoised(teacher, Uniform(0.5, 0.98), {"dmd": Noting("dmd", DMD(fake))}),
        "guidance": OnNoised(teacher, Uniform(0.02, 0.5), {"ca": Noting("ca", Augmentation(teacher, 4.0))}),
    }
    loss = OnSamples(student, terms, differentiable=True)(Batch(torch.randn(SHAPE), COND))
    loss.value.mean().backward()
    assert seen["dmd"].x_0 is seen["ca"].x_0
    assert (seen["dmd"].t >= 0.5).all()
    assert (seen["ca"].t <= 0.5).all()
    assert all(weight.grad is not None for weight in student.parameters())


@pytest.mark.parametrize("scale", [0.9, float("inf"), float("nan")])
def test_what_is_no_augmentation_is_refused(scale):
    with pytest.raises(ValueError, match="needs a finite scale >= 1"):
        Augmentation(network(), scale)


def test_a_guided_bridge_is_refused():
    """Whose guidance would count twice, silently."""
    teacher = network()
    student = network().student().requires_grad_()
    for bridge in (Guided(teacher, 1.5), network()):
        terms = {"guidance": OnNoised(bridge, terms={"ca": Augmentation(teacher, 4.0)})}
        with pytest.raises(ValueError, match="give OnNoised the teacher that Augmentation has"):
            OnSamples(student, terms, differentiable=True)(Batch(torch.randn(SHAPE), COND))
    with pytest.raises(ValueError, match="guided at scale 1"):
        Augmentation(Guided(teacher, 1.5), 4.0)


def test_features_may_come_from_the_fake_score():
    """Then the bridge passes the teacher for its velocity alone, which is what augmentation asks for."""
    teacher, fake = network(), network()
    x_0 = torch.randn(SHAPE, requires_grad=True)
    rollout = Rollout(torch.randn(SHAPE), x_0, COND)
    torch.manual_seed(0)
    plain = OnNoised(teacher, terms={"ca": Augmentation(teacher, 4.0)})(rollout)
    torch.manual_seed(0)
    beside = OnNoised(teacher, terms={"ca": Augmentation(teacher, 4.0)}, features_of=fake)(rollout)
    torch.testing.assert_close(plain.value, beside.value)
