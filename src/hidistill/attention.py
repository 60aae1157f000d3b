"""Attention of the networks that are written here: torch's own, but where its kernel is slow."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FEW = 128
"""Tokens up to which attention of bfloat16 runs in float32 on a CPU."""

few = FEW
"""How many these are now; torch.compile reads a module's name, and no context variable."""

Heads = Float[Tensor, "b heads n d"]


def attend(query: Heads, key: Heads, value: Heads) -> Heads:
    """Scaled dot-product attention; the answer has the queries' shape and type.

    With few tokens a CPU takes several times longer in bfloat16 than in float32, most of it on the way back
    (`benchmarks/attention.py`). Attention then runs in float32.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or query.shape[-2] > few:
        return F.scaled_dot_product_attention(query, key, value)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Within, attention is taken as an accelerator takes it: for counting here what another machine will do."""
    global few
    few = 0
    try:
        yield
    finally:
        few = FEW
