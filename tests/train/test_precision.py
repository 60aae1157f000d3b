"""What stays in float32 under autocast to bfloat16, measured place by place; and what float32 products are made of."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.embedding import TimeEmbedding, interval_embedding
from hidistill.guidance import Guided
from hidistill.objectives.dmd import DMD
from hidistill.path import velocity_to_data
from hidistill.recipes.stages import refine, sketch
from hidistill.teachers.dit import DiT
from hidistill.train.loop import autocast
from hidistill.train.precision import products, set_products
from hidistill.types import Batch, Noised, Probe


@pytest.fixture
def net():
    """A small network whose zero layers are filled, so that its answers depend on everything."""
    net = DiT(image_size=8, channels=1, classes=3, patch=2, size="mini").requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return net


@pytest.fixture
def batch():
    return Batch(torch.randn(6, 1, 8, 8), torch.arange(6) % 3)


class Low(TorchDispatchMode):
    """Operations that made bfloat16 while nobody was inside a network."""

    def __init__(self):
        super().__init__()
        self.found, self.inside, self.within = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 for x in tree_leaves(out)):
            if self.inside:
                self.within += 1
            else:
                self.found.add(str(func))
        return out


@contextmanager
def watched(*modules):
    """Counts what happens outside of these networks, whose methods are marked while they run."""
    low = Low()

    def mark(method):
        def marked(*args, **kwargs):
            low.inside += 1
            try:
                return method(*args, **kwargs)
            finally:
                low.inside -= 1

        return marked

    names = ("velocity", "features", "probe", "mean_velocity", "forward")
    for module in modules:
        for name in names:
            if hasattr(module, name):
                setattr(module, name, mark(getattr(module, name)))
    with low:
        yield low


@pytest.mark.parametrize("make", [TimeEmbedding, interval_embedding], ids=["time", "interval"])
def test_embeddings_of_time_are_the_same_to_the_last_bit(make):
    embedding, t = make(32), torch.rand(16)
    torch.nn.init.normal_(embedding.layers[2].weight)
    plain = embedding(t)
    with autocast("bfloat16", "cpu"):
        assert torch.equal(embedding(t), plain)
        assert not torch.equal(embedding.layers(torch.randn(16, 64)).float(), plain)  # a layer alone is not in float32


def test_the_networks_answer_in_float32(net, batch):
    t = torch.rand(6)
    student = net.student()
    with autocast("bfloat16", "cpu"):
        assert net.velocity(batch.x, t=t, cond=batch.cond).dtype == torch.float32
        assert student.mean_velocity(batch.x, t=t, r=0.5 * t, cond=batch.cond).dtype == torch.float32


def test_nothing_but_the_networks_computes_in_bfloat16(net, batch):
    """Targets, losses and the normalization of DMD are made of float32 alone, in both stages."""
    student, fake = net.student().requires_grad_(False), DiT.from_config(net.config).requires_grad_(False)
    head, guided = Adaptive(net.feature_channels), Guided(net, 1.5)
    first = sketch(student, guided, steps=2, derivative=Forward())
    kept = first.updates["student"].objective
    second = refine(student, guided, fake, head, steps=2, trajectory=kept, penalty=0.1)
    for stage in (first, second):
        for update in stage.updates.values():
            with watched(net, student, fake, head) as low, autocast("bfloat16", "cpu"):
                loss = update.objective(batch)
            assert low.within > 0
            assert loss.value.dtype == torch.float32
            # What leaves a network in bfloat16 are features and logits; they are cast up at once or passed on.
            assert low.found <= {"aten.slice.Tensor", "aten.detach.default", "aten.split_with_sizes.default"}, low.found


def test_the_target_of_the_sketch_loses_nothing_to_bfloat16(net, batch):
    """From the same velocity and derivative, the target under autocast is that without, to the last bit."""
    guided, student = Guided(net, 1.5), net.student()
    objective = sketch(student, guided, steps=2, derivative=Forward()).updates["student"].objective
    t, r = torch.full((6,), 0.8), torch.full((6,), 0.1)
    with autocast("bfloat16", "cpu"), torch.no_grad():
        v = guided.velocity(batch.x, t=t, cond=batch.cond)
        du = Forward()(student, batch.x, t=t, r=r, cond=batch.cond, direction=v)
        target = objective.target(batch.x, batch, t=t, r=r, first=0)
    assert torch.equal(target, v - 0.7 * du) or (target - (v - 0.7 * du)).abs().max() < 1e-6


def test_dmd_normalizes_in_float32_what_comes_in_bfloat16():
    """Against float64 from the same rounded velocities: 1e-6, where bfloat16 would be off by 4e-3."""
    x_0, x_t, t = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4), torch.rand(5)
    fake, real = torch.randn(2, 5, 1, 4, 4).bfloat16()

    class Answers:
        def velocity(self, x_t, *, t, cond):
            return fake

    noised = Noised(x_0, x_t, t, torch.zeros(5), Probe(real, []))
    with autocast("bfloat16", "cpu"):
        value = DMD(Answers())(noised).value
    f, r = (velocity_to_data(v.double(), x_t.double(), t.double()) for v in (fake, real))
    gradient = (f - r) / (x_0.double() - r).abs().flatten(1).mean(1)[:, None, None, None]
    exact = 0.5 * gradient.square().flatten(1).mean(1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


def test_products_are_ieee_unless_a_run_asks_for_tf32():
    try:
        assert set_products(tf32=True) == "tf32" == products()
        assert torch.backends.cudnn.allow_tf32
        assert set_products(tf32=False) == "ieee" == products()
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        set_products(tf32=False)
