"""One cell of an experiment, in a process of its own.

python -m hidistill.experiments.cell NAME ARGUMENTS SEED DIR
"""

import json
import math
import sys
import time
from pathlib import Path

import torch

from hidistill.experiments.grid import find, store


def main(name: str, words: str, seed: str, place: str) -> None:
    """Measure, and store what was found.

    Raises:
        ValueError: if a number is not finite.
    """
    torch.set_num_threads(1)
    arguments, folder = json.loads(words), Path(place)
    began = time.process_time()
    numbers = {key: float(value) for key, value in find(name).cell(seed=int(seed), folder=folder, **arguments).items()}
    strange = {key: value for key, value in numbers.items() if not math.isfinite(value)}
    if strange:
        raise ValueError(f"{name}, seed {seed}, {arguments}: {strange} came; numbers are finite, or absent")
    store(folder, arguments, numbers, time.process_time() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
