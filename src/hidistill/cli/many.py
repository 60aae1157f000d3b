"""Draws thousands of pictures over hours and processes: a file each, and what lies there is not drawn again.

Work is cut into chunks. A process takes a chunk by a lock that the system lets go of when the process ends, however it
ends; so any number of processes may draw into one folder, and may be killed. Picture i depends on the seed and i alone.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hidistill.cli import drawing
from hidistill.data.judged import write_batch
from hidistill.data.prompt_lists import Asked, PromptList
from hidistill.evaluate import draw
from hidistill.files import exclusive, whole
from hidistill.seeds import fold_in
from hidistill.types import Cond, Images, Points

ORDER = "draw.json"
"""What was asked of a folder; another order for the same folder is refused."""
Tell = Callable[[str, int, int], object]


class Busy(Exception):
    """Another process is at this chunk."""


@dataclass(frozen=True)
class Picture:
    """One picture that is wanted.

    Args:
        index: gives its noise.
        place: within the folder.
        label: its class, where there are classes.
        asked: its prompt, where there are prompts.
    """

    index: int
    place: str
    label: int = 0
    asked: Asked | None = None


def of_classes(count: int, labels: Sequence[int]) -> list[Picture]:
    """A picture per label, in one folder."""
    return [Picture(i, f"{i:06}.png", int(labels[i])) for i in range(count)]


def of_prompts(prompts: PromptList, each: int) -> list[Picture]:
    """So many pictures per prompt, where the judge of the list looks for them."""
    found = []
    for i, item in enumerate(prompts.items):
        for j in range(each):
            if prompts.kind == "geneval":
                place = f"{item.key}/samples/{j:04}.png"
            elif prompts.kind == "mjhq":
                place = f"{item.category}/{item.key}.png"
            else:
                place = f"{item.key}.png" if each == 1 else f"{item.key}/{j:04}.png"
            found.append(Picture(i * each + j, place, asked=item))
    return found


def order(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Write down what the folder is for, or refuse to mix it with something else.

    An order of more pictures of classes goes on with the folder: picture i is the same, however many there are.

    Raises:
        ValueError: if the folder was made by another order.
    """
    path = folder / ORDER
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in {*found, *wanted} if found.get(key) != wanted.get(key)]
        if not other:
            return
        if other != ["pictures"] or wanted.get("prompts"):
            key = sorted(other)[0]
            raise ValueError(
                f"{folder} was begun with {key} = {found.get(key)}, this order has {wanted.get(key)}; go on with the "
                "same order, or give another folder"
            )
        if wanted["pictures"] < found["pictures"]:
            raise ValueError(
                f"{folder} is for {found['pictures']:,} pictures, this order of {wanted['pictures']:,}; say --count "
                f"{found['pictures']} or more, or `hidistill score {folder} --count {wanted['pictures']}` for its first"
            )
    elif any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no {ORDER}; give a new folder")
    with whole(path) as partial:
        partial.write_text(json.dumps(dict(wanted), indent=1) + "\n", encoding="utf-8")


def fill(
    folder: Path, pictures: Sequence[Picture], network: drawing.Network, plan: drawing.Plan, *,
    seed: int, chunk: int, device: str, tell: Tell,
) -> int:  # fmt: skip
    """Draw what is missing and nobody else is at; how many of all pictures are there in the end."""
    total = len(pictures)
    chunks = [pictures[start : start + chunk] for start in range(0, total, chunk)]
    there = sum((folder / picture.place).exists() for picture in pictures)
    tell(folder.name, there, total)
    for number, part in enumerate(chunks):
        if all((folder / picture.place).exists() for picture in part):
            continue
        try:
            place = folder / ".chunks" / f"{number:06}"
            place.mkdir(parents=True, exist_ok=True)
            with exclusive(place, lambda _: Busy()):
                missing = [picture for picture in part if not (folder / picture.place).exists()]
                if missing:
                    keep(folder, missing, drawn(missing, network, plan, seed=seed, device=device))
        except Busy:
            continue
        there = sum((folder / picture.place).exists() for picture in pictures)
        tell(folder.name, there, total)
    return sum((folder / picture.place).exists() for picture in pictures)


def drawn(
    pictures: Sequence[Picture], network: drawing.Network, plan: drawing.Plan, *, seed: int, device: str
) -> Images:
    """The pictures themselves."""
    seeds = [fold_in(seed, "sample", picture.index) for picture in pictures]
    labels = torch.tensor([picture.label for picture in pictures])
    prompts = [picture.asked.prompt for picture in pictures if picture.asked]
    cond = drawing.conditions(network, labels, prompts)

    def from_noise(noise: Points, cond: Cond) -> Points:
        return drawing.samples(network, plan, noise, cond, seeds)

    settings = {"shape": network.shape, "codec": network.codec, "batch_size": len(pictures), "device": device}
    return draw(from_noise, seeds=seeds, cond=cond, **settings).images


def keep(folder: Path, pictures: Sequence[Picture], images: Images) -> None:
    """Write pictures, each whole or not at all, and what GenEval's evaluator wants beside them."""
    for picture, image in zip(pictures, (255 * images).round().byte(), strict=True):
        path = folder / picture.place
        path.parent.mkdir(parents=True, exist_ok=True)
        if picture.asked is not None and picture.asked.record is not None:
            with whole(path.parent.parent / "metadata.jsonl") as partial:
                partial.write_text(json.dumps(dict(picture.asked.record)) + "\n", encoding="utf-8")
        array = image.movedim(0, -1).numpy()
        with whole(path) as partial:
            Image.fromarray(array[..., 0] if len(image) == 1 else array).save(partial, format="PNG")


def batch(folder: Path, pictures: Sequence[Picture], path: Path, *, labelled: bool, block: int = 250) -> None:
    """All pictures as one `.npz` of the ADM evaluator, in the order of their noise.

    Raises:
        ValueError: if some are not drawn yet.
    """
    missing = sum(not (folder / picture.place).exists() for picture in pictures)
    if missing:
        raise ValueError(f"{missing:,} of {len(pictures):,} pictures are not drawn yet; the same command goes on")

    def blocks() -> Iterator[torch.Tensor]:
        for start in range(0, len(pictures), block):
            yield torch.stack([pixels(folder / picture.place) for picture in pictures[start : start + block]])

    first = pixels(folder / pictures[0].place)
    labels = torch.tensor([picture.label for picture in pictures]) if labelled else None
    write_batch(path, blocks(), count=len(pictures), shape=first.shape, labels=labels)


def pixels(path: Path) -> torch.Tensor:
    """A picture as uint8 (3, h, w)."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).movedim(-1, 0)
