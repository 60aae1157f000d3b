"""A student as a folder that makes one step by itself, and several with the small pipeline of ours that lies in it.

The folder is `export_one_step`'s with two files more: `steps.safetensors`, in which the embeddings of time and the
coefficients of every step of every count are written down, and `pipeline.py`, which puts them in. A pipeline that only
looks up vectors is short enough to be read before it is trusted, and equal to the student by construction.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hidistill.export.card import Card, readme
from hidistill.export.diffusers import Exported, call_of, replaced, usage_of, write
from hidistill.export.fold import OneStep, alone, fold, interval
from hidistill.export.parts import refuse_places
from hidistill.export.stock import PIPELINES, pipeline_for
from hidistill.foreign.clock import entries
from hidistill.foreign.folder import Parts
from hidistill.foreign.network import FlowMap
from hidistill.sampling import grid

TEMPLATE = Path(__file__).parent / "assets" / "pipeline.py"
BASE = "DiTPipeline"
"""The pipeline that the template extends, which the exported file replaces by its own."""
UNIT = 1000.0
"""Times that the exported file's scheduler feeds a network are t times this."""
FILE, STEPS = "steps.safetensors", 8
"""Name of the table of steps, and the most steps in it by default."""


def export_few_step(
    student: FlowMap,
    folder: Parts,
    out: Path,
    *,
    scheduler: Mapping[str, Any],
    card: Card,
    steps: int = STEPS,
    classes: Sequence[str] = (),
    force: bool = False,
) -> Exported:
    """Write a student as a pipeline of diffusers that makes its samples in 1 to `steps` equal steps.

    Args:
        student: the student; not changed.
        folder: of its teacher.
        out: the new folder.
        scheduler: configuration of the teacher's scheduler.
        card: what README.md says.
        steps: the most steps.
        classes: see `export_one_step`.
        force: whether an exported folder may be replaced.

    Raises:
        ValueError: if the place is taken, or no pipeline of diffusers can run the student.
        FolderError: if a part of the teacher's folder cannot be copied.
        OSError: if there is not enough space.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: a folder makes 1 step or more; 8 is usual")
    refuse_places(out, folder.root, force=force)
    student = alone(student)
    folded = fold(student)
    pipeline = pipeline_for(folded, folder.pipeline)
    if PIPELINES[pipeline].takes == "trigonometric":
        raise ValueError(
            f"a {pipeline} mixes what its network is given and what it answers by itself, on a path of its own, which "
            "a flow map's steps do not follow: export one step (--to diffusers)"
        )
    with replaced(out) as new:
        write(folded, folder, new, pipeline=pipeline, scheduler=scheduler, classes=classes)
        save_file(table(student, folded, steps), new / FILE)
        (new / "pipeline.py").write_text(code_for(pipeline), encoding="utf-8")
        call = call_of(pipeline, new) + card.call
        usage = few(out.name, call)
        note = (
            f"Without `pipeline.py` the folder makes one step:\n\n```python\n{usage_of(pipeline, out.name, call)}\n```"
        )
        card = replace(card, notes=(*card.notes, note))
        page = readme(card, title=f"{out.name}: images in 1 to {steps} steps", usage=usage)
        (new / "README.md").write_text(page, encoding="utf-8")
    return Exported(out, pipeline, usage)


def table(student: FlowMap, folded: OneStep, steps: int) -> dict[str, Tensor]:
    """What the network is told in every step of every count up to `steps`.

    `{n}.numbers` (n, 3) holds scale, skip and gain of each of n steps for the network as it was written, factors in its
    layers included; `{n}.{module}` (n, width) the embeddings of one place.
    """
    whole = interval(student, t=1.0, r=0.0)
    # The written network answers with F over one factor, to an input over another.
    answer, entered = folded.answer / -whole.gain, folded.scale / whole.scale
    divides = getattr(folded.net.config, "time_embedding_type", "") == "fourier"  # by the time that it is fed
    if divides:
        answer *= whole.time / folded.time
    names = {id(module): name for name, module in folded.net.named_modules()}
    places = [names[id(place.embedding)] for place in entries(folded.net)]
    rows: dict[str, Tensor] = {}
    for count in range(1, steps + 1):
        found = [interval(student, t=t, r=r) for t, r in pairwise(grid(count))]
        fed = [UNIT * t / at.time if divides else 1.0 for t, at in zip(grid(count), found, strict=False)]
        numbers = [(at.scale * entered, at.skip, at.gain * answer * by) for at, by in zip(found, fed, strict=True)]
        rows[f"{count}.numbers"] = torch.tensor(numbers)
        for index, name in enumerate(places):
            rows[f"{count}.{name}"] = torch.stack([at.embeddings[index] for at in found]).contiguous()
    return rows


def code_for(pipeline: str) -> str:
    """The template for a pipeline, without what it says to checkers of code."""
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("# ")).replace(BASE, pipeline)


def few(folder: str, call: str) -> str:
    """Lines of Python that make a picture in four steps."""
    call = call.replace("num_inference_steps=1", "num_inference_steps=4")
    return "\n".join(
        [
            "from diffusers import DiffusionPipeline",
            "",
            f"folder = {json.dumps(folder)}",
            "pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)",
            f"image = pipe({call}).images[0]",
        ]
    )
