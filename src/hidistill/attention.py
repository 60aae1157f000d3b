"""Attention of the networks that are written here: torch's own, but where its kernel is slow."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FEW = 128
"""Tokens up to which attention of bfloat16 runs in float32 on a CPU."""

Heads = Float[Tensor, "b heads n d"]


def attend(query: Heads, key: Heads, value: Heads) -> Heads:
    """Scaled dot-product attention; the answer has the queries' shape and type.

    With few tokens a CPU takes longer in bfloat16 than in float32: with 16 of them torch 2.13 takes 12 times as long,
    most of it on the way back. Attention then runs in float32.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or query.shape[-2] > FEW:
        return F.scaled_dot_product_attention(query, key, value)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)
