"""Every discriminator through the same checks. A new one adds one line to `HEADS`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from hidistill.discriminators.adaptive import Adaptive, unbounded
from hidistill.discriminators.convolutional import Convolutional
from hidistill.discriminators.per_token import PerToken
from hidistill.discriminators.pooled import Pooled
from hidistill.embedding import TimeEmbedding
from hidistill.types import Discriminator


@dataclass(frozen=True)
class Head:
    build: Callable[..., nn.Module]
    logits: Callable[[int], int]
    """Number of logits per tapped layer of n tokens."""
    moving: str = "leaves"
    """What moving the tokens does to the logits: "leaves" them, "moves" them along, or "changes" them."""
    bounded: bool = True
    """Whether every linear map of the features has a slope of 1."""
    least: int = 1
    """Fewest tokens; the features of a perceptron on points are one."""


HEADS = {
    "adaptive": Head(Adaptive, lambda n: 2),
    "adaptive at a time": Head(partial(Adaptive, sinusoids=8), lambda n: 2),
    "adaptive for a class": Head(partial(Adaptive, classes=3, queries=1), lambda n: 1),
    "adaptive, unbounded": Head(partial(Adaptive, bound=unbounded), lambda n: 2, bounded=False),
    "adaptive, not normalized": Head(partial(Adaptive, norm=nn.Identity), lambda n: 2),
    "convolutional": Head(Convolutional, lambda n: 1, moving="changes", bounded=False, least=4),
    "pooled": Head(Pooled, lambda n: 1),
    "per token": Head(PerToken, lambda n: n, moving="moves"),
}
CHANNELS = (12, 16)
B, N = 5, 9
ORDER = torch.tensor([3, 0, 4, 2, 1])
AT = {"t": torch.linspace(0.05, 0.95, B), "cond": torch.tensor([0, 3, 1, 2, 0])}


@pytest.fixture(params=HEADS)
def head(request):
    return HEADS[request.param]


def features(n=N, scale=3.0):
    return [scale * torch.randn(B, n, channels) for channels in CHANNELS]


def of_rows(rows):
    return {name: value[rows] for name, value in AT.items()}


def test_every_sample_has_its_logits(head):
    discriminator = head.build(CHANNELS, width=8)
    assert isinstance(discriminator, Discriminator)
    for n in (head.least, N):
        logits = discriminator(features(n), **AT)
        assert logits.shape == (B, 2 * head.logits(n))
        assert logits.isfinite().all()
    assert logits.std(0).min() > 1e-3


def test_a_samples_logits_do_not_depend_on_the_others(head):
    discriminator, layers = head.build(CHANNELS, width=8).eval(), features()
    logits = discriminator(layers, **AT)
    alone = slice(2, 3)
    torch.testing.assert_close(discriminator([layer[alone] for layer in layers], **of_rows(alone)), logits[alone])
    torch.testing.assert_close(discriminator([layer[ORDER] for layer in layers], **of_rows(ORDER)), logits[ORDER])


def test_moving_the_tokens_moves_the_logits_as_promised(head):
    discriminator, layers = head.build(CHANNELS, width=8).eval(), features()
    order = torch.randperm(N)
    moved = discriminator([layer[:, order] for layer in layers], **AT).unflatten(1, (2, -1))
    logits = discriminator(layers, **AT).unflatten(1, (2, -1))
    if head.moving == "changes":
        assert (moved - logits).abs().min() > 1e-4
    else:
        torch.testing.assert_close(moved, logits[:, :, order] if head.moving == "moves" else logits)


def test_the_gradient_reaches_every_parameter_and_every_token(head):
    """More than rounding would: no parameter without effect."""
    discriminator, layers = head.build(CHANNELS, width=8), [layer.requires_grad_() for layer in features()]
    (discriminator(layers, **AT) * torch.randn(B, 2 * head.logits(N))).sum().backward()
    for name, weight in discriminator.named_parameters():
        assert weight.grad is not None, name
        # A time moves a query only a little at the start.
        assert weight.grad.abs().max() > (1e-6 if ".time." in name else 1e-4), name
    for layer in layers:
        assert (layer.grad.abs().amax(2) > 1e-7).all()


@pytest.mark.parametrize("name", [name for name, head in HEADS.items() if head.bounded])
def test_normalized_weights_stretch_nothing(name):
    """Largest singular value 1 after some passes in training, though the raw weights are far larger."""
    discriminator = HEADS[name].build(CHANNELS, width=8)
    layers = [module for module in discriminator.modules() if is_parametrized(module, "weight")]
    times = [module for module in discriminator.modules() if isinstance(module, TimeEmbedding)]
    linear = [module for module in discriminator.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == len(linear) - 2 * len(times)
    with torch.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original.copy_(7 * torch.randn_like(layer.weight))
    discriminator.train()
    for _ in range(120):
        discriminator(features(), **AT)
    discriminator.eval()
    for layer in layers:
        assert 0.99 < torch.linalg.matrix_norm(layer.weight, 2) < 1.02


def test_a_discriminator_in_evaluation_is_a_function(head):
    discriminator, layers = head.build(CHANNELS, width=8).eval(), features()
    assert torch.equal(discriminator(layers, **AT), discriminator(layers, **AT))


def test_the_state_says_all(head):
    """A copy by `state_dict` goes on exactly like the original in training, where spectral norms move in every pass."""
    discriminator, copy, layers = head.build(CHANNELS, width=8), head.build(CHANNELS, width=8), features()
    discriminator(layers, **AT)
    copy.load_state_dict(discriminator.state_dict())
    for _ in range(3):
        assert torch.equal(discriminator(layers, **AT), copy(layers, **AT))


def test_low_precision_stays_near(head):
    discriminator, layers = head.build(CHANNELS, width=8).eval(), features()
    with torch.autocast("cpu", torch.bfloat16):
        rough = discriminator(layers, **AT)
    exact = discriminator(layers, **AT)
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_the_chosen_layers_are_judged_in_their_order_and_no_others(head):
    """One chosen head's weights, whatever index they are kept under, belong to the layer of its place in the choice."""
    build, layers = partial(head.build, CHANNELS, width=8), features()
    turned, first, second = build(layers=(1, 0)).eval(), build(layers=(0,)).eval(), build(layers=(1,)).eval()
    state = turned.state_dict()
    second.load_state_dict({name: value for name, value in state.items() if name.startswith("heads.0.")})
    first.load_state_dict({name.replace("s.1.", "s.0."): v for name, v in state.items() if name.startswith("heads.1.")})
    apart = [second(layers, **AT), first(layers, **AT)]
    assert apart[0].shape == (B, head.logits(N))
    torch.testing.assert_close(turned(layers, **AT), torch.cat(apart, 1))
    blind = [torch.full_like(layers[0], float("nan")), layers[1]]
    assert torch.equal(second(blind, **AT), apart[0])


def test_what_cannot_be_built_is_refused(head):
    bad = [{"channels": ()}, {"channels": (8, 0)}, {"channels": (8,), "width": 0}, {"channels": (8,), "layers": ()}]
    for arguments in bad:
        with pytest.raises(ValueError, match="at least one tapped"):
            head.build(**arguments)
    with pytest.raises(ValueError, match="layers"):
        head.build(CHANNELS, layers=(2,))


def test_features_of_another_number_of_layers_are_refused(head):
    for layers in (features()[:1], [*features(), *features()]):
        with pytest.raises(ValueError, match=f"features of {len(layers)} layers came"):
            head.build(CHANNELS)(layers, **AT)


def test_no_query_is_refused():
    with pytest.raises(ValueError, match="queries=0"):
        Adaptive(CHANNELS, queries=0)
