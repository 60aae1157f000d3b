"""Precision and recall of n images against n: seconds, processor time, peak memory.

    OMP_NUM_THREADS=2 python benchmarks/neighbors.py --count 50000

Features are random numbers, nonnegative as pooled ones are. The default count takes seconds.
"""

import resource
import sys
import time

import torch
from measuring.results import options, publish

from hidistill.metrics.neighbors import Neighbors
from hidistill.types import Features, Gallery, Images, Samples


class Given:
    """Features that are in a gallery's memory already."""

    name = "given"

    def __call__(self, images: Images) -> Features:
        """Nothing is computed here."""
        raise AssertionError(f"the features of {len(images)} images are in their gallery's memory")


def gallery(count: int, dim: int, seed: int, space: Given) -> Gallery:
    """Random features."""
    features = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).relu_()
    labels = torch.zeros(count, dtype=torch.long)
    return Gallery(torch.zeros(count, 1, 0, 0), labels, memory={("features", space): features})


if __name__ == "__main__":
    parser = options(__doc__, "neighbors", clocks=())
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--dim", type=int, default=2048)
    chosen = parser.parse_args()
    space = Given()
    real, generated = (gallery(chosen.count, chosen.dim, seed, space) for seed in (0, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.perf_counter(), time.process_time()
    Neighbors(space, k=3)(Samples(generated, real))
    seconds, spent = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {"images": f"{chosen.count:,} against {chosen.count:,}", "features": chosen.dim, "s": seconds}
    row |= {"s of processors": spent, "peak, GiB": peak / 2**20, "before, GiB": before / 2**20}
    sys.stdout.write(publish("neighbors", {"Precision and recall": [row]}, chosen.out))
