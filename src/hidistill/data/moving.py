"""Moving pictures: each crosses a square canvas at a constant speed and bounces off its sides, one picture per clip.

After Moving MNIST (arXiv 1502.04681). Places and speeds are whole pixels, so that every frame shows the picture's own
pixels: what is right about motion and looks of a clip is then known exactly. A clip is a function of its index and the
seed, and there is no end of them; parts are as disjoint as the pictures that they are made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hidistill.seeds import fold_in
from hidistill.types import Labels, Split

Places = Int[Tensor, "n frames"]
"""Of the pictures' first row, or first column, in each frame, in pixels."""


@dataclass(frozen=True)
class Motion:
    """How pictures move.

    Args:
        frames: of a clip.
        side: of the canvas, in pixels.
        fastest: largest speed along each axis, in pixels a frame.
    """

    frames: int = 8
    side: int = 16
    fastest: int = 2

    def room(self, side: int) -> int:
        """The largest place that a picture of this side can have.

        Raises:
            ValueError: if there is too little room, or nothing would move.
        """
        room = self.side - side
        if self.frames < 2 or not 1 <= self.fastest <= room:
            raise ValueError(
                f"{self} for pictures of {side} pixels: motion needs 2 frames or more, and a fastest speed of at least "
                f"1 and at most the {max(room, 0)} pixels that the canvas leaves; give more frames or a larger side"
            )
        return room


class Clips(NamedTuple):
    """Clips in [0, 1] and the classes of what moves in them."""

    pixels: Float[Tensor, "n frames c side side"]
    labels: Labels


def clips(split: Split, indices: Sequence[int], motion: Motion, *, seed: int) -> Clips:
    """The clips of these indices. Clip i shows class `i % classes`; picture, start and speed are its own chance.

    A clip moves along at least one axis; all speeds but that of standing still are equally likely.

    Args:
        split: square pictures; each of its classes has some.
        indices: of the clips.
        motion: how they move.
        seed: of chance.

    Raises:
        ValueError: if a picture is not square or has no room to move, or a class has no picture.
    """
    height, width = split.images.shape[2:]
    if height != width:
        raise ValueError(f"pictures of {height} x {width} pixels came; those that move are square: crop them")
    room, fastest = motion.room(height), motion.fastest
    labels = torch.tensor(indices, dtype=torch.long) % max(1, len(split.classes))
    chance = draws(indices, seed)
    start = chance[:, 1:3] % (room + 1)
    speeds = torch.arange(-fastest, fastest + 1)
    moving = torch.cartesian_prod(speeds, speeds)
    moving = moving[moving.any(1)]
    velocity = moving[chance[:, 3] % len(moving)]
    rows, columns = (bounced(start[:, k], velocity[:, k], motion.frames, room) for k in range(2))
    images = split.images[picked(split, labels, chance[:, 0])].float() / 255
    return Clips(placed(images, rows, columns, motion.side), labels)


def draws(indices: Sequence[int], seed: int) -> Int[Tensor, "n 4"]:
    """Four large numbers for each index, whatever the others are."""
    generator = torch.Generator()
    rows = [torch.randint(2**40, (4,), generator=generator.manual_seed(fold_in(seed, "clip", i))) for i in indices]
    return torch.stack(rows) if rows else torch.empty(0, 4, dtype=torch.long)


def picked(split: Split, labels: Labels, chance: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """A picture of each label, by chance."""
    counts = torch.bincount(split.labels, minlength=max(1, len(split.classes)))
    if not counts.all():
        lacking = [str(split.classes[label]) for label in (counts == 0).nonzero().flatten().tolist()]
        raise ValueError(f"there is no picture of {', '.join(lacking)}; every class needs one, or leave the class out")
    by_class = split.labels.argsort(stable=True)
    return by_class[counts.cumsum(0)[labels] - 1 - chance % counts[labels]]


def bounced(start: Int[Tensor, " n"], velocity: Int[Tensor, " n"], frames: int, room: int) -> Places:
    """Places along an axis: a line, folded where it leaves [0, room]."""
    line = start[:, None] + velocity[:, None] * torch.arange(frames)
    return room - (line % (2 * room) - room).abs()


def ways(motion: Motion, side: int) -> Places:
    """Every way that a picture of this side can take along an axis, standing still among them."""
    room = motion.room(side)
    speeds = torch.arange(-motion.fastest, motion.fastest + 1)
    start, velocity = torch.cartesian_prod(torch.arange(room + 1), speeds).T
    return bounced(start, velocity, motion.frames, room)


def placed(images: Float[Tensor, "n c h h"], rows: Places, columns: Places, side: int) -> Float[Tensor, "n f c s s"]:
    """Each picture on a black canvas, at its place in each frame."""
    n, frames = rows.shape
    canvas = torch.zeros(n, frames, side, side, images.shape[1])
    inside = torch.arange(images.shape[-1])
    clip, frame = torch.arange(n)[:, None, None, None], torch.arange(frames)[:, None, None]
    down, right = rows[:, :, None, None] + inside[:, None], columns[:, :, None, None] + inside
    canvas[clip, frame, down, right] = images.movedim(1, -1)[:, None]
    return canvas.movedim(-1, 2).contiguous()
