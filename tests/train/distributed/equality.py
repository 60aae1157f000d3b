"""How far runs of several processes end from the run of one: `python tests/train/distributed/equality.py`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from nursery import together
from safetensors.torch import load_file
from test_replicated import difference as of_all_roles

PLAIN = {"adversarial": False}
RUNS = [  # what it is; how it is done, in turn; what is different in the run of one that it is compared with
    ("2 processes, networks whole", [{"count": 2}], {}),
    ("4 processes, networks whole", [{"count": 4}], {}),
    ("4 processes, central differences", [{"count": 4, "derivative": "central"}], {"derivative": "central"}),
    ("2 processes, 12 rows, of which 3 pay the penalty", [{"count": 2, "rows": 12}], {"rows": 12}),
    ("1 process, 4 passes, no adversarial gradient", [{"passes": 4, **PLAIN}], PLAIN),
    ("2 processes, 2 passes, no adversarial gradient", [{"count": 2, "passes": 2, **PLAIN}], PLAIN),
    ("1 process, 4 passes", [{"passes": 4}], {}),
    ("2 processes, networks in parts", [{"count": 2, "sharding": {}}], {}),
    ("4 processes, networks in parts", [{"count": 4, "sharding": {}}], {}),
    (
        "2 processes, parts, recomputed, frozen ones offloaded",
        [{"count": 2, "sharding": {"recompute": True, "offload_frozen": True}}],
        {},
    ),
    ("2 processes, parts, central", [{"count": 2, "sharding": {}, "derivative": "central"}], {"derivative": "central"}),
    (
        "killed at step 17 and taken up by another number: 2, 4, 1",
        [{"count": 2, "at": 17, "happens": "die"}, {"count": 4, "at": 29, "happens": "die"}, {}],
        {},
    ),
    (
        "killed twice and taken up in parts, whole, in parts: 4, 1, 2",
        [{"count": 4, "sharding": {}, "at": 17, "happens": "die"}, {"at": 29, "happens": "die"},
         {"count": 2, "sharding": {}}],
        {},
    ),
    ("2 processes, Adam's eps 1e-8", [{"count": 2, "eps": 1e-8}], {"eps": 1e-8}),
]  # fmt: skip


def of_products(one, other):
    one, other = (load_file(folder / "models" / "student.safetensors") for folder in (one, other))
    return max(float((value - other[key]).abs().max()) for key, value in one.items())


def main():
    references, every = {}, {"checkpoint_every": 5}
    sys.stdout.write("| | largest difference of any weight |\n|---|---|\n")
    with TemporaryDirectory() as place:
        for number, (name, parts, base) in enumerate(RUNS):
            key, folder = str(sorted(base.items())), Path(place) / str(number)
            runs = [part | every | {"folder": folder} for part in parts]
            if key not in references:
                references[key] = Path(place) / f"one-{number}"
                runs.append(base | {"folder": references[key]})
            ends = together(runs)
            parted = any("sharding" in part for part in parts)
            try:
                found = (of_products if parted else of_all_roles)(folder, references[key])
                sys.stdout.write(f"| {name} | {found:.1e}{' (student)' if parted else ''} |\n")
            except (OSError, AssertionError) as error:
                sys.stdout.write(f"| {name} | failed: {error!r} {ends} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
