"""Rules of dual numbers (a value and its tangent) for the layers that networks spend their time in.

torch has a rule for each operation. Those of the layers here compute the same with less:

- a linear layer with constant weights takes two products; torch's rule takes a third, with a zero tangent that it makes
  for the weights (pytorch#69687);
- no fused attention has a forward derivative, and the unfused one holds all n^2 scores and their tangents at once;
- the Jacobians of softmax and of normalizations are symmetric, so that their tangents are torch's own fused backward
  passes, where torch's rules are a dozen passes over memory;
- a sum or a product with a constant needs no tangent of that: torch makes one of zeros, and asks Python for its shape.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.overrides import TorchFunctionMode

Rule = Callable[..., Tensor]
"""A layer of dual numbers, with the arguments of torch's function."""
Dual = tuple[Tensor, Tensor | None]
"""A primal and its tangent; None is a tangent of zero."""
QUERIES = 256
"""Queries of attention that are differentiated at once: as fast as all of them, in a tenth of the memory."""


class DualRules(TorchFunctionMode):
    """Within it the layers of `RULES` follow the rules here, and all others torch's.

    Args:
        attention: the rule of attention; None is `attention`.
    """

    def __init__(self, attention: Rule | None = None) -> None:
        super().__init__()
        self.rules = RULES if attention is None else {**RULES, F.scaled_dot_product_attention: attention}

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping | None = None
    ) -> object:
        """Route what is known here, leave the rest to torch."""
        del types
        kwargs = kwargs or {}
        if func in (F.linear, F.conv1d, F.conv2d, F.conv3d):
            return affine(func, *args, **kwargs)
        if func is Tensor.unflatten:  # not a key of `rules`, where torch.compile does not find it
            return unflatten(*args, **kwargs)
        if func is Tensor.add or func is Tensor.sub or func is Tensor.__rsub__ or func is Tensor.mul:  # likewise
            return with_constant(func, *args, **kwargs)
        rule = self.rules.get(func)
        return func(*args, **kwargs) if rule is None else rule(*args, **kwargs)


def affine(
    func: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: object, **kwargs: object
) -> Tensor:
    """A linear or convolutional layer: the tangent passes through the same weights, without the bias."""
    primal, tangent = unpack_dual(input)
    if tangent is None or not constant(weight, bias):
        return func(input, weight, bias, *args, **kwargs)
    return make_dual(func(primal, weight, bias, *args, **kwargs), func(tangent, weight, None, *args, **kwargs))


def constant(*tensors: Tensor | None) -> bool:
    """Whether none of them has a tangent."""
    return all(tensor is None or unpack_dual(tensor).tangent is None for tensor in tensors)


def with_constant(func: Callable, input: Tensor, other: object, **kwargs: object) -> Tensor:
    """A sum, difference or product with a number or a tensor without a tangent: the tangent passes, or is scaled."""
    primal, tangent = unpack_dual(input)
    if tangent is None or kwargs or (isinstance(other, Tensor) and unpack_dual(other).tangent is not None):
        return func(input, other, **kwargs)
    out = func(primal, other)
    if func is Tensor.mul:
        moved = func(tangent, other)
    else:
        moved = -tangent if func is Tensor.__rsub__ else tangent
        # Of its own memory: what is changed in place later must not change the operand.
        moved = moved.to(out.dtype).expand(out.shape).clone(memory_format=torch.contiguous_format)
    return make_dual(out, moved)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalization: its Jacobian `(1 - 11'/d - yy'/d) / std` is symmetric, its tangent a backward pass."""
    primal, tangent = unpack_dual(input)
    if tangent is None or not constant(weight, bias):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    shape = list(normalized_shape)
    out = F.layer_norm(primal, shape, weight, bias, eps)
    # Autocast may have chosen another precision for the layer than its input's.
    primal, tangent = primal.to(out.dtype), tangent.to(out.dtype)
    _, mean, rstd = torch.native_layer_norm(primal, shape, None, None, eps)
    moved = torch.ops.aten.native_layer_norm_backward(
        tangent, primal, shape, mean, rstd, None, None, [True, False, False]
    )[0]
    return make_dual(out, moved if weight is None else (moved * weight).to(out.dtype))


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group normalization, a layer normalization of each group's channels and pixels."""
    primal, tangent = unpack_dual(input)
    if tangent is None or not constant(weight, bias):
        return F.group_norm(input, num_groups, weight, bias, eps)
    out = F.group_norm(primal, num_groups, weight, bias, eps)
    primal, tangent = primal.to(out.dtype).contiguous(), tangent.to(out.dtype).contiguous()
    b, channels, pixels = primal.shape[0], primal.shape[1], prod(primal.shape[2:])
    _, mean, rstd = torch.native_group_norm(primal, None, None, b, channels, pixels, num_groups, eps)
    moved = torch.ops.aten.native_group_norm_backward(
        tangent, primal, mean, rstd, None, b, channels, pixels, num_groups, [True, False, False]
    )[0]
    if weight is not None:
        moved = (moved * weight.reshape(-1, *[1] * (primal.ndim - 2))).to(out.dtype)
    return make_dual(out, moved)


def attention(  # noqa: PLR0917 -- torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention and its exact tangent, `QUERIES` queries at a time.

    Masks, dropout and grouped heads go to torch's unfused attention, whose tangent needs all n^2 scores at once.
    """
    q, k, v = unpack_dual(query), unpack_dual(key), unpack_dual(value)
    fixed = q.tangent is None and k.tangent is None and v.tangent is None
    if fixed or query.ndim < 3 or attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    parts = []
    for first in range(0, query.shape[-2], QUERIES):
        rows = slice(first, first + QUERIES)
        dq = None if q.tangent is None else q.tangent[..., rows, :] * factor
        parts.append(attend((q.primal[..., rows, :] * factor, dq), k, v))
    if len(parts) == 1:
        return make_dual(*parts[0])
    outs, tangents = zip(*parts, strict=True)
    return make_dual(torch.cat(outs, -2), torch.cat(tangents, -2))


def attend(query: Dual, key: Dual, value: Dual) -> tuple[Tensor, Tensor]:
    """Attention of scaled queries, and its tangent.

    `out = P v`; `d_scores = dq k^T + q dk^T`; `d_out = dP v + P dv`, `dP = P (d_scores - rowsum(P d_scores))`, which is
    the backward pass of softmax.
    """
    batch = query[0].shape[:-2]
    (q, dq), (k, dk), (v, dv) = (flat(dual, batch) for dual in (query, key, value))
    scores = torch.bmm(q, k.mT)
    # Scores may be in bfloat16; their exponentials and the sum of them may not.
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=precise)
    low = weights.to(v.dtype)
    out = torch.bmm(low, v)
    tangent = None if dv is None else torch.bmm(low, dv)
    change = None if dq is None else torch.bmm(dq, k.mT)
    change = change if dk is None else added(change, q, dk.mT)
    if change is not None:
        moved = torch.ops.aten._softmax_backward_data(change.to(precise), weights, -1, precise)
        tangent = added(tangent, moved.to(v.dtype), v)
    assert tangent is not None
    return out.view(*batch, *out.shape[1:]), tangent.view(*batch, *out.shape[1:])


def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """`Tensor.unflatten` by `reshape`: torch writes it in Python, which torch.compile cannot trace under a mode."""
    dim %= input.ndim
    return input.reshape(*input.shape[:dim], *sizes, *input.shape[dim + 1 :])


def flat(dual: Dual, batch: Sequence[int]) -> Dual:
    """Leading dimensions as one, which products of matrices are quickest with."""
    primal, tangent = (None if x is None else x.expand(*batch, *x.shape[-2:]).flatten(0, -3) for x in dual)
    assert primal is not None
    return primal, tangent


def added(total: Tensor | None, first: Tensor, second: Tensor) -> Tensor:
    """`total + first @ second`, in one pass."""
    return torch.bmm(first, second) if total is None else torch.baddbmm(total, first, second)


def flash_rule() -> Rule:
    """The rule of attention by the kernels of jvp-flash-attention: no scores are held; CUDA alone.

    What the kernels do not take goes to `attention`: other devices, masks, dropout, less than 32 or an odd number of
    tokens, heads of a width that is no power of two from 16 to 256, keys or values that are constant.

    Raises:
        ImportError: if the package is not installed, or has no triton to run with.
    """
    try:
        from jvp_flash_attention.jvp_attention import JVPAttn  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"jvp-flash-attention cannot be used: {error}; on a machine with a GPU: pip install --no-deps "
            "jvp-flash-attention (its dependencies bring torchvision), or leave the rule out"
        ) from error

    def rule(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        given = dict(zip(("attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
        if not kernel_takes(query, key, value, **given):
            return attention(query, key, value, **given)
        return JVPAttn.fwd_dual(query, key, value, sm_scale=given.get("scale"))

    return rule


def kernel_takes(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, **options: object) -> bool:
    """Whether `flash_rule`'s kernels take these."""
    del scale
    alike = query.ndim == 4 and query.shape == key.shape == value.shape
    tangents = all(unpack_dual(each).tangent is not None for each in (query, key, value))
    fits = query.shape[-1] in (16, 32, 64, 128, 256) and query.shape[-2] % 2 == 0 and query.shape[-2] >= 32
    return (
        query.is_cuda
        and alike
        and tangents
        and fits
        and not any(isinstance(x, Tensor) or x not in (None, False, 0) for x in options.values())
    )


RULES: Mapping[Callable, Rule] = {
    F.scaled_dot_product_attention: attention,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
}
