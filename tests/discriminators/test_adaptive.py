import math

import pytest
import torch
from torch import nn

from hidistill.discriminators.adaptive import Adaptive, normalized_entropy
from hidistill.discriminators.pooled import Pooled

CHANNELS = (12, 16)


def features(b=4, n=49):
    return [torch.randn(b, n, channels, dtype=torch.float64) for channels in CHANNELS]


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("n", [49, 256])
def test_a_query_of_zero_is_average_pooling(queries, n):
    """With the same other weights, exactly: one and the same logit from every query."""
    adaptive = Adaptive(CHANNELS, width=8, queries=queries).double().eval()
    pooled = Pooled(CHANNELS, width=8).double().eval()
    state = adaptive.state_dict()
    pooled.load_state_dict({key: state[key] for key in pooled.state_dict()})
    nn.init.zeros_(adaptive.heads[0].queries)
    nn.init.zeros_(adaptive.heads[1].queries)
    layers = features(n=n)
    expected = pooled(layers).repeat_interleave(queries, 1)
    torch.testing.assert_close(adaptive(layers), expected, rtol=0, atol=1e-10)
    for weights in adaptive.attention(layers):
        torch.testing.assert_close(normalized_entropy(weights), torch.ones(4, queries, dtype=torch.float64))


def test_it_starts_near_average_pooling():
    for weights in Adaptive(CHANNELS).attention([layer.float() for layer in features()]):
        assert normalized_entropy(weights).min() > 0.99


def test_attention_is_a_distribution_over_tokens_that_belongs_to_the_logits():
    """Each query by hand: softmax(q . k / sqrt(d)), and the logit of the tokens' weighted values."""
    adaptive, layers = Adaptive(CHANNELS, width=8, queries=2).double().eval(), features()
    for head in adaptive.heads:
        nn.init.normal_(head.queries, std=3.0)
    logits = adaptive(layers).unflatten(1, (2, 2))
    for index, (head, tokens, weights) in enumerate(
        zip(adaptive.heads, layers, adaptive.attention(layers), strict=True)
    ):
        assert weights.shape == (4, 2, 49)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(2), torch.ones(4, 2, dtype=torch.float64))
        h = head.norm(tokens)
        for query in range(2):
            w = (h @ head.key.weight.T @ head.queries[query] / 8**0.5).softmax(1)
            torch.testing.assert_close(weights[:, query], w)
            z = head.norm_pooled(head.value((w[:, :, None] * h).sum(1)))
            by_hand = head.verdict(nn.functional.leaky_relu(head.hidden(z), 0.2))[:, 0]
            torch.testing.assert_close(logits[:, index, query], by_hand)


def test_looking_at_the_attention_moves_nothing():
    """A run with pictures along the way is the run without."""
    adaptive, layers = Adaptive(CHANNELS).double().train(), features()
    before = {key: value.clone() for key, value in adaptive.state_dict().items()}
    adaptive.attention(layers)
    assert adaptive.training
    assert adaptive.heads[0].training
    for key, value in adaptive.state_dict().items():
        assert torch.equal(value, before[key])


def test_normalized_entropy_by_hand():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(normalized_entropy(weights), torch.tensor([1.0, 0.0, math.log(2) / math.log(4)]))
    assert torch.equal(normalized_entropy(torch.ones(2, 3, 1)), torch.ones(2, 3))


PATTERN, MARK = torch.tensor([[1.0, -1, 1, -1, 1, -1, 1, -1], [1, 1, -1, -1, 1, 1, -1, -1]])


def clean_and_marked(b):
    """256 tokens of a pattern in noise, and the same with a mark on one token per sample, at a random place."""
    clean, place = PATTERN + 0.3 * torch.randn(b, 256, 8), torch.randint(256, (b,))
    marked = clean.clone()
    marked[torch.arange(b), place] += MARK - PATTERN
    return clean, marked, place


def test_the_gradient_finds_an_artifact_in_one_token_of_256():
    """After some steps against it, AWD's input gradient is all on that token; GAP hardly sees it."""
    shares = {}
    for build in (Adaptive, Pooled):
        torch.manual_seed(1)
        discriminator = build((8,), width=8)
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-2, betas=(0.5, 0.99))
        for _ in range(60):
            clean, marked, _ = clean_and_marked(16)
            loss = nn.functional.softplus(-discriminator([clean])) + nn.functional.softplus(discriminator([marked]))
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        _, marked, place = clean_and_marked(32)
        marked.requires_grad_()
        discriminator.eval()([marked]).sum().backward()
        energy = marked.grad.square().sum(2)
        shares[build] = (energy[torch.arange(32), place] / energy.sum(1)).mean()
    assert shares[Adaptive] > 0.5
    assert shares[Pooled] < 0.05
