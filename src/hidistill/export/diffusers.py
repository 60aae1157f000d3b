"""A student as a folder that diffusers loads and runs by itself, in one step."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hidistill.export.card import Card, readme
from hidistill.export.fold import OneStep
from hidistill.export.parts import copy_legal, copy_part, refuse_places
from hidistill.export.stock import PIPELINES, adapt, pipeline_for
from hidistill.files import synchronize
from hidistill.foreign.folder import Parts, library
from hidistill.foreign.identity import identity_autoencoder

BINNED = 512
"""Side in pixels from which on PixArt's and SANA's pipelines know their networks' sizes by themselves."""


class Exported(NamedTuple):
    """A folder that was written.

    Args:
        path: the folder.
        pipeline: class name of its pipeline.
        usage: lines of Python that make a picture with it.
    """

    path: Path
    pipeline: str
    usage: str


def export_one_step(
    student: OneStep,
    folder: Parts | None,
    out: Path,
    *,
    scheduler: Mapping[str, Any],
    card: Card,
    classes: Sequence[str] = (),
    force: bool = False,
) -> Exported:
    """Write a folded student as a pipeline of diffusers that makes its samples in one step.

    Network, scheduler, index and README.md are written; every other part is copied from the teacher's folder, which is
    never changed. The folder appears whole or not at all, and holds no pickle.

    Args:
        student: what `fold` gave; factors of its network may change, its samples do not.
        folder: of its teacher; None for a student of pixels.
        out: the new folder.
        scheduler: configuration of the teacher's scheduler; empty without one.
        card: what README.md says.
        classes: their names, for the pipeline's `get_label_ids`; empty leaves what the teacher's folder says.
        force: whether an exported folder may be replaced.

    Raises:
        ValueError: if the place is taken, or no pipeline of diffusers can run the student.
        FolderError: if a part of the teacher's folder cannot be copied.
        OSError: if there is not enough space.
    """
    refuse_places(out, None if folder is None else folder.root, force=force)
    pipeline = pipeline_for(student, "" if folder is None else folder.pipeline)
    with replaced(out) as new:
        write(student, folder, new, pipeline=pipeline, scheduler=scheduler, classes=classes)
        usage = usage_of(pipeline, out.name, call_of(pipeline, new) + card.call)
        (new / "README.md").write_text(readme(card, title=f"{out.name}: images in one step", usage=usage), "utf-8")
    return Exported(out, pipeline, usage)


def write(
    student: OneStep,
    folder: Parts | None,
    out: Path,
    *,
    pipeline: str,
    scheduler: Mapping[str, Any],
    classes: Sequence[str] = (),
) -> None:
    """Write the pipeline's folder but for its README.md; the student is adapted in place."""
    part = student.family.part
    chosen = adapt(student, pipeline, scheduler)
    write_part(student.net, out / part)
    write_part(chosen, out / "scheduler")
    index: dict[str, Any] = dict(folder.index) if folder is not None else {}
    index |= {"_class_name": pipeline, "_diffusers_version": library().__version__}
    index.pop("_name_or_path", None)
    index |= {part: ["diffusers", type(student.net).__name__], "scheduler": ["diffusers", type(chosen).__name__]}
    if folder is not None:
        for name in folder.names():
            if name not in (part, "scheduler"):
                copy_part(folder, name, out)
        copy_legal(folder, out)
    if "vae" in PIPELINES[pipeline].parts and "vae" not in index:
        # A network of pixels in a pipeline of latents.
        write_part(identity_autoencoder(student.family.sample_channels(student.net)), out / "vae")
        index["vae"] = ["diffusers", "AutoencoderTiny"]
    if classes and pipeline == "DiTPipeline":
        index["id2label"] = {str(label): name for label, name in enumerate(classes)}
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_part(part: Any, place: Path) -> None:  # noqa: ANN401 -- a model or a scheduler of diffusers
    """Write one part as diffusers does, without the path that it came from."""
    part.save_pretrained(place)
    for name in ("config.json", "scheduler_config.json"):
        if (place / name).is_file():
            config = json.loads((place / name).read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)
            if config["_class_name"] == "AutoencoderTiny":  # fills this in by itself, and complains of it in a file
                config.pop("block_out_channels", None)
            (place / name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def call_of(pipeline: str, folder: Path) -> str:
    """Arguments of a call for a picture, with its size where the pipeline would take a larger one by itself."""
    call, vae, net = PIPELINES[pipeline].call, folder / "vae" / "config.json", folder / "transformer" / "config.json"
    if not pipeline.startswith(("PixArt", "Sana")) or not vae.is_file():
        return call
    about, blocks = json.loads(vae.read_text()), ("encoder_block_out_channels", "block_out_channels")
    factor = 2 ** (len(next(about[key] for key in blocks if key in about)) - 1)
    side = factor * json.loads(net.read_text())["sample_size"]
    return call if side >= BINNED else f"{call}, height={side}, width={side}, use_resolution_binning=False"


def usage_of(pipeline: str, folder: str, call: str) -> str:
    """Lines of Python that make a picture."""
    return "\n".join(
        [
            f"from diffusers import {pipeline}",
            "",
            f'pipe = {pipeline}.from_pretrained("{folder}")',
            f"image = pipe({call}).images[0]",
        ]
    )


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """Within, a new folder beside `out`, which takes its place at the end; it goes if anything is raised.

    Raises:
        OSError: if there is not enough space; says so.
    """
    out = out.absolute()
    new, old = (out.with_name(f".{out.name}.{word}") for word in ("partial", "replaced"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors makes its files readable by their owner alone
            synchronize(path)
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        new.rename(out)
    except OSError as error:
        raise OSError(f"cannot write {out}: {error}; free some space or choose another place") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    synchronize(out.parent)
