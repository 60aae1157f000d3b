import math

import pytest
import torch
from torch import nn

from hidistill.discriminators.adaptive import Adaptive, normalized_entropy
from hidistill.discriminators.pooled import Pooled

CHANNELS = (12, 16)
AT = {"t": torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64), "cond": torch.tensor([2, 0, 1, 0])}


def features(b=4, n=49, channels=CHANNELS):
    return [torch.randn(b, n, count, dtype=torch.float64) for count in channels]


def anywhere(b):
    """A time and a condition for heads that look at neither."""
    return {"t": torch.full((b,), 0.5), "cond": torch.zeros(b, dtype=torch.long)}


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
    expected = pooled(layers, **AT).repeat_interleave(queries, 1)
    torch.testing.assert_close(adaptive(layers, **AT), expected, rtol=0, atol=1e-10)
    for weights in adaptive.attention(layers, **AT):
        torch.testing.assert_close(normalized_entropy(weights), torch.ones(4, queries, dtype=torch.float64))


def test_it_starts_near_average_pooling():
    """At every time and for every class too, if the queries know them."""
    for head in (Adaptive(CHANNELS), Adaptive(CHANNELS, sinusoids=16, classes=3)):
        for weights in head.double().attention(features(), **AT):
            assert normalized_entropy(weights).min() > 0.99


def test_large_queries_weigh_tokens_apart_from_the_start():
    torch.manual_seed(0)
    for weights in Adaptive(CHANNELS, query_std=3.0).double().attention(features(), **AT):
        assert normalized_entropy(weights).mean() < 0.95
    with pytest.raises(ValueError, match=r"query_std=-1\.0"):
        Adaptive(CHANNELS, query_std=-1.0)


def test_attention_is_a_distribution_over_tokens_that_belongs_to_the_logits():
    """Each query by hand: softmax(q . k / sqrt(d)), and the logit of the tokens' weighted values."""
    adaptive, layers = Adaptive(CHANNELS, width=8, queries=2).double().eval(), features()
    for head in adaptive.heads:
        nn.init.normal_(head.queries, std=3.0)
    logits = adaptive(layers, **AT).unflatten(1, (2, 2))
    for index, (head, tokens, weights) in enumerate(
        zip(adaptive.heads, layers, adaptive.attention(layers, **AT), strict=True)
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
    adaptive.attention(layers, **AT)
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
            real, marred = (discriminator([tokens], **anywhere(16)) for tokens in (clean, marked))
            loss = nn.functional.softplus(-real) + nn.functional.softplus(marred)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        _, marked, place = clean_and_marked(32)
        marked.requires_grad_()
        discriminator.eval()([marked], **anywhere(32)).sum().backward()
        energy = marked.grad.square().sum(2)
        shares[build] = (energy[torch.arange(32), place] / energy.sum(1)).mean()
    assert shares[Adaptive] > 0.5
    assert shares[Pooled] < 0.05


def test_the_query_is_a_sum_of_what_is_learned_of_time_and_of_class():
    """The logits of a head whose learned queries are that sum already, row by row."""
    adaptive, layers = Adaptive(CHANNELS, width=8, sinusoids=8, classes=2).double().eval(), features()
    plain = Adaptive(CHANNELS, width=8).double().eval()
    for head in adaptive.heads:
        nn.init.normal_(head.label.weight)
        nn.init.normal_(head.time.layers[2].weight)
    logits, attention = adaptive(layers, **AT), adaptive.attention(layers, **AT)
    for row in range(4):
        alone = {name: value[row : row + 1] for name, value in AT.items()}
        state = adaptive.state_dict()
        for index, head in enumerate(adaptive.heads):
            told = head.time(alone["t"]) + head.label.weight[alone["cond"]]
            state[f"heads.{index}.queries"] = head.queries + told
        plain.load_state_dict({name: state[name] for name in plain.state_dict()})
        here = [layer[row : row + 1] for layer in layers]
        torch.testing.assert_close(plain(here, **alone), logits[row : row + 1])
        torch.testing.assert_close(plain.attention(here, **alone), [layer[row : row + 1] for layer in attention])


def test_time_and_class_move_the_logits_of_heads_that_were_told_and_of_no_others():
    layers = features()
    later, others = AT | {"t": AT["t"].flip(0)}, AT | {"cond": torch.tensor([0, 1, 2, 1])}
    for arguments, moved in (({}, ()), ({"sinusoids": 8}, ("t",)), ({"classes": 2}, ("cond",))):
        head = Adaptive(CHANNELS, width=8, **arguments).double().eval()
        for weight in head.parameters():
            nn.init.normal_(weight)
        for name, elsewhere in (("t", later), ("cond", others)):
            change = (head(layers, **elsewhere) - head(layers, **AT)).abs().max()
            assert (change > 1e-3) == (name in moved), (arguments, name)


@pytest.mark.parametrize(
    "cond",
    [{"text": torch.zeros(4, 3)}, torch.zeros(4), torch.zeros(4, 2, dtype=torch.long)],
    ids=["dict", "float", "two"],
)
def test_classes_in_the_query_need_labels(cond):
    head = Adaptive(CHANNELS, classes=2).double()
    with pytest.raises(TypeError, match="build it with classes=None"):
        head(features(), t=AT["t"], cond=cond)


def test_one_head_for_all_layers():
    """The weights of one, and its logits on each layer in turn."""
    layers, channels = features(channels=(16, 16, 16)), (16, 16, 16)
    shared = Adaptive(channels, width=8, shared=True).double().eval()
    one = Adaptive(channels[:1], width=8).double().eval()
    one.load_state_dict(shared.state_dict())
    expected = torch.cat([one([layer], **AT) for layer in layers], 1)
    torch.testing.assert_close(shared(layers, **AT), expected)
    assert [weights.shape for weights in shared.attention(layers, **AT)] == 3 * [(4, 2, 49)]
    with pytest.raises(ValueError, match=r"layers of \[12, 16\] channels: they must be equal"):
        Adaptive(CHANNELS, shared=True)
    assert len(Adaptive((12, 16, 12), shared=True, layers=(0, 2)).heads) == 1


@pytest.mark.parametrize("bad", [{"sinusoids": 2}, {"sinusoids": 7}, {"sinusoids": -4}, {"classes": -1}])
def test_impossible_queries_are_refused(bad):
    with pytest.raises(ValueError, match="sinusoids are 0 or an even number from 4 on"):
        Adaptive(CHANNELS, **bad)
