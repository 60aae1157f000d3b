"""Images a second that pass once through the demo's student, by batch size, and each as a share of the quickest.

    python benchmarks/batches.py

Medians of three rounds through all sizes, so that a busy machine slows them alike.
"""

import sys
from statistics import median

from measuring.results import options, publish

from hidistill.cli.machine import forwards_per_second

SIZES, ROUNDS = (16, 64, 128, 256, 500), 3


if __name__ == "__main__":
    chosen = options(__doc__, "batches", clocks=("wall",)).parse_args()
    rounds = [[forwards_per_second(size) for size in SIZES] for _ in range(ROUNDS)]
    rates = [median(column) for column in zip(*rounds, strict=True)]
    lines = [
        {"batch": size, "images a second": rate, "of the quickest": rate / max(rates)}
        for size, rate in zip(SIZES, rates, strict=True)
    ]
    sys.stdout.write(publish("batches", {"Forwards of the demo's student": lines}, chosen.out))
