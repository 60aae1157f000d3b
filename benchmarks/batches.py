"""Images a second that pass once through the demo's student, by batch size, and each as a share of the quickest.

    python benchmarks/batches.py

Medians of three rounds through all sizes, so that a busy machine slows them alike.
"""

import sys
from statistics import median

from hidistill.cli.machine import forwards_per_second
from hidistill.scores import markdown

SIZES, ROUNDS = (16, 64, 128, 256, 500), 3


if __name__ == "__main__":
    rounds = [[forwards_per_second(size) for size in SIZES] for _ in range(ROUNDS)]
    rates = [median(column) for column in zip(*rounds, strict=True)]
    lines = [[str(size), f"{rate:.0f}", f"{rate / max(rates):.2f}"] for size, rate in zip(SIZES, rates, strict=True)]
    sys.stdout.write(markdown([["batch", "images a second", "of the quickest"], *lines]))
