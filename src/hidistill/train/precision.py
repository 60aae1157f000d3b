"""What a float32 product is made of: IEEE float32, or TF32 where a run asks for it."""

import torch

PRODUCTS = ("ieee", "tf32")


def set_products(*, tf32: bool) -> str:
    """Settle for the whole process what products of float32 matrices and convolutions on a GPU are made of.

    torch leaves convolutions in TF32 and matrix products in IEEE float32 unless it is told; a run should not depend on
    that. TF32 keeps 10 bits behind the point, as float16 does: differences of two forwards are not to be had from it,
    which is why `Central` refuses it. A CPU has no TF32.

    Args:
        tf32: whether TF32 is allowed.

    Returns:
        What they are made of, for the run's environment: "ieee" or "tf32".
    """
    # Not torch's newer `fp32_precision`: after it, whoever reads these two is met with an error.
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    return PRODUCTS[tf32]


def products() -> str:
    """What products of float32 matrices on a GPU are made of now: "tf32" or "ieee"."""
    return PRODUCTS[bool(torch.backends.cuda.matmul.allow_tf32)]
