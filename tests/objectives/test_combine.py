from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.discriminators.per_token import PerToken
from hidistill.guidance import Guided
from hidistill.objectives.adversarial import Fool, Hinge, Softplus, TellApart
from hidistill.objectives.combine import Handover, OnGenerated, OnNoised, OnSamples, Sum
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.objectives.meanflow import MeanFlow
from hidistill.objectives.regression import Paired, Regression, stored
from hidistill.path import interpolate
from hidistill.share import Share, holding
from hidistill.teachers.dit import DiT, Size
from hidistill.times import Uniform
from hidistill.train.loop import steps
from hidistill.train.stage import Stage, Update
from hidistill.types import Batch, Loss, Rollout

SHAPE = (5, 2, 4, 4)
COND = torch.tensor([0, 1, 2, 0, 1])


@dataclass(frozen=True)
class Watched:
    """A teacher, or a student, that notes which of its methods are called."""

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

    def mean_velocity(self, x_t, *, t, r, cond):
        self.calls.append("mean_velocity")
        return self.teacher.mean_velocity(x_t, t=t, r=r, cond=cond)

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

    def forward(self, features, *, t, cond):
        return self.factor * self.discriminator(features, t=t, cond=cond)


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
    features = teacher.features(interpolate(free, noise, t), t=t, cond=COND)
    logits = discriminator(features, t=t, cond=COND)
    (-logits.mean()).backward()
    expected = size / x_0.numel() * free.grad / free.grad.square().mean().sqrt()
    torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5 * size)


def test_the_fake_score_is_passed_once_for_its_velocity_and_its_features(parts):
    """As in 2405.14867: the teacher gives its velocity alone, and DMD has the gradient that it has by itself."""
    teacher, fake, discriminator = parts
    watched, followed, x_0 = Watched(teacher), Watched(fake), torch.randn(SHAPE)
    terms = {"dmd": DMD(followed), "gan": Fool(discriminator)}
    both = gradient(OnNoised(watched, terms=terms, feature_gradient=0.2, features_of=followed), x_0)
    assert (watched.calls, followed.calls) == (["velocity"], ["probe"])
    alone = gradient(OnNoised(teacher, terms={"dmd": DMD(fake)}), x_0)
    fooling = gradient(OnNoised(fake, terms={"gan": Fool(discriminator)}, feature_gradient=0.2), x_0)
    torch.testing.assert_close(both, alone + fooling)
    assert fooling.abs().max() > 1e-4


def test_another_fake_score_than_that_of_the_features_makes_its_own_pass(parts):
    teacher, fake, _ = parts
    other, x_0 = Watched(network()), torch.randn(SHAPE)
    mine = gradient(OnNoised(teacher, terms={"dmd": DMD(other)}, features_of=fake), x_0)
    assert other.calls == ["velocity"]
    torch.testing.assert_close(mine, gradient(OnNoised(teacher, terms={"dmd": DMD(other.teacher)}), x_0))


def test_the_judges_see_the_features_that_were_asked_for_beside_the_teachers_velocity(parts):
    teacher, fake, _ = parts
    keep, x_0, real = Keep(), torch.randn(SHAPE), torch.randn(SHAPE)
    OnNoised(teacher, terms={"keep": keep}, features_of=fake)(Rollout(real, x_0, COND))
    (noised,) = keep.seen
    at = {"t": noised.t, "cond": COND}
    torch.testing.assert_close(noised.probe.features, fake.features(noised.x_t, **at))
    torch.testing.assert_close(noised.probe.velocity, teacher.velocity(noised.x_t, **at))
    torch.testing.assert_close(noised.velocity(fake), fake.velocity(noised.x_t, **at))
    torch.testing.assert_close(noised.velocity(teacher), noised.probe.velocity)
    assert noised.real is real


def test_the_fake_scores_features_learn_from_both_of_its_losses():
    """Through the loop: all of the fake score moves, and its trunk otherwise than by flow matching alone."""
    teacher, student, moved = network(), network().student(), []
    for critics in (("fake",), ("fake", "gan")):
        torch.manual_seed(2)
        fake = network().requires_grad_()
        head = PerToken(teacher.feature_channels, width=8)
        terms = {"fake": OnGenerated(FlowMatching(fake)), "gan": TellApart(fake, head, game=Softplus())}
        learners = [*fake.parameters(), *(head.parameters() if "gan" in critics else ())]
        objective = OnSamples(student, {name: terms[name] for name in critics}, differentiable=False)
        update = Update(objective, torch.optim.SGD(learners, lr=0.1))
        before = [weight.detach().clone() for weight in fake.parameters()]
        list(steps(Stage("refine", {"critics": update}, 1), lambda _: Batch(torch.randn(SHAPE), COND), seed=1))
        assert all(not torch.equal(old, new) for old, new in zip(before, fake.parameters(), strict=True))
        moved.append(fake)
    assert not torch.allclose(moved[0].patchify.weight, moved[1].patchify.weight, rtol=0, atol=1e-4)


def test_the_adversarial_game_alone_moves_the_student(parts):
    """As in 2403.12015: a verdict on every token, the hinge, and neither a fake score nor distribution matching."""
    teacher = parts[0].teacher
    head = PerToken(teacher.feature_channels, width=8).eval().requires_grad_(False)
    watched, student = Watched(teacher), randomized(network().student()).requires_grad_()
    judged = OnNoised(watched, terms={"gan": Fool(head, Hinge())}, feature_gradient=0.3)
    objective, batch = OnSamples(student, {"judged": judged}, differentiable=True), Batch(torch.randn(SHAPE), COND)

    def loss():
        torch.manual_seed(9)
        return objective(batch)

    before = loss()
    before.value.mean().backward()
    assert watched.calls == ["probe"]
    norm = torch.stack([weight.grad.norm() for weight in student.parameters()]).norm()
    with torch.no_grad():
        for weight in student.parameters():
            weight -= 0.01 * weight.grad / norm
    assert loss().metrics["fool_logit"] > before.metrics["fool_logit"] + 1e-4


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


def test_distribution_matching_with_pairs_is_a_sum(parts):
    """As in 2311.18828: on one batch of stored pairs, the gradient is that of both, the pairs' times a quarter."""
    teacher, fake, _ = parts
    student = randomized(network().student()).requires_grad_()
    terms = {
        "dmd": OnSamples(student, {"judged": OnNoised(teacher, terms={"dmd": DMD(fake)})}, differentiable=True),
        "pairs": Regression(student, stored),
    }
    batch = Paired(torch.randn(SHAPE), COND, noise=torch.randn(SHAPE))
    gradients, values = [], []
    for objective in (Sum(terms, {"pairs": 0.25}), *terms.values()):
        student.zero_grad()
        torch.manual_seed(4)
        loss = objective(batch)
        loss.value.mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in student.parameters()]))
        values.append(loss.value)
    torch.testing.assert_close(gradients[0], gradients[1] + 0.25 * gradients[2])
    torch.testing.assert_close(values[0], values[1] + 0.25 * values[2])
    assert min(gradient.abs().max() for gradient in gradients) > 1e-3


def test_the_guidance_of_the_real_score_is_its_own(parts):
    """Scale and interval of the judges' teacher, beside a trajectory along a teacher guided otherwise."""
    _, fake, discriminator = parts
    teacher, batch = network(), Batch(torch.randn(SHAPE), COND)
    student = randomized(network().student())
    losses = {}
    for sketched, judged in (
        (1.5, (3.0, 0.2, 0.6)),
        (1.5, (3.0, 0.0, 1.0)),
        (1.5, (5.0, 0.2, 0.6)),
        (2.5, (3.0, 0.2, 0.6)),
    ):
        keep = Keep()
        judges = {"dmd": DMD(fake), "gan": Fool(discriminator), "keep": keep}
        scale, low, high = judged
        noised = OnNoised(Guided(teacher, scale, low, high), Uniform(), judges, 0.1)
        along = MeanFlow(Guided(teacher, sketched), student, Forward())
        samples = OnSamples(student, {"judged": noised}, differentiable=True)
        torch.manual_seed(6)
        losses[sketched, judged] = Sum({"samples": samples, "trajectory": along})(batch).metrics
        (seen,) = keep.seen
        plain, null = (teacher.velocity(seen.x_t, t=seen.t, cond=cond) for cond in (COND, torch.full_like(COND, 2)))
        inside = ((seen.t >= low) & (seen.t <= high)).reshape(-1, 1, 1, 1)
        expected = torch.where(inside, null + scale * (plain - null), plain)
        torch.testing.assert_close(seen.probe.velocity, expected)
        assert inside.any()
        assert inside.all() == (high == 1.0)
    first, everywhere, stronger, otherwise = losses.values()
    for other in (everywhere, stronger):
        assert torch.equal(first["mse"], other["mse"])
        assert not torch.allclose(first["dmd"], other["dmd"], rtol=1e-4)
        assert torch.equal(first["fool_logit"], other["fool_logit"])
    assert torch.equal(first["samples"], otherwise["samples"])
    assert not torch.allclose(first["mse"], otherwise["mse"], rtol=1e-3)


def test_terms_of_the_noised_samples_are_weighted(parts):
    terms = {"a": Keep(size=2.0), "b": Keep(size=5.0)}
    x_0 = torch.randn(SHAPE)
    loss = OnNoised(parts[0], terms=terms, weights={"b": 0.1})(Rollout(x_0, x_0, COND))
    torch.testing.assert_close(loss.value, torch.full((5,), 2.5))


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
    with pytest.raises(ValueError, match=r"\['other'\]; the terms are \['keep'\]"):
        OnNoised(teacher, terms=keep, weights={"other": 1.0})


class Same:
    """A law of times, or of noise, that always draws the same."""

    def __init__(self, value):
        self.value = value

    def sample(self, like):
        return self.value[: len(like)]

    def __call__(self, like):
        return self.value[: len(like)]


def test_critics_lose_the_same_on_what_the_students_update_left(parts):
    """Its samples, and the teacher's pass of them: neither is made again, and the losses are those of an own draw."""
    teacher, fake, discriminator = parts
    watched, student = Watched(teacher), Watched(randomized(network().student()))
    t, noise = 0.1 + 0.8 * torch.rand(SHAPE[0]), torch.randn(2 * SHAPE[0], *SHAPE[1:])
    start, late, law = Same(torch.randn(SHAPE)), Same(noise[SHAPE[0] :]), Same(t)
    batch, losses = Batch(torch.randn(SHAPE), COND, step=3), []
    for handover in (None, Handover()):
        judged = OnNoised(watched, law, {"gan": Fool(discriminator)}, 0.3, noise=late, handover=handover)
        OnSamples(student, {"judged": judged}, differentiable=True, noise=start, handover=handover)(batch)
        watched.calls.clear()
        student.calls.clear()
        game = TellApart(watched, discriminator, law, penalty=0.5, noise=Same(noise))
        terms = {"fake": OnGenerated(FlowMatching(fake, law, noise=late)), "gan": game}
        torch.manual_seed(2)  # of the penalty's direction
        losses.append(OnSamples(student, terms, differentiable=False, noise=start, handover=handover)(batch))
        assert watched.calls == ["features"]
        assert student.calls == ([] if handover else ["mean_velocity"])
    torch.testing.assert_close(losses[1].value, losses[0].value)
    torch.testing.assert_close(losses[1].metrics, losses[0].metrics)


def test_what_is_left_is_taken_once_and_in_its_own_step():
    handover, rollout = Handover(), Rollout(torch.zeros(SHAPE), torch.ones(SHAPE, requires_grad=True), COND, step=4)
    handover.leave(rollout)
    with holding(Share(1, 2)):
        assert handover.take(4) is None  # other rows
    taken = handover.take(4)
    assert torch.equal(taken.generated, rollout.generated)
    assert not taken.generated.requires_grad
    assert handover.take(4) is None
    handover.leave(rollout)
    assert handover.take(5) is None
    assert handover.take(4) is None
