"""Teachers from wherever users have them, and samples to show them: pictures, a cache, or none but their prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from hidistill.codecs import Autoencoder, Pixels
from hidistill.data import captioned
from hidistill.data.cache import Cache
from hidistill.foreign.folder import Folder, FolderError
from hidistill.foreign.inspection import LEAST
from hidistill.foreign.network import Network
from hidistill.foreign.text import prompt_encoder
from hidistill.recipes.caching import side_of
from hidistill.recipes.describing import Rows, rows_of_checkpoint, rows_of_folder, rows_of_weights
from hidistill.recipes.judging import read_teacher
from hidistill.recipes.material import refuse_unfit
from hidistill.recipes.originals import Checkpoint, Where, parts_at
from hidistill.recipes.teachers import Loaded, load_parts, part_of, shape_of
from hidistill.teachers import diffusers_dit, original
from hidistill.teachers.dit import DiT
from hidistill.types import Codec, Cond, Points, Record
from hidistill.weights import WeightsError

PROMPTS = (
    "a photograph of a cat on a sofa",
    "an oil painting of a ship in a storm",
    "a bowl of red apples on a wooden table",
    "a city street at night in the rain",
    "a portrait of an old man with a beard",
    "a green valley between snowy mountains",
    "a yellow bus in front of a school",
    "a drawing of a dragon",
)
"""What a teacher draws for where neither pictures nor prompts are given."""


@dataclass(frozen=True)
class Subject:
    """A teacher that is inspected, and what is needed to show it pictures.

    Args:
        teacher: what is tested.
        rows: its description.
        shape: of one sample; None if it does not say.
        classes: number of classes; 0 if there are none.
        codec: between pixels and where it lives; None if nobody knows it.
        channels: of its pictures.
        side: of its pictures, in pixels; raises where it does not say.
        folder: of the pipeline, which has the text encoders; None without one.
        fits: refuses a cache that was made for another teacher.
    """

    teacher: Network | DiT
    rows: Rows
    shape: tuple[int, ...] | None
    classes: int
    codec: Codec | None
    channels: int
    side: Callable[[], int]
    folder: Folder | None
    fits: Callable[[Cache], None]

    @property
    def texts(self) -> bool:
        """Whether it is conditioned by prompts."""
        return isinstance(self.teacher, Network) and bool(self.teacher.family.texts)


def subject_of(
    place: Path, *, kind: original.Kind | None, autoencoder: Where | None, allow_pickle: bool, size: int | None
) -> Subject:
    """The teacher in a place.

    Args:
        place: a folder of diffusers, a checkpoint, or a weights file or run folder of ours.
        kind: which repository's a checkpoint is.
        autoencoder: of a checkpoint: its folder, or "pixels"; None leaves open in which space it lives.
        allow_pickle: whether weights in a pickle may be read.
        size: side of the pictures in pixels; None is what the teacher was made for.

    Raises:
        ValueError: if it is none of these.
    """
    if place.is_dir() and not (place / "model_index.json").is_file() and (place / "models").is_dir():
        path = place / "models" / "teacher.safetensors"
        if not path.is_file():
            raise ValueError(
                f"{place} is a run that trained no teacher: there is no {path.name} in {path.parent}; give the teacher "
                "that it distills"
            )
        return subject_of_weights(path)
    if kind is None and autoencoder is None and place.is_file() and place.suffix == ".safetensors":
        try:
            return subject_of_weights(place)
        except WeightsError as error:
            raise WeightsError(f"{error}. For a checkpoint of DiT or SiT say --kind dit or --kind sit") from error
    found = parts_at(place, kind=kind, autoencoder=autoencoder, allow_pickle=allow_pickle)
    if isinstance(found, Checkpoint):
        return subject_of_checkpoint(found, size)
    return subject_of_folder(load_parts(found), size)


def subject_of_folder(loaded: Loaded, size: int | None) -> Subject:
    """A pipeline of diffusers."""
    assert isinstance(loaded.folder, Folder)
    return subject_of_network(loaded, rows_of_folder(loaded), loaded.folder, size)


def subject_of_checkpoint(checkpoint: Checkpoint, size: int | None) -> Subject:
    """A checkpoint of DiT or SiT, with its autoencoder, or without one."""
    if checkpoint.autoencoder is not None:
        loaded = load_parts(checkpoint)
        return subject_of_network(loaded, rows_of_checkpoint(loaded.network, checkpoint, loaded.codec), None, size)
    network = Network(checkpoint.network("transformer"), diffusers_dit.FAMILY, original.convention(checkpoint.kind))
    shape = shape_of(network)
    assert shape is not None

    def side() -> int:
        raise ValueError(
            f"{checkpoint.root} has no autoencoder to encode pictures with; say --autoencoder DIR, the folder of the "
            "one that it was trained with, or --autoencoder pixels, or give a cache"
        )

    return Subject(
        network, rows_of_checkpoint(network, checkpoint, None), shape, network.classes, None, 0, side, None,
        lambda stored: refuse_shape(stored, shape, network.classes),
    )  # fmt: skip


def subject_of_network(loaded: Loaded, rows: Rows, folder: Folder | None, size: int | None) -> Subject:
    """A network of another library and its codec."""
    config, where = loaded.folder.config(part_of(loaded.folder)[0]), str(loaded.folder.root)
    factor = loaded.codec.factor
    channels = loaded.codec.image_channels if isinstance(loaded.codec, Autoencoder) else int(config["in_channels"])
    shape = shape_of(loaded.network)
    if size is not None:
        side = side_of(config, size, factor, where=where) // factor
        shape = loaded.family.sample_channels(loaded.network.net), side, side
    return Subject(
        teacher=loaded.network,
        rows=rows,
        shape=shape,
        classes=loaded.network.classes,
        codec=loaded.codec,
        channels=channels,
        side=lambda: side_of(config, size, factor, where=where),
        folder=folder,
        fits=lambda stored: refuse_unfit(loaded, stored),
    )


def subject_of_weights(path: Path) -> Subject:
    """A teacher that this package trained, which lives on pixels."""
    net = read_teacher(path)
    shape = (net.channels, net.grid * net.patch, net.grid * net.patch)
    return Subject(
        net, rows_of_weights(net, path), shape, net.classes, Pixels(), net.channels, lambda: shape[1], None,
        lambda stored: refuse_shape(stored, shape, net.classes),
    )  # fmt: skip


def refuse_shape(stored: Cache, shape: tuple[int, ...], classes: int) -> None:
    """Refuse a cache of other samples.

    Raises:
        ValueError: if shape or conditions are others.
    """
    if stored.condition != "label" or stored.shape != shape or len(stored.classes) > max(classes, 1):
        raise ValueError(
            f"{stored.root} holds samples of shape {stored.shape} with {stored.condition}s of {len(stored.classes)} "
            f"classes; this teacher's are {shape} with labels of {classes}: give a cache that was made for it"
        )


@dataclass(frozen=True, eq=False)
class Shown:
    """What a teacher is shown.

    Args:
        words: what it is.
        cond: conditions; None if there are none to be had, and no test is made.
        x_0: clean samples; None if the teacher is to draw them itself.
    """

    words: str
    cond: Cond | None = None
    x_0: Points | None = None


def shown(subject: Subject, *, images: Path | None, cache: Path | None, samples: int) -> Shown:
    """Samples of a folder of pictures or a cache, or the conditions of samples that the teacher draws."""
    if cache is not None:
        return stored_samples(subject, cache, samples)
    return nothing(subject, samples) if images is None else encoded(subject, images, samples)


def stored_samples(subject: Subject, cache: Path, samples: int) -> Shown:
    """The training part of a cache, shuffled."""
    stored = Cache.open(cache)
    subject.fits(stored)
    count = min(samples, stored.count("train"))
    if stored.has_latents:
        batch = stored.batch_at(0, batch_size=count, seed=0)
        return Shown(f"on the latents of {count} pictures in {cache}", batch.cond, batch.x)
    words = f"on the teacher's own samples, for {count} prompts of {cache}; pictures would tell more"
    return Shown(words, stored.cond_at(0, batch_size=count, seed=0))


def nothing(subject: Subject, samples: int) -> Shown:
    """Labels of all classes, or the usual prompts."""
    words = "on the teacher's own samples; pictures would tell more"
    if subject.shape is None:
        return Shown("the teacher does not say for which size it is made; say it, e.g. --size 1024")
    if not subject.texts:
        return Shown(words, torch.linspace(0, max(subject.classes - 1, 0), samples).round().long())
    try:
        return Shown(words, prompted(subject, [PROMPTS[row % len(PROMPTS)] for row in range(samples)]))
    except (FolderError, ModuleNotFoundError) as error:
        return Shown(f"prompts cannot be encoded: {error}")


def encoded(subject: Subject, images: Path, samples: int) -> Shown:
    """Pictures of a folder, spread over it, as the teacher sees them.

    Raises:
        ValueError: if there are too few, or their conditions are not the teacher's.
    """
    source = captioned.read(images, size=subject.side())
    assert source.count is not None
    if source.count < LEAST:
        raise ValueError(f"{images} holds {source.count} pictures; a self-test needs at least {LEAST}: give more")
    picks = torch.linspace(0, source.count - 1, min(samples, source.count)).long().unique().tolist()
    records = [record for row in picks for record in islice(source.records(row), 1)]
    pixels = torch.stack([torch.as_tensor(record.image) for record in records]).float() / 255
    if subject.channels == 1:
        pixels = pixels.mean(1, keepdim=True)
    assert subject.codec is not None
    with torch.no_grad():
        x_0 = torch.cat([subject.codec.encode(some) for some in pixels.split(8)])
    return Shown(f"on {len(records)} pictures of {images}", conditions(subject, records, source.classes, images), x_0)


def conditions(subject: Subject, records: Sequence[Record], classes: Sequence[str], images: Path) -> Cond:
    """The conditions of some pictures.

    Raises:
        ValueError: if they have none, or there are too many classes.
    """
    if subject.texts:
        captions = [record.caption for record in records if record.caption is not None]
        if len(captions) < len(records):
            raise ValueError(
                f"{images} has no captions, and the teacher is conditioned by prompts; write a metadata.jsonl, or a "
                "text file beside each picture"
            )
        return prompted(subject, captions)
    if not subject.classes:
        return torch.zeros(len(records), dtype=torch.long)
    if not classes or len(classes) > subject.classes:
        raise ValueError(
            f"{images} has {len(classes) or 'no'} classes, and the teacher {subject.classes}; give a folder with a "
            "sub-folder for each of the teacher's classes, in their order"
        )
    return torch.tensor([record.label for record in records])


def prompted(subject: Subject, prompts: Sequence[str]) -> Cond:
    """Prompts as the teacher sees them; it is given the empty one, too."""
    assert subject.folder is not None
    assert isinstance(subject.teacher, Network)
    encoder = prompt_encoder(subject.folder, longer="cut")
    subject.teacher.set_null(encoder.null())
    rows = [encoder(prompts[start : start + 8]) for start in range(0, len(prompts), 8)]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
