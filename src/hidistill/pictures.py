"""Pictures from files: found by their names, turned upright, cropped to the center square, transparency on white."""

import struct
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

GRAY_TOLERANCE = 2
"""Largest difference between the color channels of a gray picture, in levels of 255: JPEG rounds."""
BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, Image.DecompressionBombError)
"""Pillow's readers raise each of these for damaged files."""

Broken = Literal["refuse", "skip"]
"""What to do with a broken picture: raise, or give its record without an image, so that no index shifts."""
T = TypeVar("T")


def endings() -> frozenset[str]:
    """Endings of the files that Pillow reads, such as `.png`, in lower case."""
    Image.init()
    return frozenset(ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN)


def pictures_below(root: Path) -> tuple[list[str], list[str]]:
    """Names below a folder: of the pictures, and of all other files; hidden ones are in neither list."""
    readable = endings()
    pictures: list[str] = []
    others: list[str] = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        (pictures if path.suffix.lower() in readable else others).append(name.as_posix())
    return pictures, others


def side(path: Path) -> int:
    """The shorter side in pixels, from the file's header."""
    with Image.open(path) as image:
        return min(image.size)


def colored(colors: UInt8[np.ndarray, "*n h w 3"]) -> bool:
    """Whether any pixel is not gray."""
    return bool(np.ptp(colors, axis=-1).max(initial=0) > GRAY_TOLERANCE)


def square(file: Path | BytesIO, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The center of a picture as colors (size, size, 3), upright, transparency laid on white.

    Raises:
        Exception: one of `DAMAGED` if the file is no whole picture.
    """
    with Image.open(file) as image:
        # Large JPEG files decode several times faster to a fraction of their side.
        image.draft(None, (2 * size, 2 * size))
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        elif upright.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {upright.mode}, whose range is unknown; save them with 8 bits")
        if upright.has_transparency_data:
            cover = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", cover.size, (*BACKGROUND, 255)), cover)
        side = min(upright.size)
        left, top = (upright.width - side) // 2, (upright.height - side) // 2
        center = upright.convert("RGB").crop((left, top, left + side, top + side))
        return np.asarray(center.resize((size, size), Image.Resampling.LANCZOS))


def pixels(data: bytes, size: int) -> UInt8[Tensor, "3 h w"]:
    """`square` of a file's bytes, channels first.

    Raises:
        Exception: one of `DAMAGED` if the bytes are no whole picture.
    """
    return torch.from_numpy(square(BytesIO(data), size).transpose(2, 0, 1).copy())


def pixels_or_none(data: bytes | None, size: int, *, broken: Broken, where: str) -> UInt8[Tensor, "3 h w"] | None:
    """`pixels`, or None for a broken picture that is to be skipped.

    Raises:
        ValueError: if the picture is missing (None) or broken and `broken` is "refuse"; says `where` it is.
    """
    try:
        if data is None:
            raise ValueError("there is none")
        return pixels(data, size)
    except DAMAGED as error:
        if broken == "skip":
            return None
        raise ValueError(
            f"{where} cannot be read as a picture ({why(error)}); replace it, or give broken='skip' to go on without "
            "it: all other pictures keep their places"
        ) from error


def refuse_choices(size: int, broken: Broken) -> None:
    """Raise if pictures cannot be asked for like this."""
    if size < 1:
        raise ValueError(f"size={size}: a picture's side is at least 1 pixel; give the side that the teacher takes")
    if broken not in ("refuse", "skip"):
        raise ValueError(f"broken={broken!r}: broken pictures are refused or skipped; give 'refuse' or 'skip'")


def looked(root: Path, names: Sequence[str], look: Callable[[Path], T]) -> tuple[list[T], dict[str, str]]:
    """What `look` gives for each file that it can read, and for each other file why not."""
    seen: list[T] = []
    broken: dict[str, str] = {}
    for name in names:
        try:
            seen.append(look(root / name))
        except DAMAGED as error:
            broken[name] = why(error)
    return seen, broken


def each(root: Path, names: Sequence[str], look: Callable[[Path], T]) -> list[T]:
    """What `look` gives for each file.

    Raises:
        ValueError: if it cannot read some of them; names them together.
    """
    seen, broken = looked(root, names, look)
    if broken:
        raise ValueError(f"{root}: {told(broken)}; repair or remove them")
    return seen


def why(error: Exception) -> str:
    """What is wrong with a picture; Pillow's own words would name a place in memory."""
    return "of no kind that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)


def told(broken: dict[str, str]) -> str:
    """In words which files are broken."""
    first = ", ".join(f"{name} ({reason})" for name, reason in list(broken.items())[:5])
    more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
    return f"{len(broken)} of the files cannot be read as pictures: {first}{more}"
