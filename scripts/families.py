"""Print one table of all families: small folders and checkpoints, from `inspect` to a picture of stock diffusers.

    python scripts/families.py            # all of them; about five minutes on one core
    python scripts/families.py sana dit   # some

Each family is built small and random, as the tests build it (`tests/small`), and then

- described and tested by what `hidistill inspect` does, on the latents of a cache of small pictures;
- sampled from by our Euler through the adapter and by its stock pipeline, guided where it can be, from the same noise:
  the table has the largest difference in units of the largest value. U-Nets of classes, which no stock pipeline of
  many steps takes labels for, are compared with the scheduler's own steps around the network, and the originals with
  a reference of ours, written from the papers;
- distilled for 2 + 2 steps, exported for stock diffusers, and drawn from there in one step, in a process that never
  saw this package: the table has the largest difference of a pixel in [0, 1] from our own pictures.
"""

import math
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import tyro

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "small")]

from both_samplers import SAMPLERS  # noqa: E402 -- the tests' own
from fresh_process import in_a_fresh_process  # noqa: E402
from small_families import FAMILIES, asked, cached, distilled, losses  # noqa: E402

from hidistill.recipes.exporting import export  # noqa: E402
from hidistill.recipes.inspecting import inspect_teacher  # noqa: E402
from hidistill.scores import markdown  # noqa: E402

HEADER = (
    "family", "network", "convention that inspect read", "checks: ok, warn, fail",
    "sampling against the stock pipeline, float32", "float64", "both stages: losses, all finite",
    "one step of stock diffusers, pixels",
)  # fmt: skip


def sampling(name: str) -> list[str]:
    """The largest difference between our samples and the stock pipeline's, in float32 and in float64."""
    found = []
    for kind in (torch.float32, torch.float64):
        torch.manual_seed(0)
        with torch.no_grad():
            ours, theirs = SAMPLERS[name](kind)
        found.append(f"{float((ours - theirs).abs().max() / theirs.abs().max()):.0e}")
    return found


def inspected(given: dict[str, Any], cache: Path) -> list[str]:
    """Network and convention as `inspect` says them, and how many of its checks came out how."""
    found = inspect_teacher(cache=cache, **given)
    verdicts = [one.verdict for one in found.findings]
    counts = ", ".join(str(verdicts.count(verdict)) for verdict in ("ok", "warn", "fail"))
    network = found.rows["family"].partition("(")[2].rstrip(")")
    return [network, found.rows["convention"], counts]


def run(name: str, root: Path) -> tuple[list[str], tuple[Path, str, dict[str, Any], list[str]], torch.Tensor]:
    """A row but for its last cell, what a fresh process is to draw for that, and our own pictures."""
    torch.manual_seed(0)
    root.mkdir()
    family = FAMILIES[name]
    given = dict(family.teacher(root))
    cache = cached(family, given, root)
    row = [name, *inspected(given, cache), *sampling(name)]
    distilled(given, cache, root / "run")
    numbers = [value for values in losses(root / "run").values() for value in values]
    row.append(f"{len(numbers)}, {'yes' if all(map(math.isfinite, numbers)) else 'NO'}")
    done = export(root / "run", to="diffusers", out=root / "student")
    call, ours = asked(family, root / "run")
    return row, (root / "student", done.words[0].partition(":")[0], call, []), ours


def main(families: tyro.conf.Positional[tuple[str, ...]] = ()) -> None:
    """Print the table.

    Args:
        families: names of families; by default all of them.
    """
    strangers = [name for name in families if name not in FAMILIES]
    if strangers:
        raise SystemExit(f"no family is called {', '.join(strangers)}; there are {', '.join(FAMILIES)}")
    torch.set_num_threads(1)
    for library in (diffusers, transformers):  # they complain of each small part
        library.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        rows, jobs, pictures = [], [], []
        for number, name in enumerate(families or FAMILIES):
            row, job, ours = run(name, Path(folder) / str(number))
            sys.stderr.write(f"{name}\n")
            rows, jobs, pictures = [*rows, row], [*jobs, job], [*pictures, ours]
        for row, theirs, ours in zip(rows, in_a_fresh_process(Path(folder), jobs), pictures, strict=True):
            row.append(f"{float((theirs - ours).abs().max()):.0e}")
    packages = ", ".join(f"{name} {version(name)}" for name in ("hidistill", "torch", "diffusers", "transformers"))
    sys.stdout.write(f"{markdown([HEADER, *rows])}\n{packages}\n")


if __name__ == "__main__":
    tyro.cli(main)
