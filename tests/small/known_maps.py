"""A mixture whose flow map is known, maps that are bent away from it, and short trainings that approach it."""

import torch
from torch import nn

from hidistill.sampling import jump
from hidistill.teachers.mixture import ExactFlowMap, Mixture
from hidistill.teachers.mlp import MLP
from hidistill.types import Batch

T = torch.tensor([0.25, 0.4, 0.55, 0.7, 0.9, 1.0], dtype=torch.float64)
COND = torch.tensor([0, 1, 2, 0, 1, 2])


def mixture(dtype=torch.float64):
    """Three components; class 0 is the first, class 1 the others, class 2 all."""
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.5]], dtype=dtype)
    return Mixture(means, torch.tensor([0.3, 0.5, 0.4], dtype=dtype), classes=[[0], [1, 2]])


def sample(count=1):
    """A batch of the mixture's data, `count` rows for each of `T`, with noise."""
    cond = COND.repeat(count)
    x = mixture().sample(cond)
    return Batch(x, cond), torch.randn_like(x)


class Bent(nn.Module):
    """A flow map plus `bend (1/2 + t - r) tanh(x_t)`, with a bend per row, whose gradient is then a row's own."""

    def __init__(self, student, bend):
        super().__init__()
        self.student, self.bend = student, nn.Parameter(bend)

    def mean_velocity(self, x_t, *, t, r, cond):
        wrong = (self.bend * (0.5 + t - r))[:, None] * x_t.tanh()
        return self.student.mean_velocity(x_t, t=t, r=r, cond=cond) + wrong


def bent(bend, *, field=None, steps=24, rows=6):
    """The exact flow map of the field (of `mixture()` if None), bent."""
    exact = ExactFlowMap(mixture() if field is None else field, steps)
    return Bent(exact, torch.full((rows,), bend, dtype=torch.float64))


def order(errors):
    """The order of convergence of errors at steps that are halved, from the last two."""
    return float(torch.as_tensor(errors[-2] / errors[-1]).log2())


def short_training(build, *, steps, student=None):
    """Distances of one-step samples to the exact ends, before and after `steps` of Adam down `build(teacher, student)`.

    The student begins as a network of its own and not as the teacher: one that knows nothing.
    """
    torch.manual_seed(0)
    teacher = mixture(torch.float32)
    student = MLP(dim=2, classes=2, width=32, depth=2).student() if student is None else student
    noise, labels = torch.randn(500, 2), torch.arange(500) % 2
    ends = jump(teacher.student(steps=30), noise, cond=labels)
    objective, optimizer = build(teacher, student), torch.optim.Adam(student.parameters(), lr=5e-3)

    def distance():
        with torch.no_grad():
            return float((jump(student, noise, cond=labels) - ends).norm(dim=1).mean())

    before = distance()
    for step in range(steps):
        cond = torch.randint(2, (128,))
        loss = objective(Batch(teacher.sample(cond), cond, step)).value.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, distance()
