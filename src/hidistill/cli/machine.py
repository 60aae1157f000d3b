"""What this machine has, and how fast it is: measured, not looked up."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from hidistill.cli.commands.demo import RECIPE
from hidistill.cli.commands.doctor import Finding
from hidistill.cli.lookup import find
from hidistill.cli.progress import duration
from hidistill.data.fashion import bundled, full
from hidistill.evaluate import balanced_subset
from hidistill.recipes.fashion import TEACHER
from hidistill.recipes.judging import Jury, read_teacher
from hidistill.recipes.two_stages import Finish
from hidistill.train.counting import count
from hidistill.train.experiment import Experiment
from hidistill.train.loop import autocast, quickest
from hidistill.train.planning import plan
from hidistill.train.rates import measured
from hidistill.types import Gallery, Samples

FORWARD_SECONDS = 3.0
JUDGED = 100
"""Images on which the judges are timed."""
GIB = 1024**3


def hardware() -> Iterator[Finding]:
    """Cores, memory, disk, accelerators."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", "ok" if cores > 1 else "warning", f"{cores}; torch uses {torch.get_num_threads()} threads")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        yield Finding("memory", "ok" if memory >= 4 else "warning", f"{memory:.1f} GiB; the demo takes about 1")
    free = shutil.disk_usage(Path.cwd()).free / GIB
    yield Finding("free disk", "ok" if free >= 1 else "warning", f"{free:.1f} GiB; the demo's folder takes about 0.2")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding("accelerator", "ok", torch.cuda.get_device_name(index))
    else:
        yield Finding("accelerator", "note", "none that torch can use; the demo needs none")


def data() -> Iterator[Finding]:
    """Whether the pictures are there."""
    yield Finding("bundled pictures", "ok", f"{len(bundled('train').images):,} to train on")
    try:
        yield Finding("full Fashion-MNIST", "ok", f"{len(full('train').images):,} to train on")
    except (FileNotFoundError, ValueError) as error:
        yield Finding("full Fashion-MNIST", "note", f"{error}; only fashion.teacher needs it")


def costs() -> Iterator[Finding]:
    """A measurement of this machine, and what follows for the demo."""
    rate = forwards_per_second()
    yield Finding("student", "ok", f"{rate:,.0f} images a second in one step (the demo's: gray 28 x 28, float32)")
    guided = 1000 * 2 * 50 / rate
    yield Finding("teacher, 50 guided steps", "ok", f"about {duration(guided)} for 1,000 images, 100 forwards each")
    try:
        experiment = find(RECIPE).function()
    except (ValueError, OSError) as error:
        yield Finding("demo", "warning", f"cannot be built: {error}")
        return
    training = sum(seconds_of(experiment)) + seconds_of_probes(experiment)
    yield Finding(
        "demo's training", "ok", f"about {duration(training)} for the {experiment.total_steps} steps of {RECIPE}"
    )
    evaluation = 0.0
    if isinstance(finish := experiment.finish, Finish):
        precision, rows = quickest(), finish.passes
        rate = rate if precision == "float32" else forwards_per_second(precision=precision)
        drawing = sum(rows) * finish.plan.evaluate_samples / rate
        evaluation = drawing + (len(rows) + 1) * seconds_of_judging(finish.judges, finish.plan.evaluate_samples)
        words = f"about {duration(evaluation)} for {len(rows) + 1} rows of {finish.plan.evaluate_samples:,} images"
        yield Finding("demo's evaluation", "ok", words)
    yield Finding("demo, in all", "ok", f"about {duration(training + evaluation)}")


def forwards_per_second(batch: int = 64, precision: str = "float32") -> float:
    """Images per second that pass once through a student of the demo's size."""
    student = read_teacher(TEACHER).student().eval()
    x, t = torch.randn(batch, 1, 28, 28), torch.ones(batch)
    cond = torch.zeros(batch, dtype=torch.long)
    done, begin = -1, time.perf_counter()
    with torch.no_grad(), autocast(precision, "cpu"):
        while done < 1 or time.perf_counter() - begin < FORWARD_SECONDS:
            student.mean_velocity(x, t=t, r=t, cond=cond)
            done += 1
            if done == 0:  # the first pass allocates; it does not count
                begin = time.perf_counter()
    return batch * done / (time.perf_counter() - begin)


def seconds_of(experiment: Experiment) -> Iterator[float]:
    """Seconds that each stage would take, counted and not run."""
    work = count(experiment)
    works = [each for updates in work.values() for each in updates.values()]
    for stage in plan(experiment, work, measured(works, precision=experiment.precision)):
        yield stage.steps * stage.computing


def seconds_of_probes(experiment: Experiment) -> float:
    """Seconds that the short evaluations along the way would take, from one of them."""
    if experiment.probe is None or not experiment.probe_every:
        return 0.0
    begin = time.perf_counter()
    experiment.probe(experiment.stages[0].name)
    seconds = time.perf_counter() - begin
    return seconds * sum(stage.steps // experiment.probe_every + 1 for stage in experiment.stages)


def seconds_of_judging(judges: Jury, samples: int) -> float:
    """Seconds that the judges would take for one row of so many images.

    Features take time per image; what is made of them, such as a matrix's eigenvalues, takes about the same for any
    number of images that is usual here.
    """
    real, generated = (Gallery.of(balanced_subset(split, JUDGED)) for split in (judges.test, judges.train))
    for space in judges.spaces:
        real.features(space)
    begin = time.perf_counter()
    for space in judges.spaces:
        generated.features(space)
    features = time.perf_counter() - begin
    begin = time.perf_counter()
    for metric in judges.metrics():
        metric(Samples(generated, real))
    return features * samples / JUDGED + time.perf_counter() - begin
