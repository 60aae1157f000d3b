"""Students in the formats of others: what `hidistill export` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hidistill import weights
from hidistill.codecs import Pixels
from hidistill.export import plain
from hidistill.export.card import FRONT, Card, license_of
from hidistill.export.diffusers import export_one_step
from hidistill.export.few_step import STEPS, export_few_step
from hidistill.export.fold import fold
from hidistill.export.onnx import Generator, export_onnx
from hidistill.export.parts import refuse_file, refuse_places
from hidistill.foreign.folder import Folder, Parts
from hidistill.foreign.network import FlowMap
from hidistill.recipes.folding import Jump, example_of, folded_dit, formula, hold
from hidistill.recipes.originals import REPOSITORIES, Checkpoint, Where
from hidistill.recipes.students import FLOW_MAP, resolved, student_from, teacher_parts
from hidistill.recipes.teachers import codec_at, part_of
from hidistill.report.folder import document
from hidistill.report.scores import columns, meaning, of_role, show, space
from hidistill.teachers.dit import DiT, FlowMapDiT
from hidistill.types import Codec

Format = Literal["diffusers", "few-step", "safetensors", "onnx"]
OURS = "dit-flow-map"
"""Family of the weights files that hold a `FlowMapDiT`."""
SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx"}
"""Of the formats that are one file."""


@dataclass(frozen=True)
class Done:
    """What was written.

    Args:
        path: where.
        words: what a person wants to know of it.
    """

    path: Path
    words: Sequence[str]


def export(
    source: Path,
    *,
    to: Format,
    out: Path,
    teacher: Path | None = None,
    autoencoder: Where | None = None,
    decode: bool = False,
    steps: int | None = None,
    variant: str | None = None,
    force: bool = False,
) -> Done:
    """Write a student in a format of others.

    Args:
        source: a run's folder, or a student's weights file (.safetensors).
        to: diffusers for a folder that stock diffusers runs in one step; few-step for one that also makes several steps
            with a small pipeline file of its own; safetensors or onnx for one file of the one-step generator.
        out: the folder or file to write.
        teacher: the teacher's folder or checkpoint, if it lies elsewhere now than when the student was trained.
        autoencoder: that of a checkpoint, likewise.
        decode: whether an ONNX file gives pixels in [0, 1] instead of samples: the autoencoder is in it, too.
        steps: the most steps of a few-step folder; by default 8.
        variant: of the files in the teacher's folder that have no plain name, e.g. fp16.
        force: whether what was exported there before may be replaced.

    Raises:
        ValueError: if there is no student, or the format cannot hold it.
    """
    if decode and to != "onnx":
        raise ValueError(f"--decode with --to {to}: only ONNX files can have the autoencoder in them; leave it out")
    if steps is not None and to != "few-step":
        raise ValueError(f"--steps {steps} with --to {to}: it is for few-step folders; leave it out")
    if to in SUFFIXES:
        refuse_file(out, SUFFIXES[to], force=force)
    path = student_file(source)
    stored = weights.read(path)
    if stored.family == OURS:
        if teacher is not None or autoencoder is not None:
            option = f"--teacher {teacher}" if teacher is not None else f"--autoencoder {autoencoder}"
            raise ValueError(f"{option}: a DiT of ours needs nothing of its teacher's; leave it out")
        return export_ours(stored, path, to=to, out=out, decode=decode, force=force)
    if stored.family != FLOW_MAP:
        raise ValueError(
            f"{path} holds a {stored.family!r}; what can be exported is a student, a {FLOW_MAP!r} or a {OURS!r}: give "
            "a run that distilled one, or its models/student.safetensors"
        )
    stored = replace(stored, config={**stored.config, **moved(stored.config, teacher, autoencoder)})
    if to in SUFFIXES and not decode:
        student = student_from(stored, source=str(path))
        return save_folded(student, stored, out) if to == "safetensors" else trace(student, stored, out, codec=None)
    folder = teacher_of(stored, variant)
    if to == "onnx":
        return trace(student_from(stored, source=str(path)), stored, out, codec=codec_at(folder))
    if isinstance(folder, Checkpoint) and folder.vae is not None:
        refuse_places(out, folder.vae.root, force=force)
    refuse_places(out, folder.root, force=force)
    return write_folder(stored, path, folder, out, steps=(steps or STEPS) if to == "few-step" else None, force=force)


def moved(config: Mapping[str, Any], teacher: Path | None, autoencoder: Where | None) -> dict[str, Any]:
    """Where a student's teacher lies now, in the words of its weights file.

    Raises:
        ValueError: if an autoencoder came for a teacher from a folder, which has its own.
    """
    if autoencoder is not None and not config.get("kind"):
        raise ValueError(
            f"--autoencoder {autoencoder}: the student's teacher is the folder of a pipeline, which has its own; say "
            "with --teacher where that lies"
        )
    found: dict[str, Any] = {} if teacher is None else {"teacher": str(teacher.resolve())}
    return found if autoencoder is None else {**found, "autoencoder": resolved(autoencoder)}


def teacher_of(stored: weights.Weights, variant: str | None) -> Folder | Checkpoint:
    """The folder or checkpoint of a student's teacher.

    Raises:
        ValueError: if nothing lies there now, or another network.
    """
    folder = teacher_parts(stored.config, variant=variant)
    part, _ = part_of(folder)
    there, mine = folder.config(part), stored.config["network"]
    differing = [key for key in mine if key != "_diffusers_version" and there.get(key) != mine[key]]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{folder.place(part)} is not what the student was distilled from: {key} is {there.get(key)!r} there and "
            f"{mine[key]!r} in the student; say with --teacher where its teacher lies"
        )
    return folder


def write_folder(
    stored: weights.Weights, path: Path, folder: Folder | Checkpoint, out: Path, *, steps: int | None, force: bool
) -> Done:
    """A folder of diffusers, for one step or also for several."""
    student, scheduler = student_from(stored, source=str(path)), stored.config["scheduler"]
    card = Card(
        teacher=named(folder),
        lines=dict(stored.card),
        metrics=metrics_of(path),
        license=license_of(folder.root),
        call=unasked(stored.config, folder),
    )
    about: dict[str, Any] = {"scheduler": scheduler, "card": card, "classes": stored.classes, "force": force}
    if steps is None:
        made = export_one_step(fold(student), folder, out, **about)
    else:
        made = export_few_step(student, folder, out, steps=steps, **about)
    return Done(out, (f"{made.pipeline}: {out}", *made.usage.splitlines()))


def named(folder: Folder | Checkpoint) -> str:
    """A teacher in words."""
    if isinstance(folder, Checkpoint):
        return f"{folder.root.name}, a checkpoint of {REPOSITORIES[folder.kind]}"
    return f"{folder.root.name}, a {folder.pipeline}"


def unasked(config: Mapping[str, Any], folder: Parts) -> str:
    """The argument that keeps SANA's lines away from prompts, for a student that never saw them."""
    without = folder.pipeline == "SanaPipeline" and config.get("prompts", {}).get("instruction") == []
    return ", complex_human_instruction=None" if without else ""


def student_file(source: Path) -> Path:
    """The weights file of the student that a path means.

    Raises:
        ValueError: if there is none.
    """
    if source.is_file():
        return source
    path = source / "models" / "student.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{source}: there is no student in it ({path} does not exist); give the folder of a finished run, or a "
            "student's weights file"
        )
    return path


def metrics_of(path: Path) -> list[dict[str, str]]:
    """What a run's evaluation says of its student and its teacher, for a card; nothing for a weights file alone."""
    if path.parent.name != "models":
        return []
    evaluation = document(path.parent.parent / "evaluation.json") or {}
    rows = evaluation.get("rows", [])
    found = []
    for row in (*of_role(rows, "student"), *of_role(rows, "teacher")):
        cells = {"": str(row["name"]), "network passes": str(row.get("nfe") or "")}
        for metric in columns([row]):
            where = f" ({space(metric)})" if space(metric) else ""
            cells[meaning(metric).label + where] = show(metric, row["metrics"].get(metric))
        found.append(cells)
    return found


def save_folded(student: FlowMap, stored: weights.Weights, out: Path) -> Done:
    """One file with the folded network."""
    folded = fold(student)
    plain.save(out, folded, config=stored.config, card=stored.card, classes=stored.classes)
    return Done(out, (f"{type(folded.net).__name__}, one step: x_0 = {formula(folded)}: {out}",))


def trace(student: FlowMap, stored: weights.Weights, out: Path, *, codec: Codec | None) -> Done:
    """An ONNX file of a student of diffusers."""
    folded = fold(student.float())
    generator = Generator(folded, texts=folded.family.texts, codec=codec)
    example = example_of(folded, tuple(stored.config["shape"]))
    free = {"text": {1: "tokens"}, "mask": {1: "tokens"}}
    return onnx_file(generator, example, stored, out, decoded=codec is not None, dynamic=free)


def onnx_file(
    generator: Generator,
    example: Mapping[str, Tensor],
    stored: weights.Weights,
    out: Path,
    *,
    decoded: bool,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Done:
    """An ONNX file of a generator, at a place that was found to be free or may be taken."""
    output = "images" if decoded else "samples"
    made = export_onnx(generator, example, out, output=output, dynamic=dynamic, card=stored.card, force=True)
    said = f"{', '.join(made.inputs)} -> {output}; differs from torch by {made.difference:.1g} of the largest: {out}"
    return Done(out, (said,))


def export_ours(stored: weights.Weights, path: Path, *, to: Format, out: Path, decode: bool, force: bool) -> Done:
    """A student of our own DiT.

    Raises:
        ValueError: if the format cannot hold it.
    """
    student = FlowMapDiT(DiT.from_config(dict(stored.config)))
    weights.load_into(student, stored.tensors, source=str(path))
    student.eval().requires_grad_(False)
    config = stored.config
    if to == "few-step":
        raise ValueError(
            "a DiT of ours embeds its time in another way than diffusers' does, and its several steps cannot be "
            "exported. Port the teacher first (hidistill train pipelines.port) and distill that, or export one step"
        )
    if to == "safetensors":
        hold(student)
        weights.save(out, student, family=plain.OURS, config=config, card=stored.card, classes=stored.classes)
        return Done(out, (f"a DiT of hidistill's, one step: {out}",))
    if to == "onnx":
        generator = Generator(Jump(student), codec=Pixels() if decode else None)
        shape = (config["channels"], config["image_size"], config["image_size"])
        noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        example = {"noise": noise, "label": torch.arange(3) % max(1, config["classes"])}
        return onnx_file(generator, example, stored, out, decoded=decode)
    folded, rest = folded_dit(student)
    note = (
        "How much of the noise passes through depends a little on the class in the student, and not here: samples "
        f"differ by up to {rest:.2g} of the noise."
    )
    about = Card(
        teacher="a DiT of hidistill's", lines=dict(stored.card), metrics=metrics_of(path),
        notes=(note,) if rest > 1e-6 else (), license={key: stored.card[key] for key in FRONT if key in stored.card},
    )  # fmt: skip
    made = export_one_step(folded, None, out, scheduler={}, card=about, classes=stored.classes, force=force)
    return Done(out, (f"{made.pipeline}: {out}", *about.notes, *made.usage.splitlines()))
