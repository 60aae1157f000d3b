"""The accident campaign: runs of several processes are killed at random moments, again and again.

`python tests/train/distributed/campaign.py --kills 50` prints one line a run and a table at the end. Each run is killed
and taken up again until it is finished, then compared with one that nobody disturbed.

Runs of points keep their number of processes: they must end equal to the last bit. Runs of both stages are taken up by
another number of processes, holding networks whole or in parts, at random: they must end within 1e-6.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from nursery import together
from safetensors.torch import load_file

KINDS = {
    "points": {"what": "small", "steps": 100, "checkpoint_every": 7, "slow": 0.05},
    "both stages": {"what": "two_stages", "steps": 40, "checkpoint_every": 3},
}
MOMENTS = {"points": (0.3, 2.0), "both stages": (0.5, 4.0)}
KILLS_A_RUN = 8
LIMITS = {"points": 0.0, "both stages": 1e-6}


def say(words):
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def product(folder):
    return load_file(folder / "models" / "student.safetensors")


def difference(folder, other):
    one, two = product(folder), product(other)
    return max(float((value - two[key]).abs().max()) for key, value in one.items())


def settings(kind, chance):
    """How a run is started or taken up."""
    if kind == "points":
        return {"count": 2}
    count = chance.choice((1, 2, 4))
    parted = count > 1 and chance.random() < 0.5
    return {"count": count} | ({"sharding": {}} if parted else {})


def disturbed(kind, folder, chance, counted):
    """Kill a run some times, then let it end; how many kills it took. All in one nursery, which starts in seconds."""
    base = KINDS[kind] | {"folder": folder, "background": chance.random() < 0.5, "patience": 10.0, "seconds": 900}
    runs = []
    for _ in range(KILLS_A_RUN):
        how = settings(kind, chance)
        kill = {"after": chance.uniform(*MOMENTS[kind]), "to": chance.choice((0, how["count"] - 1, -1))}
        runs.append(base | how | {"kill": kill})
    kills = 0
    for run, ends in zip(runs, together([*runs, base | settings(kind, chance)]), strict=False):
        statuses = [end["status"] for end in ends]
        if -9 in statuses:
            kills += 1
            held = "in parts" if "sharding" in run else "whole"
            victims = "all" if run["kill"]["to"] == -1 or run["count"] == 1 else "one"
            counted[f"{kind}, {run['count']} processes, networks {held}, {victims} killed"] += 1
        elif set(statuses) != {0}:
            say(f"unexpected: {statuses} {[end['error'] for end in ends]}")
            counted["unexpected ends"] += 1
    return kills


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance, counted, kills, worst, began = random.Random(given.seed), Counter(), 0, Counter(), time.monotonic()
    with TemporaryDirectory() as place:
        for kind, run in KINDS.items():
            count = 2 if kind == "points" else 1
            together([run | {"folder": Path(place) / kind, "count": count}])
        number = 0
        while kills < given.kills:
            kind = ("points", "both stages")[number % 2]
            folder = Path(place) / f"run-{number}"
            taken = disturbed(kind, folder, chance, counted)
            apart = difference(folder, Path(place) / kind)
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            steps = [line["global_step"] for line in lines if line["kind"] == "step"]
            whole = steps == list(range(1, 2 * KINDS[kind]["steps"] + 1))
            kills, number = kills + taken, number + 1
            worst[kind] = max(worst[kind], apart)
            counted["runs that ended as undisturbed ones"] += apart <= LIMITS[kind] and whole
            say(f"run {number}, {kind}: {taken} kills, {kills} in all; difference {apart:.1e}; journal whole: {whole}")
    say("")
    for words, times in sorted(counted.items()):
        say(f"| {words} | {times} |")
    say(f"| runs | {number} |")
    say(f"| largest difference, points | {worst['points']:.1e} |")
    say(f"| largest difference, both stages | {worst['both stages']:.1e} |")
    say(f"{kills} kills in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
