"""Points of two dimensions: what the small experiments train on, and how."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam

from hidistill.files import exclusive
from hidistill.path import sum_per_sample
from hidistill.seeds import fold_in
from hidistill.teachers.mixture import Mixture
from hidistill.train.ema import Average
from hidistill.train.loop import steps
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Batch, Objective, Points

BATCH = 256


def three_bumps(dtype: torch.dtype = torch.float32) -> Mixture:
    """Three Gaussians of unequal sizes and weights: a field with a closed form, whose trajectories bend."""
    means = torch.tensor([[1.5, 0.5], [-1.0, 1.2], [-0.3, -1.4]], dtype=dtype)
    stds = torch.tensor([[0.15, 0.3], [0.25, 0.1], [0.2, 0.2]], dtype=dtype)
    return Mixture(means, stds, weights=torch.tensor([0.5, 0.3, 0.2], dtype=dtype))


Draw = Callable[[int, torch.Generator], Points]
"""So many points, with a generator."""


def batches(sample: Draw, *, seed: int, size: int = BATCH) -> Callable[[int], Batch]:
    """Batches without classes, as a function of the step.

    Args:
        sample: draws the points.
        seed: of the data.
        size: of a batch.
    """

    def batch_at(step: int) -> Batch:
        generator = torch.Generator().manual_seed(fold_in(seed, "data", step))
        return Batch(sample(size, generator), torch.zeros(size, dtype=torch.long), step)

    return batch_at


def of_mixture(mixture: Mixture) -> Draw:
    """Draws points of a mixture without classes."""
    return lambda count, generator: mixture.sample(torch.zeros(count, dtype=torch.long), generator=generator)


def train(
    module: nn.Module,
    objective: Objective,
    batch_at: Callable[[int], Batch],
    *,
    length: int,
    seed: int,
    name: str = "toy",
    lr: float = 1e-3,
    decay: float = 0.99,
) -> nn.Module:
    """Train by Adam at a rate that falls to zero over the second half; the moving average becomes the module.

    Args:
        module: what learns.
        objective: down which it goes.
        batch_at: its batches.
        length: steps.
        seed: of times and noise.
        name: of the stage, which is part of the seed.
        lr: learning rate.
        decay: of the average.
    """
    optimizer = Adam(module.parameters(), lr=lr, betas=(0.9, 0.99))
    update = Update(objective, optimizer, schedule=WarmupDecay(length, min(50, length // 10), length // 2))
    followed = Average(module, decay)
    for _ in steps(Stage(name, {"module": update}, length, {"module": followed}), batch_at, seed=seed):
        pass
    followed.install()
    return module


def relative(answer: Points, truth: Points) -> float:
    """Root mean square of the error over that of the truth."""
    return float((sum_per_sample((answer - truth).double().square()).mean() / mean_square(truth)).sqrt())


def mean_square(points: Points) -> Tensor:
    """Mean over the rows of the squared length."""
    return sum_per_sample(points.double().square()).mean()


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file that several cells need, made by the first that comes; the others wait for it.

    Args:
        path: the file.
        make: writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while not path.exists():
        try:
            with exclusive(path.parent, BlockingIOError):
                if not path.exists():
                    make(path)
        except BlockingIOError:
            time.sleep(0.5)
    return path


def energy_distance(first: Points, second: Points) -> float:
    """`(2 E|X - Y| - E|X - X'| - E|Y - Y'|)^(1/2)` of two samples, 0 for equal distributions (unbiased within each)."""
    n, m = len(first), len(second)
    across = torch.cdist(first, second).mean()
    inside = torch.cdist(first, first).sum() / (n * (n - 1)) + torch.cdist(second, second).sum() / (m * (m - 1))
    return float((2 * across - inside).clamp(min=0).sqrt())
