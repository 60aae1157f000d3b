from itertools import product

import pytest
import torch
from torch import nn

from hidistill.objectives.flow_matching import FlowMatching
from hidistill.path import per_row
from hidistill.teachers.mixture import Mixture
from hidistill.times import Uniform
from hidistill.types import Batch

DOUBLE = torch.float64


class Shifted(nn.Module):
    """A field and a perturbation of it, constant and linear in x_t; none at start."""

    def __init__(self, field):
        super().__init__()
        self.field = field
        self.shift, self.slope = (nn.Parameter(torch.zeros(2, dtype=DOUBLE)) for _ in range(2))

    def velocity(self, x_t, *, t, cond):
        return self.field.velocity(x_t, t=t, cond=cond) + self.shift + self.slope * x_t


class Remembering:
    """A field that keeps the conditions it was given."""

    def velocity(self, x_t, *, t, cond):
        self.cond = cond
        return x_t


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9, 1.0])
def test_the_exact_velocity_is_the_minimum_and_its_loss_the_conditional_variance(time):
    """For x_0 = mean + std z and noise e, Var(noise - x_0 | x_t) = std^2 / ((1 - t)^2 std^2 + t^2) per component.

    z and e run through {-1, 1}^2, over which averages of quadratic functions are those over the normal law.
    """
    points = torch.tensor(list(product([-1.0, 1.0], repeat=4)), dtype=DOUBLE)
    mean, std = torch.tensor([0.4, -1.0], dtype=DOUBLE), torch.tensor([0.5, 0.9], dtype=DOUBLE)
    field = Shifted(Mixture(mean[None], std[None]))
    batch = Batch(mean + std * points[:, :2], torch.zeros(16, dtype=torch.long))
    t = torch.full((16,), time, dtype=DOUBLE)
    value = FlowMatching(field).at(batch, t=t, noise=points[:, 2:]).value.mean()
    variance = std**2 / ((1 - time) ** 2 * std**2 + time**2)
    torch.testing.assert_close(value, variance.mean().float())
    value.backward()
    for weight in field.parameters():
        assert weight.grad.abs().max() < 1e-6
    with torch.no_grad():
        field.shift += 0.1
        assert FlowMatching(field).at(batch, t=t, noise=points[:, 2:]).value.mean() > value + 0.009


@pytest.mark.parametrize("named", [False, True])
def test_a_share_of_the_samples_learns_without_its_condition(named):
    """The others keep theirs; a condition may be a mapping of tensors of any shape."""
    n, field = 8_000, Remembering()
    labels, words = torch.arange(n) % 7, torch.randn(n, 3, 2)

    def null(cond):
        return {"label": cond["label"] * 0 + 9, "words": cond["words"] * 0} if named else cond * 0 + 9

    batch = Batch(torch.randn(n, 2), {"label": labels, "words": words} if named else labels)
    FlowMatching(field, null=null, drop=0.3)(batch)
    seen = field.cond["label"] if named else field.cond
    dropped = seen == 9
    assert abs(dropped.float().mean() - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5
    assert torch.equal(seen[~dropped], labels[~dropped])
    if named:
        assert torch.equal(field.cond["words"], torch.where(per_row(dropped, words), 0.0, words))


def test_without_a_share_every_condition_is_kept():
    field, labels = Remembering(), torch.arange(50)
    FlowMatching(field, null=lambda cond: cond * 0 - 1)(Batch(torch.randn(50, 2), labels))
    assert torch.equal(field.cond, labels)


def test_dropping_without_a_null_condition_is_refused():
    with pytest.raises(ValueError, match=r"needs null=.*teacher\.null"):
        FlowMatching(Remembering(), drop=0.1)


@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_an_impossible_share_is_refused(drop):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        FlowMatching(Remembering(), null=lambda cond: cond, drop=drop)


def test_another_field_as_target_leaves_no_loss_for_itself_and_its_distance_for_others():
    teacher = Mixture(torch.tensor([[1.0, -0.5]]), torch.tensor([[0.4, 0.7]]))
    batch = Batch(torch.randn(6, 2), torch.zeros(6, dtype=torch.long))
    assert FlowMatching(teacher, Uniform(), teacher=teacher)(batch).value.max() < 1e-10
    t, noise = torch.linspace(0.1, 0.9, 6), torch.randn(6, 2)
    other = Mixture(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    loss = FlowMatching(other, Uniform(), teacher=teacher).at(batch, t=t, noise=noise).value
    x_t = (1 - t[:, None]) * batch.x + t[:, None] * noise
    fields = [field.velocity(x_t, t=t, cond=batch.cond) for field in (other, teacher)]
    torch.testing.assert_close(loss, (fields[0] - fields[1]).square().mean(1))
