"""Whether every trajectory distillation regresses a mean velocity: the two propositions, in closed form and learned."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from hidistill.derivative import Forward
from hidistill.experiments.figure import Curve, Panel, Picture, curves
from hidistill.experiments.study import Column, Grid, Results, Study, Variant
from hidistill.experiments.toys import batches, of_mixture, relative, three_bumps, train
from hidistill.objectives.consistency import Consistency, heun_step
from hidistill.objectives.continuous import ContinuousConsistency
from hidistill.objectives.meanflow import MeanFlow
from hidistill.objectives.progressive import EulerMap, Progressive, rounds
from hidistill.objectives.regression import Regression, Solved
from hidistill.path import interpolate, per_row
from hidistill.seeds import fold_in
from hidistill.teachers.mixture import ExactFlowMap, Mixture
from hidistill.teachers.mlp import MLP
from hidistill.times import LogitNormal, Uniform
from hidistill.types import Batch, Objective, Points, Student, Times

POINTS = 512
EXACT_STEPS = 200
"""Of the Runge-Kutta integration that truth is computed by."""
CONSISTENCY_STEPS, PROGRESSIVE_STEPS, PAIR_STEPS = 160, 64, 50


def cell(*, seed: int, folder: Path, kind: str, **arguments: float | str) -> Mapping[str, float]:
    """One variant: `identity`, `recursion` or `network`."""
    del folder
    kinds = {"identity": identity, "recursion": recursion, "network": network}
    return kinds[kind](seed=seed, **arguments)  # type: ignore[arg-type]


def noises(seed: int, dtype: torch.dtype) -> Points:
    """Starts that no training sees."""
    return torch.randn(POINTS, 2, generator=torch.Generator().manual_seed(fold_in(seed, "held out")), dtype=dtype)


def identity(*, seed: int, step: float) -> dict[str, float]:
    """Proposition 1: `v - t du/dt` along the trajectory is u itself, for u over [0, t] and the closed-form field.

    The derivative is a central difference in float64 of the map that Runge-Kutta integration gives.
    """
    mixture = three_bumps(torch.float64)
    exact = ExactFlowMap(mixture, EXACT_STEPS)
    generator = torch.Generator().manual_seed(fold_in(seed, "held out"))
    cond = torch.zeros(POINTS, dtype=torch.long)
    t = 0.05 + 0.9 * torch.rand(POINTS, generator=generator, dtype=torch.float64)
    noise = torch.randn(POINTS, 2, generator=generator, dtype=torch.float64)
    x_t = interpolate(mixture.sample(cond, generator=generator), noise, t)
    v, u = mixture.velocity(x_t, t=t, cond=cond), over_all(exact, x_t, t)
    beside = [over_all(exact, advanced(mixture, x_t, t, h), t + h) for h in (step, -step)]
    du = (beside[0] - beside[1]) / (2 * step)
    return {"inside": relative(v - per_row(t, v) * du, u), "trivial": relative(v, u)}


def over_all(student: Student, x_t: Points, t: Times) -> Points:
    """`u(x_t, 0, t)`."""
    with torch.no_grad():
        cond = torch.zeros(len(t), dtype=torch.long)
        return student.mean_velocity(x_t, t=t, r=torch.zeros_like(t), cond=cond)


def advanced(mixture: Mixture, x_t: Points, t: Times, h: float) -> Points:
    """The trajectory's point at t + h."""
    cond = torch.zeros(len(t), dtype=torch.long)
    u = ExactFlowMap(mixture, 4).mean_velocity(x_t, t=t, r=t + h, cond=cond)
    return x_t + h * u


def recursion(*, seed: int, steps: float) -> dict[str, float]:
    """Proposition 2: perfect rounds of progressive distillation give the mean of the teacher's Euler velocities.

    Their error against the mean velocity is that of Euler's method: first order in 1 / steps.
    """
    mixture, count = three_bumps(torch.float64), int(steps)
    x_1 = noises(seed, torch.float64)
    t, cond = torch.ones(POINTS, dtype=torch.float64), torch.zeros(POINTS, dtype=torch.long)
    found = perfect(mixture, x_1, t, 1.0, count)
    x, total = x_1, torch.zeros_like(x_1)
    for index in range(count):
        v = mixture.velocity(x, t=t - index / count, cond=cond)
        x, total = x - v / count, total + v
    truth = over_all(ExactFlowMap(mixture, EXACT_STEPS), x_1, t)
    return {"error": relative(found, truth), "identity": relative(found, total / count)}


def perfect(mixture: Mixture, x_t: Points, t: Times, length: float, count: int) -> Points:
    """The map over [t - length, t] after log2(count) perfect rounds: the mean of the round before's two answers."""
    if count == 1:
        return mixture.velocity(x_t, t=t, cond=torch.zeros(len(t), dtype=torch.long))
    half = length / 2
    first = perfect(mixture, x_t, t, half, count // 2)
    return (first + perfect(mixture, x_t - half * first, t - half, half, count // 2)) / 2


def network(*, seed: int, objective: str, length: float, width: float) -> dict[str, float]:
    """A student of a given size trains from random weights along the closed-form field, and meets the truth."""
    torch.manual_seed(fold_in(seed, "weights"))
    mixture, student = three_bumps(), MLP(dim=2, classes=0, width=int(width), depth=3).student()
    batch_at = batches(of_mixture(mixture), seed=seed)
    if objective == "progressive":
        previous: Student = EulerMap(mixture)
        plan = rounds(PROGRESSIVE_STEPS)
        for count in plan:
            goal = Progressive(previous, student, count)
            train(student, goal, batch_at, length=int(length) // len(plan), seed=seed, name=f"round {count}")
            previous = deepcopy(student).requires_grad_(False)
    else:
        train(student, objectives(objective, mixture, student), batch_at, length=int(length), seed=seed)
    x_1, ones = noises(seed, torch.float32), torch.ones(POINTS)
    exact = ExactFlowMap(mixture, EXACT_STEPS)
    numbers = {"error": relative(over_all(student, x_1, ones), over_all(exact, x_1, ones))}
    if objective in ("meanflow", "discrete consistency", "continuous consistency"):
        batch = batch_at(10**6)
        x_t, t = on_path(batch, fold_in(seed, "times"))
        numbers["inside"] = relative(over_all(student, x_t, t), over_all(exact, x_t, t))
    return numbers


def on_path(batch: Batch, seed: int) -> tuple[Tensor, Times]:
    """Noised samples at times in [0.05, 1]."""
    generator = torch.Generator().manual_seed(seed)
    t = 0.05 + 0.95 * torch.rand(len(batch.x), generator=generator)
    return interpolate(batch.x, torch.randn(batch.x.shape, generator=generator), t), t


def objectives(name: str, mixture: Mixture, student: Student) -> Objective:
    """The objectives that train in one stage."""
    found: dict[str, Objective] = {
        "meanflow": MeanFlow(mixture, student, Forward(), Uniform(), 0.25),
        "discrete consistency": Consistency(mixture, student, student, CONSISTENCY_STEPS, solver=heun_step),
        "continuous consistency": ContinuousConsistency(
            mixture, student, Forward(), LogitNormal(0.9, 1.6), warmup_steps=300
        ),
        "regression": Regression(student, Solved(mixture, PAIR_STEPS)),
    }
    return found[name]


def grid(length: int, width: int, seeds: int) -> Grid:
    """All variants at one length of training."""
    variants = [Variant("Prop. 1: identity, closed form", {"kind": "identity", "step": 1e-4}, ())]
    variants += [
        Variant(f"Prop. 2: recursion, N = {n}", {"kind": "recursion", "steps": n}, ())
        for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    ]
    for name in ("meanflow", "discrete consistency", "continuous consistency", "progressive", "regression"):
        arguments = {"kind": "network", "objective": name, "length": length, "width": width}
        variants.append(Variant(f"network: {name}", arguments))
    return Grid(variants, range(seeds))


def figure(results: Results) -> Picture:
    """Proposition 2's first order, and what networks reach."""
    sizes = [int(v.arguments["steps"]) for v in results.grid.variants if v.arguments["kind"] == "recursion"]
    errors = [results.of(f"Prop. 2: recursion, N = {n}", "error") for n in sizes]
    lines = []
    if sizes:
        first = sum(errors[-1]) / len(errors[-1]) * sizes[-1]
        lines = [
            Curve("perfect rounds", [float(n) for n in sizes], errors),
            Curve("first order, 1 / N", [float(n) for n in sizes], [[first / n] for n in sizes]),
        ]
    levels = {
        name.removeprefix("network: "): sum(values) / len(values)
        for name in (variant.name for variant in results.grid.variants)
        if name.startswith("network: ") and (values := results.of(name, "error"))
    }
    xlabel, ylabel = "teacher's Euler steps N", "relative error of u(x₁, 0, 1)"
    caption = (
        "Error of progressive distillation's last map after log2 N perfect rounds against the mean velocity over "
        "[0, 1] (closed form, float64), and, as levels, of equal networks that were trained by five objectives; "
        f"{POINTS} held-out starts, {len(results.grid.seeds)} seeds; mixture of three Gaussians in two dimensions."
    )
    return curves([Panel(lines, xlabel, ylabel, levels)], caption)


STUDY = Study(
    question=(
        "Do consistency models, MeanFlow and progressive distillation all regress the mean velocity "
        "(propositions 1 and 2 of arXiv 2511.08930)?"
    ),
    setting=(
        "A mixture of three Gaussians in two dimensions, whose velocity is known; truth is its integral by 200 "
        "Runge-Kutta steps. Networks are equal perceptrons that begin at the same random weights and take equally many "
        "updates of 256 points."
    ),
    grids={"small": grid(1200, 64, 5), "full": grid(8000, 128, 5)},
    cell=cell,
    columns=(
        Column("error", "relative error of u(x₁, 0, 1)"),
        Column("inside", "of u(x_t, 0, t), t of [0.05, 1]"),
        Column("identity", "recursion - mean of velocities, relative", ""),
        Column("trivial", "v instead of u, relative error", ""),
    ),
    reference="network: meanflow",
    figure=figure,
)
