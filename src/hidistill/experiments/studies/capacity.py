"""Whether a one-step student is held back by its size or by its objective: from a rectangle to a semicircle."""

import math
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Adam

from hidistill import weights
from hidistill.derivative import Forward
from hidistill.experiments.figure import Curve, Panel, Picture, curves
from hidistill.experiments.study import Column, Grid, Results, Study, Variant
from hidistill.experiments.toys import BATCH, batches, energy_distance, once, train
from hidistill.files import whole
from hidistill.objectives.combine import OnGenerated, OnNoised, OnSamples
from hidistill.objectives.dmd import DMD
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.objectives.meanflow import MeanFlow
from hidistill.objectives.regression import Paired, Regression, stored
from hidistill.path import sum_per_sample
from hidistill.sampling import heun, jump
from hidistill.seeds import fold_in, shuffled
from hidistill.teachers.mlp import MLP, FlowMapMLP
from hidistill.times import Arcsine, Uniform
from hidistill.train.ema import Average
from hidistill.train.loop import steps
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Points

HALF_SIDES = (1.6, 0.9)
"""Of the rectangle that trajectories start in."""
RADIUS, THICKNESS, LOW = 1.5, 0.03, -0.6
"""Of the semicircle that they end on, and the height of its center."""
WIDTHS = {"1x": 8, "2x": 13, "5x": 22, "10x": 33, "20x": 47, "50x": 77, "500x": 250}
"""Of students with about so many times the weights of the first."""
TEACHER = {"dim": 2, "classes": 0, "width": 128, "depth": 3}
ENDS, PAIRS, SOLVER_STEPS = 2048, 32_768, 50
"""Starts that are judged, pairs that regression learns from, and Heun's steps to the teacher's ends."""


def rectangle(like: Tensor) -> Points:
    """Uniform in the rectangle, one point per row of `like`."""
    return (2 * torch.rand_like(like) - 1) * torch.tensor(HALF_SIDES).to(like)


def semicircle(count: int, generator: torch.Generator) -> Points:
    """Uniform on the upper half of a thin circle."""
    angle = math.pi * torch.rand(count, generator=generator)
    radius = RADIUS + THICKNESS * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin() + LOW], 1)


def beside(points: Points) -> Tensor:
    """Distance of each point from the semicircle's line."""
    x, y = points[:, 0], points[:, 1] - LOW
    ring = (points - torch.tensor([0.0, LOW])).norm(dim=1) - RADIUS
    tips = torch.stack([(x - RADIUS).square() + y.square(), (x + RADIUS).square() + y.square()]).amin(0).sqrt()
    return torch.where(y >= 0, ring.abs(), tips)


def teacher_at(folder: Path, *, seed: int, length: int) -> MLP:
    """The teacher of a seed, which all variants share: trained once."""

    def make(path: Path) -> None:
        torch.manual_seed(fold_in(seed, "teacher"))
        net = MLP(**TEACHER)
        objective = FlowMatching(net, Uniform(), noise=rectangle)
        train(net, objective, batches(semicircle, seed=seed), length=length, seed=seed, name="teacher", decay=0.999)
        weights.save(path, net, family="mlp", config=net.config)

    path = once(folder.parents[2] / f"teacher-{seed}" / f"{length}.safetensors", make)
    net = MLP.from_config(TEACHER)
    weights.load_into(net, weights.read(path).tensors, source=str(path))
    return net.eval().requires_grad_(False)


def pairs_at(folder: Path, teacher: MLP, *, seed: int, length: int) -> tuple[Points, Points]:
    """Starts and the teacher's ends of a seed, for regression: solved once."""

    def make(path: Path) -> None:
        noise = rectangle_of(PAIRS, torch.Generator().manual_seed(fold_in(seed, "pairs")))
        with torch.no_grad():
            ends = [
                heun(teacher, part, cond=torch.zeros(len(part), dtype=torch.long), steps=SOLVER_STEPS)
                for part in noise.split(2048)
            ]
        with whole(path) as place:
            save_file({"noise": noise, "ends": torch.cat(ends)}, place)

    found = load_file(once(folder.parents[2] / f"pairs-{seed}" / f"{length}.safetensors", make))
    return found["noise"], found["ends"]


def cell(*, seed: int, folder: Path, method: str, width: int, length: int, teacher_length: int) -> Mapping[str, float]:
    """A student of a width and a method, judged by where it ends in one step.

    `teacher` is the teacher itself in `length` Heun steps.
    """
    teacher = teacher_at(folder, seed=seed, length=teacher_length)
    generator = torch.Generator().manual_seed(fold_in(seed, "held out"))
    noise = rectangle_of(ENDS, generator)
    cond = torch.zeros(ENDS, dtype=torch.long)
    with torch.no_grad():
        ends = heun(teacher, noise, cond=cond, steps=SOLVER_STEPS)
    if method == "teacher":
        with torch.no_grad():
            return judged(heun(teacher, noise, cond=cond, steps=length), ends, generator)
    torch.manual_seed(fold_in(seed, "student"))
    student = MLP(dim=2, classes=0, width=width, depth=3).student()
    if method == "regression":
        noises, landed = pairs_at(folder, teacher, seed=seed, length=teacher_length)
        regress(student, noises, landed, length=length, seed=seed)
    else:
        distill(student, teacher, method, length=length, seed=seed)
    with torch.no_grad():
        numbers = judged(jump(student, noise, cond=cond, times=(1.0, 0.0)), ends, generator)
    return numbers | {"weights": sum(parameter.numel() for parameter in student.parameters())}


def rectangle_of(count: int, generator: torch.Generator) -> Points:
    """Points of the rectangle, with a generator."""
    return (2 * torch.rand(count, 2, generator=generator) - 1) * torch.tensor(HALF_SIDES)


def judged(points: Points, ends: Points, generator: torch.Generator) -> dict[str, float]:
    """How far points are from the teacher's ends of the same starts, and from the target."""
    target = semicircle(ENDS, generator)
    return {
        "end": float(sum_per_sample((points - ends).square()).mean().sqrt()),
        "target": energy_distance(points, target),
        "off": float((beside(points) > 5 * THICKNESS).float().mean()),
    }


def distill(student: FlowMapMLP, teacher: MLP, method: str, *, length: int, seed: int) -> None:
    """Train a student by a method."""
    batch_at = batches(semicircle, seed=seed)
    sketch = partial(MeanFlow, teacher, student, Forward(), Uniform(), noise=rectangle)
    objectives = {
        "meanflow": partial(sketch, instantaneous=0.25),
        "meanflow, plain squares": partial(sketch, instantaneous=0.25, power=0.0),
        "meanflow, 3/4 instantaneous": partial(sketch, instantaneous=0.75),
        "meanflow, then DMD": partial(sketch, instantaneous=0.25),
    }
    train(student, objectives[method](), batch_at, length=length, seed=seed)
    if method == "meanflow, then DMD":
        match(student, teacher, length=length // 4, seed=seed)


def regress(student: FlowMapMLP, noise: Points, ends: Points, *, length: int, seed: int) -> None:
    """Train a student on pairs of start and end."""

    def batch_at(step: int) -> Paired:
        rows = shuffled(len(noise), batch_size=BATCH, step=step, seed=seed)
        return Paired(ends[rows], torch.zeros(BATCH, dtype=torch.long), step, noise=noise[rows])

    train(student, Regression(student, stored), batch_at, length=length, seed=seed)


def match(student: FlowMapMLP, teacher: MLP, *, length: int, seed: int) -> None:
    """DMD on the student's samples, with a copy of the teacher as the fake score."""
    fake, average = deepcopy(teacher), Average(student, 0.99)
    judge = OnNoised(teacher, Uniform(0.02, 0.98), {"dmd": DMD(fake)}, noise=rectangle)
    critic = OnGenerated(FlowMatching(fake, Arcsine(), noise=rectangle))
    samples = partial(OnSamples, student, noise=rectangle)
    updates = {
        "critic": Update(samples({"fake": critic}, differentiable=False), Adam(fake.parameters(), 1e-3, (0.0, 0.99))),
        "student": Update(
            samples({"judged": judge}, differentiable=True), Adam(student.parameters(), 5e-4, (0.0, 0.99)), every=2,
            schedule=WarmupDecay(length, min(10, length // 10), length // 2),
        ),
    }  # fmt: skip
    stage = Stage("refine", updates, length, {"student": average})
    for _ in steps(stage, batches(semicircle, seed=fold_in(seed, "refine")), seed=seed):
        pass
    average.install()


def grid(sizes: tuple[str, ...], *, length: int, seeds: int) -> Grid:
    """MeanFlow and regression at every size; at the largest but one of them what else could hold MeanFlow back."""
    fixed = {"teacher_length": length}
    variants = [
        Variant(
            f"{method}, {size}",
            {"method": method, "width": WIDTHS[size], "length": length, **fixed},
            () if method == "meanflow" else (f"meanflow, {size}",),
        )
        for method in ("meanflow", "regression", "meanflow, then DMD")
        for size in sizes
    ]
    for method, factor in (
        ("meanflow", 4),
        ("regression", 4),
        ("meanflow, plain squares", 1),
        ("meanflow, plain squares", 4),
        ("meanflow, 3/4 instantaneous", 1),
    ):
        name = f"{method}, 50x" + (f", {factor} times longer" if factor > 1 else "")
        variants.append(Variant(name, {"method": method, "width": WIDTHS["50x"], "length": factor * length, **fixed}))
    for count in (1, 2, 4):
        arguments = {"method": "teacher", "width": TEACHER["width"], "length": count, **fixed}
        variants.append(Variant(f"teacher, {count} Heun step{'s' if count > 1 else ''}", arguments))
    return Grid(variants, range(seeds))


def figure(results: Results) -> Picture:
    """Both errors over the number of weights."""
    panels = []
    words = {
        "end": "distance to the teacher's end, root mean square",
        "target": "energy distance to the target",
    }
    for key, ylabel in words.items():
        lines = []
        for method in ("meanflow", "regression", "meanflow, then DMD"):
            sizes = [s for s in WIDTHS if any(v.name == f"{method}, {s}" for v in results.grid.variants)]
            x = [results.of(f"{method}, {size}", "weights")[0] for size in sizes]
            if sizes:
                lines.append(Curve(method, x, [results.of(f"{method}, {size}", key) for size in sizes]))
        panels.append(Panel(lines, "weights of the student", ylabel, {}))
    caption = (
        "One-step students of growing size on the task rectangle to semicircle: distance of their points from the "
        "teacher's ends of the same starts (left; units of the plane, the semicircle's radius is 1.5), and energy "
        f"distance to fresh points of the semicircle (right). {ENDS} starts, {len(results.grid.seeds)} seeds of "
        "teacher, student, data and noise; small points are the seeds."
    )
    return curves(panels, caption)


STUDY = Study(
    question=(
        "Is the error of a one-step student of trajectory distillation the limit of its size (arXiv 2511.08930, "
        "section 5.1), or of its objective?"
    ),
    setting=(
        "Points of a rectangle flow to a thin semicircle along the field of a perceptron that learned it by flow "
        "matching; students are perceptrons of growing width that begin at random weights. Regression on pairs of "
        "start and teacher's end (32,768 of them, solved once), with the same network and as many updates, shows what "
        'the size alone allows. "Then DMD" trains a quarter longer; with a rectangle for noise velocities are no '
        "scores, so that its direction is that of the difference of two denoisers and no divergence's gradient."
    ),
    grids={
        "small": grid(("1x", "5x", "50x", "500x"), length=800, seeds=5),
        "full": grid(tuple(WIDTHS), length=6000, seeds=5),
    },
    cell=cell,
    columns=(
        Column("end", "distance to the teacher's end"),
        Column("target", "energy distance to the target"),
        Column("off", "share off the semicircle"),
        Column("weights", "weights", ""),
    ),
    reference="meanflow, 50x",
    figure=figure,
)
