from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.objectives.adversarial import Fool
from hidistill.objectives.combine import OnGenerated, OnNoised, OnSamples, Sum
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.path import interpolate
from hidistill.teachers.dit import DiT, Size
from hidistill.times import Uniform
from hidistill.types import Batch, Loss, Rollout

SHAPE = (5, 2, 4, 4)
COND = torch.tensor([0, 1, 2, 0, 1])


@dataclass(frozen=True)
class Watched:
    """A teacher that notes which of its methods are called."""

    teacher: object
    calls: list[str] = field(default_factory=list)

    @property
    def feature_channels(self):
        return self.teacher.feature_channels

    def velocity(self, x_t, *, t, cond):
        self.calls.append("velocity")
        return self.teacher.velocity(x_t, t=t, cond=cond)

    def features(self, x_t, *, t, cond):
        self.calls.append("features")
        return self.teacher.features(x_t, t=t, cond=cond)

    def probe(self, x_t, *, t, cond):
        self.calls.append("probe")
        return self.teacher.probe(x_t, t=t, cond=cond)

    def null(self, cond):
        return self.teacher.null(cond)


@dataclass(frozen=True)
class Keep:
    """A judge that keeps what it saw."""

    seen: list = field(default_factory=list)
    size: float = 1.0

    def __call__(self, given):
        self.seen.append(given)
        return Loss(torch.full((SHAPE[0],), self.size), {})


class Louder(nn.Module):
    """A discriminator whose logits are multiplied by a factor."""

    def __init__(self, discriminator, factor):
        super().__init__()
        self.discriminator, self.factor = discriminator, factor

    def forward(self, features):
        return self.factor * self.discriminator(features)


def randomized(module):
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)


def network():
    return randomized(DiT(image_size=4, channels=2, patch=2, classes=2, size=Size(16, 2, 2)))


@pytest.fixture
def parts():
    teacher = network()
    discriminator = Adaptive(teacher.feature_channels, width=8).eval().requires_grad_(False)
    return Guided(teacher, 2.0), network(), discriminator


def gradient(objective, x_0, seed=7):
    """What arrives at the generated samples from the batch's mean loss."""
    torch.manual_seed(seed)
    x_0 = x_0.clone().requires_grad_()
    objective(Rollout(x_0.detach(), x_0, COND)).value.mean().backward()
    return x_0.grad


def test_the_teacher_is_passed_once(parts):
    teacher, fake, discriminator = parts
    watched = Watched(teacher)
    terms = {"dmd": DMD(fake), "gan": Fool(discriminator)}
    gradient(OnNoised(watched, terms=terms, feature_gradient=0.1), torch.randn(SHAPE))
    assert watched.calls == ["probe"]


@pytest.mark.parametrize("factor", [1.0, 100.0, 1e-3, 1e-25])
def test_the_gradient_through_the_features_has_the_size_that_was_asked_for(parts, factor):
    """And the direction of the judge's own, whatever its scale: here at fixed times and noise."""
    teacher, _, discriminator = parts
    x_0, size = torch.randn(SHAPE), 0.3
    terms = {"gan": Fool(Louder(discriminator, factor))}
    mine = gradient(OnNoised(teacher, Uniform(0.1, 0.8), terms, size), x_0)
    torch.testing.assert_close(mine.square().mean().sqrt(), torch.tensor(size / x_0.numel()), rtol=1e-4, atol=0)

    torch.manual_seed(7)
    t, noise = Uniform(0.1, 0.8).sample(x_0), torch.randn_like(x_0)
    free = x_0.clone().requires_grad_()
    logits = discriminator(teacher.features(interpolate(free, noise, t), t=t, cond=COND))
    (-logits.mean()).backward()
    expected = size / x_0.numel() * free.grad / free.grad.square().mean().sqrt()
    torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5 * size)


def test_a_blind_discriminator_sends_nothing(parts):
    teacher, _, discriminator = parts
    x_0 = torch.randn(SHAPE)
    mine = gradient(OnNoised(teacher, terms={"gan": Fool(Louder(discriminator, 0.0))}, feature_gradient=0.3), x_0)
    assert torch.equal(mine, torch.zeros_like(x_0))


def test_both_judges_gradients_add_up(parts):
    teacher, fake, discriminator = parts
    x_0, dmd, gan = torch.randn(SHAPE), {"dmd": DMD(fake)}, {"gan": Fool(discriminator)}
    alone = gradient(OnNoised(teacher, terms=dmd), x_0)
    fooling = gradient(OnNoised(teacher, terms=gan, feature_gradient=0.2), x_0)
    both = gradient(OnNoised(teacher, terms=dmd | gan, feature_gradient=0.2), x_0)
    torch.testing.assert_close(both, alone + fooling)
    assert alone.abs().max() > 1e-4
    assert fooling.abs().max() > 1e-4


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("size", [0.0, 0.1])
def test_only_a_gradient_that_is_wanted_keeps_a_graph(parts, size, guided):
    teacher, keep = parts[0] if guided else parts[0].teacher, Keep()
    x_0 = torch.randn(SHAPE, requires_grad=True)
    OnNoised(teacher, terms={"keep": keep}, feature_gradient=size)(Rollout(x_0.detach(), x_0, COND))
    (noised,) = keep.seen
    assert noised.x_0 is x_0
    assert not noised.probe.velocity.requires_grad
    assert noised.x_t.requires_grad == bool(size)
    assert all(layer.requires_grad == bool(size) for layer in noised.probe.features)


def test_the_judges_see_the_sample_at_its_time(parts):
    """x_t, velocity and features belong together."""
    teacher, keep, x_0 = parts[0], Keep(), torch.randn(SHAPE)
    OnNoised(teacher, Uniform(0.2, 0.3), {"keep": keep})(Rollout(x_0, x_0, COND))
    (noised,) = keep.seen
    assert ((noised.t >= 0.2) & (noised.t <= 0.3)).all()
    t = noised.t[:, None, None, None]
    noise = (noised.x_t - (1 - t) * x_0) / t
    assert abs(noise.mean()) < 0.4
    assert 0.7 < noise.std() < 1.3
    velocity, features = teacher.probe(noised.x_t, t=noised.t, cond=COND)
    torch.testing.assert_close(noised.probe.velocity, velocity)
    torch.testing.assert_close(noised.probe.features, features)


def test_samples_are_one_jump_from_noise_to_data():
    """`noise - u(noise, t = 1, r = 0)`: the student is asked as a flow map, not as a velocity."""
    student, keep = randomized(network().student()), Keep()
    torch.manual_seed(3)
    OnSamples(student, {"keep": keep}, differentiable=False)(Batch(torch.zeros(SHAPE), COND))
    torch.manual_seed(3)
    noise, one = torch.randn(SHAPE), torch.ones(5)
    expected = noise - student.mean_velocity(noise, t=one, r=0 * one, cond=COND)
    torch.testing.assert_close(keep.seen[0].generated, expected)
    forgetful = noise - student.mean_velocity(noise, t=one, r=one, cond=COND)
    assert (forgetful - expected).abs().max() > 0.1


def test_the_gradient_reaches_the_interval_and_all_else_of_the_student(parts):
    teacher, fake, discriminator = parts
    student = randomized(network().student()).requires_grad_()
    terms = {"judged": OnNoised(teacher, terms={"dmd": DMD(fake), "gan": Fool(discriminator)}, feature_gradient=0.1)}
    OnSamples(student, terms, differentiable=True)(Batch(torch.randn(SHAPE), COND)).value.mean().backward()
    assert all(weight.grad.abs().max() > 0 for weight in student.interval.parameters())
    assert all(weight.grad is not None for weight in student.parameters())


def test_later_starts_begin_at_noised_data():
    """Rows take the starts in turn; a start of 1 forgets the data."""
    student, keep, x = randomized(network().student()), Keep(), torch.randn(SHAPE)
    torch.manual_seed(3)
    OnSamples(student, {"keep": keep}, differentiable=False, starts=(1.0, 0.5))(Batch(x, COND))
    torch.manual_seed(3)
    noise, s = torch.randn(SHAPE), torch.tensor([1.0, 0.5, 1.0, 0.5, 1.0])
    x_s = noise.clone()
    x_s[1::2] = (x[1::2] + noise[1::2]) / 2
    u = student.mean_velocity(x_s, t=s, r=0 * s, cond=COND)
    torch.testing.assert_close(keep.seen[0].generated, x_s - s[:, None, None, None] * u)


@pytest.mark.parametrize("differentiable", [True, False])
def test_every_term_judges_the_same_samples(differentiable):
    student, first, second = randomized(network().student()).requires_grad_(), Keep(), Keep()
    batch = Batch(torch.randn(SHAPE), COND, step=4)
    OnSamples(student, {"first": first, "second": second}, differentiable=differentiable)(batch)
    assert first.seen[0].generated is second.seen[0].generated
    assert first.seen[0].generated.requires_grad == differentiable
    assert first.seen[0].real is batch.x
    assert first.seen[0].step == 4


def test_generated_samples_are_the_data_of_another_objective():
    learner, x_0 = network().requires_grad_(), torch.randn(SHAPE, requires_grad=True)
    torch.manual_seed(5)
    loss = OnGenerated(FlowMatching(learner))(Rollout(torch.zeros(SHAPE), x_0, COND))
    torch.manual_seed(5)
    torch.testing.assert_close(loss.value, FlowMatching(learner)(Batch(x_0.detach(), COND)).value)
    loss.value.mean().backward()
    assert x_0.grad is None
    assert learner.patchify.weight.grad is not None


def test_sums_are_weighted():
    batch = Batch(torch.randn(SHAPE), COND)
    loss = Sum({"a": Keep(size=2.0), "b": Keep(size=5.0)}, {"b": 0.1})(batch)
    torch.testing.assert_close(loss.value, torch.full((5,), 2.5))
    assert {name: float(value) for name, value in loss.metrics.items()} == {"a": 2.0, "b": 5.0}


def test_impossible_combinations_are_refused(parts):
    teacher, fake, _ = parts
    student, keep = fake.student(), {"keep": Keep()}
    with pytest.raises(ValueError, match=r"\['other'\]; the terms are \['keep'\]"):
        Sum(keep, {"other": 1.0})
    with pytest.raises(ValueError, match=r"\['other'\]; the terms are \['keep'\]"):
        OnSamples(student, keep, differentiable=True, weights={"other": 1.0})
    with pytest.raises(ValueError, match="no terms"):
        OnSamples(student, {}, differentiable=True)
    for starts in ((), (0.0,), (1.0, 1.1)):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
            OnSamples(student, keep, differentiable=True, starts=starts)
    with pytest.raises(ValueError, match="judges nothing"):
        OnNoised(teacher)
    with pytest.raises(ValueError, match="must not be negative"):
        OnNoised(teacher, terms=keep, feature_gradient=-0.1)
