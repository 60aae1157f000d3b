"""Every discriminator through the same checks. A new one adds one line to `HEADS`."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from hidistill.discriminators.adaptive import Adaptive
from hidistill.discriminators.per_token import PerToken
from hidistill.discriminators.pooled import Pooled
from hidistill.types import Discriminator


@dataclass(frozen=True)
class Head:
    build: Callable[..., nn.Module]
    logits: Callable[[int], int]
    """Number of logits per tapped layer of n tokens."""
    sees_tokens: bool = False
    """Whether moving the tokens moves the logits with them, rather than leaving them as they are."""


HEADS = {
    "adaptive": Head(Adaptive, lambda n: 2),
    "pooled": Head(Pooled, lambda n: 1),
    "per token": Head(PerToken, lambda n: n, sees_tokens=True),
}
CHANNELS = (12, 16)
B, N = 5, 9


@pytest.fixture(params=HEADS)
def head(request):
    return HEADS[request.param]


def features(n=N, scale=3.0):
    return [scale * torch.randn(B, n, channels) for channels in CHANNELS]


def test_every_sample_has_its_logits(head):
    discriminator = head.build(CHANNELS, width=8)
    assert isinstance(discriminator, Discriminator)
    for n in (1, N):  # the features of a perceptron on points are one token
        logits = discriminator(features(n))
        assert logits.shape == (B, 2 * head.logits(n))
        assert logits.isfinite().all()
    assert logits.std(0).min() > 1e-3


def test_a_samples_logits_do_not_depend_on_the_others(head):
    discriminator, layers = head.build(CHANNELS, width=8).eval(), features()
    logits = discriminator(layers)
    torch.testing.assert_close(discriminator([layer[2:3] for layer in layers]), logits[2:3])
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(discriminator([layer[order] for layer in layers]), logits[order])


def test_moving_the_tokens_moves_the_logits_as_promised(head):
    discriminator, layers = head.build(CHANNELS, width=8).eval(), features()
    order = torch.randperm(N)
    moved = discriminator([layer[:, order] for layer in layers]).unflatten(1, (2, -1))
    logits = discriminator(layers).unflatten(1, (2, -1))
    torch.testing.assert_close(moved, logits[:, :, order] if head.sees_tokens else logits)


def test_the_gradient_reaches_every_parameter_and_every_token(head):
    """More than rounding would: no parameter without effect."""
    discriminator, layers = head.build(CHANNELS, width=8), [layer.requires_grad_() for layer in features()]
    (discriminator(layers) * torch.randn(B, 2 * head.logits(N))).sum().backward()
    for name, weight in discriminator.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 1e-4, name
    for layer in layers:
        assert (layer.grad.abs().amax(2) > 1e-7).all()


def test_normalized_weights_stretch_nothing(head):
    """Largest singular value 1 after a few passes in training, though the raw weights are far larger."""
    discriminator = head.build(CHANNELS, width=8)
    layers = [module for module in discriminator.modules() if is_parametrized(module, "weight")]
    assert len(layers) == len([module for module in discriminator.modules() if isinstance(module, nn.Linear)])
    with torch.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original.copy_(7 * torch.randn_like(layer.weight))
    discriminator.train()
    for _ in range(40):
        discriminator(features())
    discriminator.eval()
    for layer in layers:
        assert 0.99 < torch.linalg.matrix_norm(layer.weight, 2) < 1.02


def test_a_discriminator_in_evaluation_is_a_function(head):
    discriminator, layers = head.build(CHANNELS, width=8).eval(), features()
    assert torch.equal(discriminator(layers), discriminator(layers))


def test_the_state_says_all(head):
    """A copy by `state_dict` goes on exactly like the original in training, where spectral norms move in every pass."""
    discriminator, copy, layers = head.build(CHANNELS, width=8), head.build(CHANNELS, width=8), features()
    discriminator(layers)
    copy.load_state_dict(discriminator.state_dict())
    for _ in range(3):
        assert torch.equal(discriminator(layers), copy(layers))


def test_low_precision_stays_near(head):
    discriminator, layers = head.build(CHANNELS, width=8).eval(), features()
    with torch.autocast("cpu", torch.bfloat16):
        rough = discriminator(layers)
    exact = discriminator(layers)
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_what_cannot_be_built_is_refused(head):
    for bad in ({"channels": ()}, {"channels": (8, 0)}, {"channels": (8,), "width": 0}):
        with pytest.raises(ValueError, match="at least one tapped layer"):
            head.build(**bad)


def test_features_of_another_number_of_layers_are_refused(head):
    with pytest.raises(ValueError, match="zip"):
        head.build(CHANNELS)(features()[:1])


def test_no_query_is_refused():
    with pytest.raises(ValueError, match="queries=0"):
        Adaptive(CHANNELS, queries=0)
