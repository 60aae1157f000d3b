"""Every family once, small and whole: its teacher on the disk, a run of both stages, its student in stock diffusers.

family = FAMILIES["sana"]
given = family.teacher(root)             # what says which teacher it is
cache = cached(family, given, root)      # of pictures that are drawn for it
distilled(given, cache, root / "run")    # both stages, without the evaluation behind them
asked(family, root / "run")              # a call of the stock pipeline, and our pictures for it
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import small_originals
import small_pipelines as small
import stock
import torch
from diffusers import DDPMScheduler, PixArtAlphaPipeline, SanaSprintPipeline, SCMScheduler
from PIL import Image

from hidistill import weights
from hidistill.data.cache import Cache
from hidistill.foreign.text import prompt_encoder
from hidistill.metrics.classifier import save_classifier, train_classifier
from hidistill.recipes import pipelines
from hidistill.recipes.caching import write_cache
from hidistill.recipes.students import student_from, teacher_parts
from hidistill.recipes.teachers import codec_at
from hidistill.sampling import jump
from hidistill.train.driver import execute

WORDS = ("red", "blue", "green", "yellow", "black", "white")
THINGS = ("cat", "dog", "boat", "house", "horse", "mat", "sea", "snow", "night", "birds")
PLACES = ("on a mat", "in the snow", "over the sea", "at night")
TINY = {"sketch_steps": 2, "refine_steps": 2, "batch_size": 4, "evaluate_samples": 10}
SEED, ROWS = 3, 2
"""Of the noise that is drawn from, and how many pictures are."""


def pictures(root, *, classes=0, size=16, captions=220, channels=3):
    """Pictures of noise around a color: in folders by class, or with a caption each."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(captions if not classes else max(160, 80 * classes)):
        place = root / (f"class{i % classes}" if classes else ".")
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, 3) + generator.integers(-20, 20, (size, size, 3))
        pixels = pixels.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels if channels == 3 else pixels[:, :, :1].repeat(3, 2)).save(place / f"{i:03d}.png")
        caption = f"a {WORDS[i % 6]} {THINGS[i // 6 % 10]} {PLACES[i // 60 % 4]}"
        rows.append({"file_name": f"{i:03d}.png", "text": caption})
    if not classes:
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@dataclass(frozen=True)
class Small:
    """A family at its smallest.

    Args:
        teacher: writes the teacher below a folder; gives the arguments that say where it is and what.
        size: side of its pictures.
        classes: sub-folders of its pictures; 0 where they have captions.
        channels: of its pictures; 1 for gray.
        call: further arguments of the stock pipeline's call.
        cached: further arguments of the cache.
    """

    teacher: Callable[[Path], Mapping[str, Any]]
    size: int = 16
    classes: int = 0
    channels: int = 3
    call: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    cached: Mapping[str, Any] = field(default_factory=dict)


def folder(build, root):
    return {"teacher": small.saved(build(), root / "teacher")}


def original(kind, root):
    """A checkpoint as the repository writes them: averaged weights in a pickle, the other one in safetensors."""
    net = small_originals.Original(dim=384, heads=6, depth=1, grid=4, answered=8, classes=2)
    path = small_originals.saved(net, root / f"{kind}.safetensors")
    if kind == "dit":
        path.unlink()
        path = root / "dit.pt"
        torch.save({"ema": net.state_dict(), "opt": {}}, path)
    small.autoencoder_kl().save_pretrained(root / "autoencoder")
    return {"teacher": path, "kind": kind, "autoencoder": root / "autoencoder", "allow_pickle": kind == "dit"}


LABELS = {"class_labels": [0, 1], "guidance_scale": 1.0}
SQUARE = {"guidance_scale": 1.0, "height": 16, "width": 16}
BINNED = {"guidance_scale": 1.0, "use_resolution_binning": False}
SANA = {"height": 32, "width": 32, "use_resolution_binning": False, "complex_human_instruction": None}
SPRINT = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
GENTLE = partial(DDPMScheduler, beta_end=0.002, prediction_type="v_prediction", clip_sample=False)
"""A schedule whose end is no pure noise: at 0.02, rounding in the network's answer is multiplied by 157."""


def sana(**options):
    return small.sana(vae=small.autoencoder_tiny(), **options)


def ddpm(**options):
    pipeline = small.ddpm(**{"in_channels": 3, "out_channels": 3, **options})
    pipeline.register_modules(scheduler=GENTLE())
    return pipeline


FAMILIES = {
    "dit": Small(partial(folder, small.dit), classes=2, call=LABELS),
    "sana": Small(partial(folder, sana), size=32, call={**SANA, "guidance_scale": 1.0}, cached={"instruction": False}),
    "sana sprint": Small(
        partial(folder, partial(sana, kind=SanaSprintPipeline, scheduler=SCMScheduler(), **SPRINT)),
        size=32,
        call={**SANA, "intermediate_timesteps": None},
        cached={"instruction": False},
    ),
    "pixart alpha": Small(partial(folder, partial(small.pixart, PixArtAlphaPipeline)), call=BINNED | SQUARE),
    "pixart sigma": Small(partial(folder, small.pixart), call=BINNED | SQUARE),
    "stable diffusion": Small(partial(folder, small.stable_diffusion)),
    "stable diffusion xl": Small(
        partial(folder, lambda: small.stable_diffusion_xl(vae=stock.autoencoder().requires_grad_(False))), size=64
    ),
    "stable diffusion 3": Small(partial(folder, small.stable_diffusion_3)),
    "flux schnell": Small(partial(folder, small.flux), call=SQUARE, cached={"size": 16}),
    "flux dev": Small(partial(folder, partial(small.flux, guidance_embeds=True)), call=SQUARE, cached={"size": 16}),
    "unet": Small(partial(folder, ddpm), classes=1, call={"batch_size": ROWS}),
    "unet of classes": Small(
        partial(folder, partial(ddpm, num_class_embeds=2)),
        classes=2,
        call={"class_labels": [0, 1], "batch_size": ROWS},
    ),
    "original dit": Small(partial(original, "dit"), classes=2, call=LABELS),
    "original sit": Small(partial(original, "sit"), classes=2, call=LABELS),
}


def cached(family, given, root):
    """The cache of a family's pictures."""
    images = pictures(root / "images", classes=family.classes, size=family.size, channels=family.channels)
    which = {name: value for name, value in given.items() if name != "teacher"}
    write_cache(teacher=given["teacher"], images=str(images), out=root / "cache", **which, **family.cached)
    return root / "cache"


def untrained_judge(cache, path):
    """A classifier of the cache's classes that learned nothing: it costs nothing, and what it says is not looked at."""
    save_classifier(path, train_classifier(Cache.open(cache).split("test").split, steps=1), {})
    return path


def distilled(given, cache, run, **options):
    """The experiment of both stages, carried out but for its evaluation."""
    defaults = inspect.signature(pipelines.distill).parameters.items()
    arguments = {name: each.default for name, each in defaults if each.default is not each.empty}
    arguments |= {**given, "cache": cache, **TINY, **options}
    if len(Cache.open(cache).classes) > 1:
        arguments["classifier"] = untrained_judge(cache, run.with_suffix(".judge.safetensors"))
    experiment = replace(pipelines.distill(**arguments), probe=None, finish=None)
    execute(experiment, run, recipe="pipelines.distill", arguments=arguments)
    return experiment


def losses(run):
    """Every loss that a run wrote down, by stage and name."""
    found = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if line["kind"] == "step":
            numbers = {name: value for name, value in line.items() if isinstance(value, float) and name != "seconds"}
            for name, value in numbers.items():
                found.setdefault(f"{line['stage']}, {name}", []).append(value)
    return found


@torch.no_grad()
def asked(family, run):
    """Arguments with which the student's stock pipeline draws `ROWS` pictures from `SEED`, and our pictures for it."""
    stored = weights.read(run / "models" / "student.safetensors")
    student, parts = student_from(stored, source=str(run)), teacher_parts(stored.config)
    z = torch.randn(ROWS, *stored.config["shape"], generator=torch.Generator().manual_seed(SEED))
    call = {**family.call, "output_type": "pt"}
    if not student.network.family.texts:
        cond = torch.tensor(call.get("class_labels", [0] * ROWS))
    else:
        call["prompt"] = [f"a {WORDS[i]} {THINGS[i]} {PLACES[i]}" for i in range(ROWS)]
        cond = prompt_encoder(parts, instruction=() if "instruction" in family.cached else None)(call["prompt"])
    ours = codec_at(parts).decode(jump(student, z, cond=cond))
    assert ours.std() > 0.05
    assert ((ours > 0) & (ours < 1)).float().mean() > 0.3  # what is cut off says nothing
    return call, ours
