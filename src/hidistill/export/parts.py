"""The parts of a teacher's folder that a student's keeps: copied as they are, but for pickles."""

import shutil
from pathlib import Path

from hidistill.foreign.folder import FolderError, Parts

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Weights that can run code when they are opened; never copied."""
OTHERS = (".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".tflite")
"""Weights for other libraries, which pipelines of diffusers do not read."""
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
"""How the names of files at the top begin that go with the weights wherever these go."""


def refuse_places(out: Path, teacher: Path | None, *, force: bool) -> None:
    """Refuse to write where something else lies.

    Raises:
        ValueError: if `out` is, contains or lies in the teacher's folder, is a file, or is not empty without `force`.
    """
    here, there = out.resolve(), None if teacher is None else teacher.resolve()
    if there is not None and (here == there or there in here.parents or here in there.parents):
        raise ValueError(
            f"--out {out} is, contains or lies in the teacher's folder {teacher}, which is never changed; give another "
            "place"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder, which may be new")
    refuse_full(out, force=force)


def refuse_full(out: Path, *, force: bool) -> None:
    """Refuse a folder that holds something, unless that is an exported pipeline which may be replaced.

    Raises:
        ValueError: if it does.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise ValueError(f"--out {out} is not empty; give a new folder, or --force to replace what was exported there")
    if not (out / "model_index.json").is_file():
        found = ", ".join(sorted(path.name for path in out.iterdir())[:5])
        raise ValueError(f"--out {out} holds {found}, and no model_index.json: --force replaces exported folders alone")


def refuse_file(out: Path, suffix: str, *, force: bool) -> None:
    """Refuse to write a file where something else lies.

    Raises:
        ValueError: if the name has another ending, is a folder's, or is taken without `force`.
    """
    if out.suffix != suffix or out.is_dir():
        raise ValueError(f"--out {out}: give the name of a file that ends in {suffix}")
    if out.exists() and not force:
        raise ValueError(f"--out {out} exists; give another name, or --force to replace it")


def copy_part(folder: Parts, part: str, to: Path) -> None:
    """Copy one part of a pipeline, without pickles and other libraries' weights.

    Where the teacher was read in a variant ("fp16"), weights that exist in it alone lose it from their names.

    Raises:
        FolderError: if the part's folder is missing, or its weights are in a pickle alone.
    """
    place = folder.place(part)
    if not place.is_dir():
        raise FolderError(
            f"{folder.root} has no folder {part}, which its model_index.json names; copy it from where it came from"
        )
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    pickled = [path.name for path in files if path.suffix in PICKLES]
    if pickled and not any(path.suffix == ".safetensors" for path in files):
        raise FolderError(
            f"{place} has its weights in {', '.join(pickled)} alone; exported folders have no pickle, for that can run "
            "code when it is opened. Write them anew in a copy of the teacher's folder, and give that with --teacher: "
            "load the part with its from_pretrained, then save_pretrained(..., safe_serialization=True)"
        )
    for path in files:
        if path.suffix in (*PICKLES, *OTHERS) or is_listing_of_pickles(path):
            continue
        target = to / part / path.relative_to(place)
        if folder.variant and f".{folder.variant}" in path.name:
            plain = target.with_name(path.name.replace(f".{folder.variant}", "", 1))
            target = target if (path.parent / plain.name).exists() else plain
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def is_listing_of_pickles(path: Path) -> bool:
    """Whether a file only says which of several pickles holds what."""
    return path.name.endswith(".json") and any(f"{ending}.index." in path.name for ending in PICKLES)


def copy_legal(folder: Parts, to: Path) -> None:
    """Copy the license and its like from the top of a teacher's folder; of a checkpoint's neighbors nobody knows."""
    if not folder.root.is_dir():
        return
    for path in sorted(folder.root.iterdir()):
        if path.is_file() and path.name.upper().startswith(LEGAL):
            shutil.copyfile(path, to / path.name)
