"""Finds what `hidistill view` shows: students, their teachers, the discriminator that judged them, run folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from hidistill import weights
from hidistill.cli import drawing
from hidistill.discriminators.adaptive import Adaptive
from hidistill.files import facts
from hidistill.foreign.network import Network
from hidistill.recipes.again import BENCHES
from hidistill.recipes.fashion import TEACHER
from hidistill.recipes.students import teacher_parts
from hidistill.report.folder import document
from hidistill.teachers.dit import DiT
from hidistill.train.checkpoint import newest_first
from hidistill.types import Student, Teacher
from hidistill.view.cast import Growing, Match, Scene, Space
from hidistill.view.votes import refuse_place
from hidistill.weights import WeightsError, load_into

ROLES = ("student", "sketch")
"""Flow maps that a run leaves, best first."""
RUN_FILES = ("recipe.json", "metrics.jsonl", "evaluation.json")


class Found(NamedTuple):
    """A teacher, where it lives, what tells its weights from others, and the scale that is distilled unless said."""

    teacher: Teacher
    space: Space
    weights: str
    scale: float = 1.0


def scene(sources: Sequence[Path], *, teacher: Path | None, votes: Path | None) -> Scene:
    """What a page shows.

    Args:
        sources: run folders and weights files.
        teacher: of students that do not say who theirs is.
        votes: file of the blind comparison; None is votes.jsonl in the first run folder, or here.

    Raises:
        ValueError: if there is nothing to show, or something of it cannot be used.
    """
    if not sources:
        raise ValueError("nothing to show; give a run's folder, e.g. runs/demo, or a student's weights file")
    runs: dict[str, Path] = {}
    matches: dict[str, Match] = {}
    growing: dict[str, Growing] = {}
    teachers: dict[Path, Found] = {}
    for source in sources:
        if not source.exists():
            raise ValueError(f"{source}: there is no such file or folder; give a run's folder, e.g. runs/demo")
        if source.is_dir() and any((source / name).exists() for name in RUN_FILES):
            name = free_name(source.resolve().name, runs)
            runs[name] = source
            if (live := growing_in(source, given=teacher, teachers=teachers)) is not None:
                growing[name] = live
        elif source.is_dir():
            raise ValueError(f"{source} is no run folder: it has none of {', '.join(RUN_FILES)}")
        for file in students_of(source):
            of_run = source if source.is_dir() else run_of(file)
            found = match(file, of_run, given=teacher, teachers=teachers)
            matches[free_name(found.name, matches)] = found
    place = votes or (next(iter(runs.values())) if runs else Path()) / "votes.jsonl"
    refuse_place(place)
    return Scene({name: named(found, name) for name, found in matches.items()}, runs, place, growing)


def growing_in(run: Path, *, given: Path | None, teachers: dict[Path, Found]) -> Growing | None:
    """The student that a run trains, if its teacher is a DiT of ours that is where the run says."""
    recipe = document(run / "recipe.json") or {}
    try:
        at = teacher_of(run, recipe, given)
        if not at.is_dir() or not (at / "model_index.json").exists():
            teachers.setdefault(at, teacher_of_ours(at))
    except ValueError:
        return None
    found = teachers.get(at)
    if found is None or not isinstance(found.teacher, DiT):
        return None
    student = found.teacher.student().eval().requires_grad_(False)

    def newest() -> tuple[int, Student] | None:
        for folder in newest_first(run / "checkpoints"):
            if (file := folder / "student-average.safetensors").exists():
                load_into(student, load_file(file), source=str(file))
                return int(folder.name), student
        return None

    return Growing(newest, found.space)


def named(found: Match, name: str) -> Match:
    """A match under the name that the page shows."""
    return replace(found, name=name)


def free_name(name: str, taken: dict[str, Any]) -> str:
    """A name that nobody has yet."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def students_of(source: Path) -> list[Path]:
    """The flow maps in a run folder, none while it trains its first stage; or the file itself."""
    if source.is_dir():
        return [path for role in ROLES if (path := source / "models" / f"{role}.safetensors").exists()]
    return [drawing.weights_file(source)]


def run_of(file: Path) -> Path | None:
    """The run folder that a weights file lies in, if it does."""
    folder = file.resolve().parent.parent
    return folder if file.resolve().parent.name == "models" and (folder / "recipe.json").exists() else None


def match(file: Path, run: Path | None, *, given: Path | None, teachers: dict[Path, Found]) -> Match:
    """A student beside its teacher.

    Raises:
        ValueError: if the file holds no flow map, or nobody knows its teacher.
    """
    stored = weights.read(file)
    if stored.config.get("allow_pickle"):
        raise ValueError(
            f"{file}: its teacher's checkpoint is a pickle, which the page does not read; save that checkpoint as "
            "safetensors and distill from it, or draw with hidistill sample"
        )
    network = drawing.load(file)
    if not isinstance(network.module, Student):
        raise ValueError(f"{file} holds a teacher; give a student's weights, and this as --teacher")
    recipe = (document(run / "recipe.json") if run else None) or {}
    arguments = recipe.get("arguments", {})
    at = teacher_of(file, recipe, given)
    if at not in teachers:
        teachers[at] = teacher_at(at, stored)
    teacher, space, digest, usual = teachers[at]
    if tuple(space.shape) != tuple(network.shape) or space.classes != network.classes:
        raise ValueError(
            f"{file} draws samples of {tuple(network.shape)} of {network.classes} classes, the teacher in {at} "
            f"{tuple(space.shape)} of {space.classes}: give its own teacher as --teacher"
        )
    space = Space(network.shape, network.classes, tuple(network.names), network.codec, network.encode)
    if isinstance(teacher, Network) and network.encode is not None:
        empty = network.encode([""])
        assert not isinstance(empty, Tensor)
        teacher.set_null(empty)
    head, headless = discriminator(run, recipe, teacher)
    name = f"{run.resolve().name}, {file.stem}" if run else file.stem
    scale = float(usual if (said := arguments.get("guidance")) is None else said)
    return Match(name, network.module, digest_of(file), teacher, digest, space, scale, head, headless)


def teacher_of(file: Path, recipe: dict[str, Any], given: Path | None) -> Path:
    """Where a student's teacher lies.

    Raises:
        ValueError: if nobody says, or nothing lies there.
    """
    name, arguments = recipe.get("recipe"), recipe.get("arguments", {})
    if given is None and name in BENCHES:
        place = arguments.get(BENCHES[str(name)].places["teacher"])
        found = TEACHER if place is None and name == "fashion.distill" else Path(str(place))
    elif given is None:
        raise ValueError(f"{file}: no recipe beside it says who its teacher is; give --teacher FILE")
    else:
        found = given
    if not found.exists():
        raise ValueError(f"the teacher of {file} is not in {found}, where nothing lies; say with --teacher where it is")
    return found.resolve()


def teacher_at(at: Path, stored: weights.Weights) -> Found:
    """A teacher of ours from its weights or its run, or of another library from where its student says."""
    return teacher_elsewhere(at, stored) if stored.family == "flow-map" else teacher_of_ours(at)


def teacher_of_ours(at: Path) -> Found:
    """A teacher from its weights or its run."""
    file = drawing.weights_file(at)
    network = drawing.load(file)
    if not isinstance(network.module, Teacher):
        raise ValueError(f"--teacher {at} holds a student; give a teacher's weights")
    space = Space(network.shape, network.classes, network.names, network.codec)
    return Found(network.module, space, digest_of(file))


def teacher_elsewhere(at: Path, stored: weights.Weights) -> Found:
    """The teacher of another library's network."""
    from hidistill.recipes.pipelines import scale_of
    from hidistill.recipes.teachers import load_parts

    config = stored.config
    loaded = load_parts(teacher_parts({**config, "teacher": str(at)}), embedded=config.get("embedded"))
    network = loaded.network
    network.eval().requires_grad_(False)
    classes = len(stored.classes) or network.family.classes(network.net)
    return Found(network, Space(tuple(config["shape"]), classes), loaded.digest[:12], scale_of(loaded, None))


def discriminator(run: Path | None, recipe: dict[str, Any], teacher: Teacher) -> tuple[Adaptive | None, str]:
    """The discriminator in a run's newest checkpoint, if its attention can be shown; otherwise why not."""
    if run is None:
        return None, "the weights file does not lie in a run folder, whose checkpoints hold the discriminator"
    kind = recipe.get("arguments", {}).get("discriminator", "adaptive")
    if kind != "adaptive":
        return None, f"the run's discriminator is {kind}; only the adaptive one has attention"
    found = next(
        (path for at in newest_first(run / "checkpoints") if (path := at / "discriminator.safetensors").exists()), None
    )
    if found is None:
        return None, f"{run / 'checkpoints'} holds no discriminator (a run has one once its stage refine has begun)"
    head = Adaptive(teacher.feature_channels)
    try:
        load_into(head, load_file(found), source=str(found))
    except WeightsError as error:
        return None, str(error)
    return head.eval().requires_grad_(False), ""


def digest_of(file: Path) -> str:
    """A word that tells weights from others."""
    return str(facts(file)["sha256"])[:12]
