"""Kernel distance between features of generated and of real images, with its error bars."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hidistill.seeds import fold_in
from hidistill.types import FeatureSpace, Samples

Rows = Float[Tensor, "_n _d"]


def kernel_sum(x: Rows, y: Rows) -> tuple[float, float]:
    """Sum of `(x.y / d + 1)^3` over all pairs, and over pairs of equal index, in float64."""
    x, y = x.double(), y.double()
    d = x.shape[1]
    total = sum((block @ y.T / d + 1).pow(3).sum().item() for block in x.split(1024))
    n = min(len(x), len(y))
    return total, ((x[:n] * y[:n]).sum(1) / d + 1).pow(3).sum().item()


def squared_mmd(real: Rows, generated: Rows) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy under that kernel (arXiv 1801.01401, eq. 4).

    Raises:
        ValueError: if either has fewer than two rows.
    """
    n, m = len(real), len(generated)
    if min(n, m) < 2:
        raise ValueError(f"{n} real and {m} generated images came; the kernel distance needs 2 of each: draw more")
    (aa, diagonal_a), (bb, diagonal_b) = kernel_sum(real, real), kernel_sum(generated, generated)
    return (
        (aa - diagonal_a) / (n * (n - 1))
        + (bb - diagonal_b) / (m * (m - 1))
        - 2 * kernel_sum(real, generated)[0] / (n * m)
    )


@dataclass(frozen=True)
class KernelDistance:
    """Mean of `squared_mmd` over random subsets, and the standard deviation over them; unbiased at any count.

    The usual settings are 100 subsets of 1,000. Subsets overlap where the images are few, and their deviation is that
    of one subset, not of the mean.

    Args:
        space: where images are compared.
        subsets: how many are drawn, without replacement within one.
        size: images of a subset; half of them where there are no more than that.
        seed: of the subsets, which are the same for every row.
    """

    space: FeatureSpace
    subsets: int = 100
    size: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a spread of one subset."""
        if self.subsets < 2 or self.size < 2:
            raise ValueError(f"{self.subsets} subsets of {self.size}: error bars need 2 subsets of 2 images at least")

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"kernel distance, {self.subsets} subsets of {self.size}/{self.space.name}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The numbers `kid/SPACE` and `kid_std/SPACE`."""
        real, generated = samples.real.features(self.space), samples.generated.features(self.space)
        least = min(len(real), len(generated))
        size = self.size if least > self.size else least // 2  # of whole sets all subsets would be the same
        values = torch.tensor([self.once(real, generated, size, i) for i in range(self.subsets)], dtype=torch.float64)
        name = self.space.name
        return {f"kid/{name}": values.mean().item(), f"kid_std/{name}": values.std().item()}

    def once(self, real: Rows, generated: Rows, size: int, subset: int) -> float:
        """The value of one pair of subsets."""
        generator = torch.Generator().manual_seed(fold_in(self.seed, "kernel", subset))
        a, b = (torch.randperm(len(rows), generator=generator)[:size] for rows in (real, generated))
        return squared_mmd(real[a], generated[b])
