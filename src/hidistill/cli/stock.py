"""Draws images with a stock pipeline of diffusers, as anybody who loads the folder would."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from hidistill.export.few_step import code_for
from hidistill.foreign.clock import entries, timeless
from hidistill.foreign.folder import Folder, library
from hidistill.seeds import fold_in, generators
from hidistill.types import Images

BATCH = 16


class Plan(NamedTuple):
    """What is asked of the pipeline.

    Args:
        steps: `num_inference_steps`.
        scale: `guidance_scale`; 1 is none.
        label: number of a class; None takes the classes in turn.
        prompts: take turns.
        seed: image i depends on it and on i alone.
        device: where the pipeline runs.
    """

    steps: int
    scale: float
    label: str | None
    prompts: tuple[str, ...]
    seed: int
    device: str = "cpu"


def draw(root: Path, plan: Plan, count: int) -> Images:
    """Images of the pipeline in a folder, from the noise that a student of ours would begin with.

    Raises:
        ValueError: if the pipeline wants a label or a prompt and got the other, or neither; or if it was exported for
            one step and more are asked for.
    """
    pipeline = loaded(root).to(plan.device)
    refuse_steps(pipeline, root, plan.steps)
    pipeline.set_progress_bar_config(disable=True)
    takes = inspect.signature(pipeline.__call__).parameters
    options: dict[str, Any] = {"num_inference_steps": plan.steps, "output_type": "np"}
    if "guidance_scale" in takes:
        options["guidance_scale"] = plan.scale
    elif plan.scale != 1.0:
        raise ValueError(f"--scale {plan.scale}: a {type(pipeline).__name__} has no guidance; leave --scale out")
    if "use_resolution_binning" in takes:
        options["use_resolution_binning"] = False
    if "complex_human_instruction" in takes:
        options["complex_human_instruction"] = None
    images = []
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        drawing = generators([fold_in(plan.seed, "sample", row) for row in rows])
        asked = wishes(pipeline, takes, plan, rows)
        found = pipeline(**asked, **options, **sizes(pipeline, takes), generator=drawing).images
        images.append(torch.from_numpy(np.ascontiguousarray(found)).movedim(-1, 1).float())
    return torch.cat(images)


def refuse_steps(pipeline: Any, root: Path, steps: int) -> None:  # noqa: ANN401 -- a pipeline of diffusers
    """Refuse several steps of a network that does not look at its time."""
    net = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    if steps == 1 or (root / "pipeline.py").is_file() or not isinstance(net, nn.Module):
        return
    try:
        places = entries(net)
    except ValueError:  # a network that embeds its time in another way was not exported by us
        return
    if timeless(places):
        raise ValueError(
            f"--steps {steps}: {root} holds a student that was exported for one step; leave --steps out, or export it "
            "for several with hidistill export --to few-step"
        )


def loaded(root: Path) -> Any:  # noqa: ANN401 -- a pipeline of diffusers
    """The pipeline in a folder; the few-step one where `hidistill export` put it.

    Raises:
        ValueError: if the folder has code of its own that is not the one that is written there.
    """
    kind, code = library().DiffusionPipeline, root / "pipeline.py"
    if not code.is_file():
        return kind.from_pretrained(root, use_safetensors=True)
    if code.read_text(encoding="utf-8") != code_for(Folder(root).pipeline):
        raise ValueError(
            f"{code} is not the file that this version of hidistill writes, and would be run; export the student "
            "again, or load the folder with diffusers yourself, if you trust it"
        )
    return kind.from_pretrained(root, use_safetensors=True, custom_pipeline=str(root), trust_remote_code=True)


def wishes(pipeline: Any, takes: Any, plan: Plan, rows: Sequence[int]) -> dict[str, Any]:  # noqa: ANN401
    """The argument that says what is drawn."""
    name = type(pipeline).__name__
    if "class_labels" in takes:
        if plan.prompts:
            raise ValueError(f"--prompt {plan.prompts[0]!r}: a {name} draws classes; use --label")
        label = None if plan.label is None else label_of(pipeline, plan.label)
        labels = [row % classes_of(pipeline) if label is None else label for row in rows]
        if "batch_size" not in takes:
            return {"class_labels": labels}
        return {"class_labels": torch.tensor(labels), "batch_size": len(rows)}
    if plan.label is not None:
        raise ValueError(f"--label {plan.label}: a {name} knows no classes; leave it out")
    if "prompt" in takes:
        if not plan.prompts:
            raise ValueError(f"a {name} draws from prompts; say --prompt 'red apple', once or several times")
        return {"prompt": [plan.prompts[row % len(plan.prompts)] for row in rows]}
    if plan.prompts:
        raise ValueError(f"--prompt {plan.prompts[0]!r}: a {name} takes no prompts; leave it out")
    return {"batch_size": len(rows)}


def names_of(pipeline: Any) -> dict[str, int]:  # noqa: ANN401
    """Labels by the names of the classes, where the folder has them."""
    return dict(getattr(pipeline, "labels", None) or {})


def classes_of(pipeline: Any) -> int:  # noqa: ANN401
    """Number of classes."""
    named = names_of(pipeline)
    if named:
        return max(named.values()) + 1
    net = getattr(pipeline, "transformer", None) or pipeline.unet
    return int(net.config.get("num_embeds_ada_norm") or net.config.get("num_class_embeds") or 1)


def label_of(pipeline: Any, given: str) -> int:  # noqa: ANN401
    """The label that a name or a number means."""
    named, classes = names_of(pipeline), classes_of(pipeline)
    if given in named:
        return int(named[given])
    if given.isdecimal() and int(given) < classes:
        return int(given)
    raise ValueError(
        f"--label {given}: labels are 0 to {classes - 1}" + (f" or {', '.join(list(named)[:20])}" if named else "")
    )


def sizes(pipeline: Any, takes: Any) -> dict[str, int]:  # noqa: ANN401
    """Height and width of the pictures that the network was made for, where the pipeline would take others."""
    if "height" not in takes or "use_resolution_binning" not in takes:
        return {}
    side = int(pipeline.transformer.config.sample_size) * int(pipeline.vae_scale_factor)
    return {"height": side, "width": side}
