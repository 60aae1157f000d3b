"""Draws images from a weights file, whichever family of network it holds."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from hidistill.codecs import Pixels, modules_of
from hidistill.evaluate import BATCH, draw
from hidistill.guidance import Guided
from hidistill.labels import label_of as by_name_or_number
from hidistill.path import rows_of
from hidistill.report.pictures import grid as picture_grid
from hidistill.report.pictures import quantized
from hidistill.sampling import euler, grid, heun, jump, renoise
from hidistill.seeds import fold_in, normal, refuse_seed
from hidistill.teachers.dit import DiT, FlowMapDiT
from hidistill.train.driver import refuse_device
from hidistill.types import Codec, Cond, Images, Labels, Points, Student, Teacher
from hidistill.weights import Weights, WeightsError, load_into, read

if TYPE_CHECKING:
    from hidistill.recipes.originals import Where
    from hidistill.teachers.original import Kind

MOST_STEPS, MOST_IMAGES = 1000, 100_000
SMALL = 56
"""Images below this side are enlarged to it in the picture, by a whole factor."""
MOST_IN_PICTURE, MOST_COLUMNS = 400, 20
FIELDS, MAPS = ("dit", "checkpoint"), ("dit-flow-map", "flow-map")
"""Families of weights that hold a velocity field, and those that hold a flow map."""
SAMPLERS = dict.fromkeys(FIELDS, ("euler", "heun")) | dict.fromkeys(MAPS, ("jump", "renoise"))
"""By the family of the weights: a velocity field is integrated, a flow map jumps. The first is the default."""
STEPS = dict.fromkeys(FIELDS, 50) | dict.fromkeys(MAPS, 1)


class Network(NamedTuple):
    """A network and what drawing needs to know of it.

    Args:
        module: a velocity field or a flow map.
        family: of its weights file; "checkpoint" for one of a repository of its own.
        shape: of one sample.
        classes: number of classes; 0 if there are none.
        names: of the classes.
        codec: carries samples to pixels.
        encode: turns prompts into conditions; None where conditions are labels.
    """

    module: Teacher | Student
    family: str
    shape: tuple[int, int, int]
    classes: int
    names: Sequence[str] = ()
    codec: Codec = Pixels()
    encode: Callable[[Sequence[str]], Cond] | None = None


class Plan(NamedTuple):
    """How images are drawn."""

    steps: int
    sampler: str
    scale: float


def refuse(out: Path, *, count: int, steps: int | None, scale: float | None, seed: int, device: str) -> None:
    """Refuse a picture that cannot be written or is of nothing, and numbers out of range, before anything is loaded."""
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: the picture is a PNG file; give a name that ends in .png")
    if not 1 <= count <= MOST_IMAGES:
        raise ValueError(f"--count {count}: from 1 to {MOST_IMAGES:,} images can be drawn at once")
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"--steps {steps}: a sampler makes 1 to {MOST_STEPS} steps")
    if scale is not None and not 0 <= scale < math.inf:
        raise ValueError(f"--scale {scale}: a guidance scale is 0 or more; 1 is no guidance")
    refuse_seed(seed)
    refuse_device(device)


def weights_file(source: Path) -> Path:
    """The weights that a path means: itself, or the student of a run (the teacher, where it trained one)."""
    if not source.exists():
        raise ValueError(
            f"{source}: there is no such file or folder; give a run's folder, e.g. runs/demo, or a .safetensors file"
        )
    if not source.is_dir():
        if source.suffix != ".safetensors":
            raise ValueError(
                f"{source} is no weights file of ours, whose names end in .safetensors; for a checkpoint of DiT or SiT "
                "say --kind dit or --kind sit"
            )
        return source
    candidates = [source / "models" / f"{role}.safetensors" for role in ("student", "teacher", "sketch")]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        names = ", ".join(path.name for path in candidates)
        raise ValueError(
            f"{source}/models has none of {names}, and {source} no model_index.json; give a run of which a stage has "
            "ended, a weights file, or the folder of a diffusers pipeline"
        )
    return found


def load(path: Path) -> Network:
    """The network in a weights file.

    Raises:
        ValueError: if the file cannot be read, or holds something that draws no images.
    """
    try:
        weights = read(path)
    except WeightsError as error:
        raise WeightsError(f"{error}. For a checkpoint of DiT or SiT say --kind dit or --kind sit") from error
    known = [name for name in SAMPLERS if name != "checkpoint"]
    if weights.family not in known:
        raise ValueError(f"{path} holds a {weights.family!r}; images come from one of {', '.join(known)}")
    config = dict(weights.config)
    if weights.family == "flow-map":
        return flow_map(weights, path)
    net = DiT.from_config(config)
    module = net if weights.family == "dit" else FlowMapDiT(net)
    load_into(module, weights.tensors, source=str(path))
    module.eval().requires_grad_(False)
    shape = (config["channels"], config["image_size"], config["image_size"])
    return Network(module, weights.family, shape, config["classes"], weights.classes)


def flow_map(stored: Weights, path: Path) -> Network:
    """A student of another library's network; its autoencoder and text encoders are its teacher's.

    Raises:
        ValueError: if these are not where they were.
    """
    from hidistill.foreign.folder import Folder
    from hidistill.foreign.text import prompt_encoder
    from hidistill.recipes.students import student_from, teacher_parts
    from hidistill.recipes.teachers import codec_at

    folder = teacher_parts(stored.config)
    student = student_from(stored, source=str(path))
    network = student.network
    asked = stored.config.get("prompts", {})
    encode = None
    if network.family.texts:
        assert isinstance(folder, Folder)
        instruction = tuple(asked.get("instruction", ()))
        encode = prompt_encoder(folder, length=asked.get("length"), instruction=instruction)
    classes = len(stored.classes) or network.family.classes(network.net)
    return Network(
        student, "flow-map", tuple(stored.config["shape"]), classes, stored.classes, codec_at(folder), encode
    )


def checkpoint(path: Path, *, kind: "Kind | None", autoencoder: "Where | None", allow_pickle: bool) -> Network:
    """A checkpoint of DiT or SiT, which is a teacher.

    Raises:
        ValueError: if it is not said what it is, or which autoencoder it has.
    """
    from hidistill.recipes.teachers import load, shape_of

    loaded = load(path, kind=kind, autoencoder=autoencoder, allow_pickle=allow_pickle)
    shape = shape_of(loaded.network)
    assert shape is not None
    return Network(loaded.network, "checkpoint", shape, loaded.network.classes, (), loaded.codec)


def conditions(network: Network, labels: Labels, prompts: Sequence[str]) -> Cond:
    """What each image is asked for with: its label, or the prompts in turn.

    Raises:
        ValueError: if prompts are missing, or nobody understands them.
    """
    if network.encode is None:
        if prompts:
            raise ValueError(f"--prompt {prompts[0]!r}: these weights know classes, not prompts; use --label")
        return labels
    if not prompts:
        raise ValueError("these weights draw from prompts; say --prompt 'red apple', once or several times")
    known = network.encode(prompts)
    rows = torch.arange(len(labels)) % len(prompts)
    return rows_of(known, rows)


def plan(network: Network, *, steps: int | None, sampler: str | None, scale: float | None) -> Plan:
    """The family's defaults where nothing is given.

    Raises:
        ValueError: if the network cannot be sampled so.
    """
    steps = STEPS[network.family] if steps is None else steps
    known = SAMPLERS[network.family]
    sampler = known[0] if sampler is None else sampler
    if sampler not in known:
        raise ValueError(f"--sampler {sampler}: these weights are a {network.family}; use {' or '.join(known)}")
    if scale is not None and network.family not in FIELDS:
        raise ValueError(f"--scale {scale}: a student has its teacher's guidance built in; leave --scale out")
    return Plan(steps, sampler, 1.0 if scale is None else scale)


def label_of(given: str | None, network: Network) -> int | None:
    """The label that a name or a number means; a name comes first, for a class may be called "7".

    Raises:
        ValueError: if there is no such class; names the nearest.
    """
    if given is None:
        return None
    if not network.classes:
        raise ValueError(f"--label {given}: these weights know no classes; leave --label out")
    try:
        return by_name_or_number(given, names=list(network.names), classes=network.classes)
    except ValueError as error:
        raise ValueError(f"--label {given}: {error}") from error


def labels_of(label: int | None, count: int, classes: int) -> Labels:
    """The label of each image: the one that is asked for, or the classes in turn."""
    return torch.arange(count) % max(1, classes) if label is None else torch.full((count,), label)


def images(network: Network, plan: Plan, cond: Cond, *, count: int, seed: int, device: str) -> Images:
    """An image per condition; image i depends on the seed and i alone."""
    parts = []
    for module in (network.module, *modules_of(network.codec).values()):
        assert isinstance(module, nn.Module)
        module.to(device)
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        part = rows_of(cond, slice(rows.start, rows.stop))
        seeds = [fold_in(seed, "sample", i) for i in rows]

        def from_noise(noise: Points, cond: Cond, seeds: Sequence[int] = seeds) -> Points:
            return samples(network, plan, noise, cond, seeds)

        parts.append(
            draw(
                from_noise,
                seeds=seeds,
                cond=part,
                shape=network.shape,
                codec=network.codec,
                batch_size=BATCH,
                device=device,
            )
        )
    return torch.cat([part.images for part in parts])


def samples(network: Network, plan: Plan, noise: Points, cond: Cond, seeds: Sequence[int]) -> Points:
    """Samples from noise, as the plan says."""
    module = network.module
    if isinstance(module, Teacher):
        solve = euler if plan.sampler == "euler" else heun
        return solve(Guided(module, plan.scale), noise, cond=cond, steps=plan.steps)
    if plan.sampler == "jump":
        return jump(module, noise, cond=cond, times=grid(plan.steps))
    steps = range(1, plan.steps)
    fresh = [normal([fold_in(seed, "fresh", k) for seed in seeds], network.shape).to(noise) for k in steps]
    return renoise(module, noise, cond=cond, times=grid(plan.steps), fresh=fresh)


def save(images: Images, *, out: Path, npz: Path | None) -> None:
    """The picture and the array of images without labels."""
    write(images, torch.zeros(len(images), dtype=torch.long), one_class=True, out=out, npz=npz)


def write(images: Images, labels: Labels, *, one_class: bool, out: Path, npz: Path | None) -> None:
    """The picture, with a class per column where there are several, and the array."""
    pixels = quantized(images)
    classes = int(labels.max()) + 1
    by_class = not one_class and 1 < classes <= MOST_COLUMNS
    columns = classes if by_class else math.ceil(math.sqrt(min(len(pixels), MOST_IN_PICTURE)))
    out.parent.mkdir(parents=True, exist_ok=True)
    scale = max(1, SMALL // pixels.shape[-1])
    picture_grid(pixels[:MOST_IN_PICTURE], columns=columns, scale=scale).save(out)
    if npz is not None:
        npz.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(npz, images=pixels, labels=labels.numpy())
