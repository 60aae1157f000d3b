"""The linear path `x_t = (1 - t) x_0 + t noise` and the quantities that live on it.

On this path velocity, data, noise and score are affine images of one another (arXiv 2209.03003, 2210.02747):
`velocity = noise - x_0`, `x_0 = x_t - t velocity`, `noise = x_t + (1 - t) velocity`, `score = -noise / t`.
"""

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from hidistill.share import Share
from hidistill.types import Batch, Cond, Labels, PerSample, Points, Times


def per_row(t: Shaped[Tensor, " b"], x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
    """`t`, shaped to broadcast over the rows of `x`; of any dtype, both."""
    return t.reshape(-1, *([1] * (x.ndim - 1)))


def interpolate(x_0: Points, noise: Points, t: Times) -> Points:
    """`x_t = (1 - t) x_0 + t noise`."""
    t = per_row(t, x_0)
    return (1 - t) * x_0 + t * noise


def velocity_to_data(velocity: Points, x_t: Points, t: Times) -> Points:
    """`x_0 = x_t - t velocity`: the denoised sample."""
    return x_t - per_row(t, x_t) * velocity


def velocity_to_noise(velocity: Points, x_t: Points, t: Times) -> Points:
    """`noise = x_t + (1 - t) velocity`."""
    return x_t + (1 - per_row(t, x_t)) * velocity


def velocity_to_score(velocity: Points, x_t: Points, t: Times) -> Points:
    """`score = -(x_t + (1 - t) velocity) / t`, defined for t > 0."""
    return -velocity_to_noise(velocity, x_t, t) / per_row(t, x_t)


def data_to_velocity(x_0: Points, x_t: Points, t: Times) -> Points:
    """`velocity = (x_t - x_0) / t`, defined for t > 0."""
    return (x_t - x_0) / per_row(t, x_t)


def noise_to_velocity(noise: Points, x_t: Points, t: Times) -> Points:
    """`velocity = (noise - x_t) / (1 - t)`, defined for t < 1."""
    return (noise - x_t) / (1 - per_row(t, x_t))


def score_to_velocity(score: Points, x_t: Points, t: Times) -> Points:
    """`velocity = -(x_t + t score) / (1 - t)`, defined for t < 1."""
    return noise_to_velocity(-per_row(t, x_t) * score, x_t, t)


def mean_per_sample(x: Points) -> PerSample:
    """Mean over everything but the batch."""
    return x.flatten(1).mean(1)


def sum_per_sample(x: Points) -> PerSample:
    """Sum over everything but the batch."""
    return x.flatten(1).sum(1)


def rows_of(cond: Cond, rows: Tensor | slice) -> Cond:
    """The conditions of the samples that `rows` (indices, a mask or a slice) selects."""
    if isinstance(cond, Mapping):
        return {name: value[rows] for name, value in cond.items()}
    return cond[rows]


def labels_of(cond: Cond, *, owner: str) -> Labels:
    """The labels (b,) in a condition that is a plain tensor of class indices.

    Args:
        cond: the condition.
        owner: whose condition it is, for the message: "a DiT".

    Raises:
        TypeError: if it is no tensor.
    """
    if not isinstance(cond, Tensor):
        raise TypeError(f"{owner} is conditioned by a tensor of labels; a {type(cond).__name__} came")
    return cond


def cond_on(cond: Cond, device: torch.device | str) -> Cond:
    """A condition on a device."""
    if isinstance(cond, Mapping):
        return {name: value.to(device) for name, value in cond.items()}
    return cond.to(device)


def on(batch: Batch, device: torch.device | str) -> Batch:
    """A batch on a device, with whatever tensors its kind of batch has."""
    values = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return replace(batch, **{name: cond_on(v, device) for name, v in values.items() if isinstance(v, Tensor | Mapping)})


def part_of(batch: Batch, share: Share) -> Batch:
    """The rows of a batch that a share of it has."""
    if share.count == 1:
        return batch
    values = {each.name: getattr(batch, each.name) for each in fields(batch)}
    mine = {name: share.of(value) for name, value in values.items() if isinstance(value, Tensor)}
    mine |= {
        name: {key: share.of(each) for key, each in value.items()}
        for name, value in values.items()
        if isinstance(value, Mapping)
    }
    return replace(batch, **mine)


def concatenate(first: Cond, second: Cond) -> Cond:
    """The conditions of two batches as those of one."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() != second.keys():
            raise ValueError(
                f"conditions with keys {sorted(first)} and {sorted(second)} cannot be one batch; keys must agree"
            )
        return {name: torch.cat([value, second[name]]) for name, value in first.items()}
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    raise TypeError(f"a {type(first).__name__} and a {type(second).__name__} cannot be one batch of conditions")
