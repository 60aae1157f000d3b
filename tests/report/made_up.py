"""A made-up run folder: arrays and numbers of no model, for the report to read."""

import json

import numpy as np
import torch

from hidistill.report.pictures import save_attention, save_grids

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "<b>Dress & co</b>"]


def row(name, kind, steps, nfe, *, scale=None, seconds=0.001, **metrics):
    return {
        "name": name,
        "kind": kind,
        "n": 500,
        "steps": steps,
        "nfe": nfe,
        "scale": scale,
        "seconds_per_image": seconds,
        "metrics": {name.replace("__", "/"): number for name, number in metrics.items()},
    }


def metrics(fd, recall=0.8, **others):
    numbers = {"precision": 0.95, "diversity": 0.9, "agreement": 0.94, "agreement_real": 0.93, "high_frequency": 1.0}
    return {"fd__cnn": fd, "fd__net": 9 * fd, "recall__cnn": recall} | numbers | others


def student(**others):
    return row("student, 1 step", "student", 1, 1, **metrics(1.234, **{"end_distance": 0.18} | others))


def full_evaluation():
    rows = [row("real training images", "real", None, None, seconds=None, **metrics(0.456, 0.95))]
    for steps in (1, 4, 16, 50):
        noise = metrics(1.2 + 4 / steps, end_distance=0.3 / steps if steps < 50 else 0.0)
        rows.append(
            row(f"teacher, {steps} steps", "teacher", steps, 2 * steps, scale=1.5, seconds=0.0011 * steps, **noise)
        )
    for scale, fd in ((1.0, 1.111), (2.0, 2.222), (3.0, 3.333)):
        name = f"teacher, 50 steps, scale {scale:g}"
        rows.append(row(name, "teacher", 50, 100, scale=scale, seconds=0.05, **metrics(fd)))
    rows.append(row("sketch, 1 step", "student", 1, 1, **metrics(3.987, 0.4, high_frequency=0.6, end_distance=0.21)))
    rows += [student(), row("student, 2 steps", "student", 2, 2, seconds=0.002, **metrics(1.3))]
    return {"n": 500, "seed": 7, "real": {"n": 2000}, "features": {"cnn": "a small classifier"}, "rows": rows}


def full_journal(steps=300):
    draws = np.random.default_rng(0)
    lines = []
    for i in range(2 * steps):
        refine, step = i >= steps, i % steps
        line = {
            "kind": "step",
            "stage": "refine" if refine else "sketch",
            "step": step,
            "global_step": i,
            "seconds": 0.1 * i,
        }
        noise = float(draws.normal())
        line["pace"] = {"samples_per_second": 300 + noise, "data_share": 0.01, "memory_mib": 500.0}
        line |= {"student/loss": 1 + 0.1 * noise, "student/gradient": 2 + 0.3 * noise}
        if refine:
            line |= {"student/dmd": 0.5 + 0.02 * noise, "student/gan": 0.1 * noise, "critics/fake": 0.3 + 0.02 * noise}
            line |= {
                "critics/accuracy": 0.7 + 0.03 * noise,
                "critics/real_logit": 0.4 + noise / 9,
            }
            line["critics/generated_logit"] = -0.3 + noise / 9
        lines.append(line)
        if step % 100 == 99:
            probe = {
                "fd/cnn": 5 - i / 150,
                "high_frequency": 0.6 + i / 1500,
                "agreement": 0.94,
                "end_distance": 0.2,
                "entropy": 0.8,
            }
            place = {key: line[key] for key in ("stage", "step", "global_step", "seconds")}
            lines.append({"kind": "probe"} | place | probe)
    return [*lines, {"kind": "event", "stage": "refine", "step": 0, "global_step": steps, "event": "resumed"}]


def write_run(folder, images, generator):
    """Fill a folder; `images` by kind, (n, c, h, w) in [0, 1]."""
    count = len(next(iter(images.values())))
    labels = torch.arange(count) % len(CLASSES)
    save_grids(folder / "samples" / "grids.npz", kinds=images, labels=labels, classes=CLASSES)
    weights = torch.randn(2, 3, 1, 7, 7, generator=generator).flatten(3).softmax(-1).unflatten(3, (7, 7))
    save_attention(folder / "samples" / "attention.npz", images=images["student"][:3], weights=weights)
    recipe = {
        "recipe": "fashion.distill",
        "arguments": {"sketch_steps": 300, "scale": 1.5, "fast": True},
        "version": "0",
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "environment.json").write_text(json.dumps({"torch": "2", "git": {"commit": "abc", "dirty": "<no>"}}))
    (folder / "evaluation.json").write_text(json.dumps(full_evaluation()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in full_journal()))
