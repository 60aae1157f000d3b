"""Runs the cells of an experiment in processes of their own, and takes the grid up again where it stopped."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from hidistill import __version__
from hidistill.experiments.study import Grid, Results, Size, Study, Variant
from hidistill.files import exclusive, whole

logger = logging.getLogger(__name__)

RESULT, LOG = "result.json", "log.txt"


class CellFailed(RuntimeError):
    """Cells that did not come to their end."""


@dataclass(frozen=True)
class Task:
    """One cell: a variant with a seed."""

    variant: Variant
    seed: int

    def folder(self, out: Path) -> Path:
        """Where it lies."""
        plain = "".join(c if c.isalnum() or c in "-_.," else "-" for c in self.variant.name)
        return out / "cells" / plain / str(self.seed)


def find(name: str) -> Study:
    """An experiment by its name, `open-questions` say.

    Raises:
        ValueError: if there is none; names those that are there.
    """
    names = known()
    if name not in names:
        raise ValueError(f"there is no experiment {name!r}; there are {', '.join(names)}")
    study = import_module(f"hidistill.experiments.studies.{name.replace('-', '_')}").STUDY
    assert isinstance(study, Study)
    return study


def known() -> list[str]:
    """Names of all experiments."""
    shelf = Path(__file__).with_name("studies")
    return sorted(path.stem.replace("_", "-") for path in shelf.glob("[a-z]*.py"))


def chosen(study: Study, size: Size, *, seeds: tuple[int, ...], variants: tuple[str, ...]) -> Grid:
    """A grid of a study, or a part of it: variants with all that they and the study are compared with.

    Raises:
        ValueError: if a variant is none of the grid's, which are then named, or a seed is none or comes twice.
    """
    every = study.grids[size]
    rows = {variant.name: variant for variant in every.variants}
    if strangers := [name for name in variants if name not in rows]:
        raise ValueError(f"variants {strangers} are none of this experiment's at size {size}; these are {list(rows)}")
    kept = {study.reference, *variants}
    while more := {other for name in kept for other in rows[name].against or ()} - kept:
        kept |= more
    return Grid([row for name, row in rows.items() if not variants or name in kept], seeds or every.seeds)


def run(
    name: str,
    size: Size,
    out: Path,
    *,
    jobs: int,
    seeds: tuple[int, ...] = (),
    variants: tuple[str, ...] = (),
) -> Results:
    """Measure every cell that is missing, and give all results.

    Args:
        name: of the experiment.
        size: which of its grids.
        out: folder of the experiment; the same again goes on.
        jobs: cells at a time, each a process of one thread.
        seeds: in place of the grid's; none keeps those.
        variants: names of those to run, with what they are compared with; none runs all.

    Raises:
        ValueError: if the folder is in use or holds another experiment's cells, there are no jobs, or a variant is
            none of the grid's.
        CellFailed: if cells failed; names them and where their output lies. All others were run.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: at least one cell must run at a time; as many as cores are usual")
    study = find(name)
    grid = chosen(study, size, seeds=seeds, variants=variants)
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out, partial(busy, out)):
        tasks = [Task(variant, seed) for seed in grid.seeds for variant in grid.variants]
        missing = [task for task in tasks if stored(task, out) is None]
        if len(missing) < len(tasks):
            logger.info("%d of %d cells are there", len(tasks) - len(missing), len(tasks))
        failed = work_off(name, missing, out, jobs=jobs)
    if failed:
        first = failed[0].folder(out) / LOG
        listed = ", ".join(f"{task.variant.name} with seed {task.seed}" for task in failed[:5])
        raise CellFailed(f"{len(failed)} of {len(tasks)} cells failed: {listed}; {first} says why. All others are kept")
    found = {(task.variant.name, task.seed): stored(task, out) for task in tasks}
    there = {key: value for key, value in found.items() if value is not None}
    numbers = {key: value["numbers"] | {"seconds": value["seconds"]} for key, value in there.items()}
    codes = {key: value["code"] for key, value in there.items()}
    if others := sum(code != state_of_code() for code in codes.values()):
        logger.warning(
            "%d of %d cells were measured by another state of the code; to measure them anew, remove %s",
            others, len(codes), out / "cells",
        )  # fmt: skip
    return Results(study, grid, numbers, codes)


def busy(out: Path, process: str) -> ValueError:
    """The error for a folder in which another process works."""
    return ValueError(f"{out} is in use by another experiment (process {process}); wait for it, or use another --out")


def work_off(name: str, tasks: list[Task], out: Path, *, jobs: int) -> list[Task]:
    """Run tasks, `jobs` at a time; those that failed. Interrupted, the running ones end with it."""
    running: list[subprocess.Popen] = []
    failed: list[Task] = []
    began, done = time.monotonic(), 0
    with ThreadPoolExecutor(jobs) as pool:
        waiting: dict[Future[int], Task] = {pool.submit(measured, name, task, out, running): task for task in tasks}
        try:
            for future, task in completed(waiting):
                done += 1
                left = (time.monotonic() - began) / done * (len(tasks) - done)
                ended = "measured" if future.result() == 0 else "FAILED"
                failed += [task] if future.result() else []
                logger.info(
                    "%d/%d %s: %s with seed %d, about %d min left",
                    done, len(tasks), ended, task.variant.name, task.seed, round(left / 60),
                )  # fmt: skip
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    return failed


def completed(futures: Mapping[Future[int], Task]) -> Iterator[tuple[Future[int], Task]]:
    """Futures with their tasks as they end."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield future, futures[future]


def measured(name: str, task: Task, out: Path, running: list[subprocess.Popen]) -> int:
    """Run a cell in a process of its own; its exit status."""
    folder = task.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    words = [json.dumps(dict(task.variant.arguments)), str(task.seed), str(folder)]
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with (folder / LOG).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hidistill.experiments.cell", name, *words],
            stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ) | single,
        )  # fmt: skip
        running.append(process)
        return process.wait()


def store(folder: Path, arguments: Mapping[str, Any], numbers: Mapping[str, float], seconds: float) -> None:
    """Write what a cell found."""
    about = {"version": __version__, "code": state_of_code(), "seconds": seconds}
    content = {"arguments": dict(arguments), **about, "numbers": dict(numbers)}
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / RESULT) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@lru_cache(maxsize=1)
def state_of_code() -> str:
    """What tells the sources that decide an experiment's numbers from others: a hash over the package."""
    root, total = Path(__file__).parents[1], hashlib.sha256()
    for shelf in ("experiments", "objectives", "discriminators", "metrics", "teachers", "train", "recipes", "data"):
        for path in sorted((root / shelf).rglob("*.py")):
            total.update(path.read_bytes())
    return total.hexdigest()[:12]


def stored(task: Task, out: Path) -> dict[str, Any] | None:
    """What a cell found, and how; None if it was not run to its end.

    Raises:
        ValueError: if it was run with other arguments.
    """
    path = task.folder(out) / RESULT
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["arguments"] != json.loads(json.dumps(dict(task.variant.arguments))):
        raise ValueError(
            f"{path} was measured with the arguments {content['arguments']}, now they are "
            f"{dict(task.variant.arguments)}; use another --out, or remove {path.parent}"
        )
    return content
