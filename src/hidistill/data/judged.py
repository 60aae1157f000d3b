"""Pictures that are judged, or judge: folders, and the `.npz` batches of the ADM evaluator, read in blocks and safely.

A batch holds `arr_0`, uint8 (n, h, w, 3), and may hold labels `arr_1`; a reference may hold `mu`, `sigma` (pooled) and
`mu_s`, `sigma_s` (spatial) of all real images beside fewer images. Nothing that needs pickle is read.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hidistill.files import whole
from hidistill.pictures import DAMAGED, pictures_below

BLOCK = 500
"""Pictures in memory at once."""
IMAGES, LABELS = ("arr_0", "images"), ("arr_1", "labels")
"""Names of the arrays in a batch: the ADM evaluator's, and those of `hidistill sample --npz`."""
STATISTICS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
GRAY, COLOR = ("L", "1"), ("RGB",)


@runtime_checkable
class Reader(Protocol):
    """A file that is read from its start."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""
        ...


Blocks = Callable[[], Iterator[UInt8[Tensor, "b c h w"]]]


@dataclass(frozen=True, eq=False)
class Judged:
    """Pictures of one size and mode.

    Args:
        path: where they lie.
        count: how many there are.
        shape: channels, height, width.
        blocks: reads them from the first on, 500 at a time.
        labels: their classes; None if nobody says.
    """

    path: Path
    count: int
    shape: tuple[int, int, int]
    blocks: Blocks
    labels: Int[Tensor, " n"] | None = None


def read(path: Path) -> Judged:
    """The pictures of a folder or of a batch.

    Raises:
        FileNotFoundError: if nothing lies there.
        ValueError: if it is neither, or is damaged, or its pictures differ in size or mode.
    """
    if path.is_dir():
        return folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no folder and no file {path}; give a folder of pictures, or an .npz batch")
    return batch(path)


def folder(path: Path) -> Judged:
    """All pictures below a folder, by their names; those in sub-folders have the sub-folder's place as their class."""
    names, _ = pictures_below(path)
    if not names:
        raise ValueError(f"{path} holds no pictures; give a folder of them, or an .npz batch")
    first = opened(path / names[0])
    channels, kinds = (1, GRAY) if first.mode in GRAY else (3, COLOR)

    def blocks() -> Iterator[UInt8[Tensor, "b c h w"]]:
        for start in range(0, len(names), BLOCK):
            pictures = [same(path / name, first.size, kinds, names[0]) for name in names[start : start + BLOCK]]
            yield (
                torch.from_numpy(np.stack(pictures))
                .reshape(len(pictures), first.height, first.width, channels)
                .movedim(-1, 1)
            )

    classes = sorted({name.rpartition("/")[0] for name in names})
    labels = torch.tensor([classes.index(name.rpartition("/")[0]) for name in names]) if len(classes) > 1 else None
    return Judged(path, len(names), (channels, first.height, first.width), blocks, labels)


def opened(path: Path) -> Image.Image:
    """A picture as it lies there."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except DAMAGED as error:
        raise ValueError(f"{path} is no whole picture ({error}); draw or copy it again") from error


def same(path: Path, size: tuple[int, int], kinds: Sequence[str], first: str) -> NDArray[np.uint8]:
    """The pixels of a picture, which must be as the first one is: resizing would change what is judged."""
    image = opened(path)
    if image.size != size or (image.mode not in kinds):
        raise ValueError(
            f"{path} is {image.width} x {image.height} of mode {image.mode}, {first} {size[0]} x {size[1]} of mode "
            f"{kinds[0]}: pictures are judged as they are, so all must have one size and mode; convert them"
        )
    return np.asarray(image.convert("L") if kinds == GRAY else image)


def batch(path: Path) -> Judged:
    """The pictures of an `.npz` batch, without reading all of them."""
    with archive(path) as content:
        names = [name.removesuffix(".npy") for name in content.namelist()]
        found = next((name for name in IMAGES if name in names), None)
        if found is None:
            raise ValueError(
                f"{path} holds the arrays {', '.join(names[:6]) or '(none)'}; a batch has its pictures in arr_0, "
                "uint8 of shape (n, h, w, 3)"
            )
        shape, dtype = header(content, found, path)
        last = found == "arr_0"
        channels = shape[-1 if last else 1] if len(shape) == 4 else 0
        if dtype != np.uint8 or channels not in (1, 3) or not shape[0]:
            raise ValueError(
                f"{path}: {found} is {dtype} of shape {shape}; pictures are uint8 of shape "
                f"{'(n, h, w, 3)' if last else '(n, 3, h, w)'}, at least one: write them so"
            )
        marks = next((name for name in LABELS if name in names), None)
        labels = None if marks is None else labels_of(content, marks, shape[0], path)
    sides = shape[1:3] if last else shape[2:]

    def blocks() -> Iterator[UInt8[Tensor, "b c h w"]]:
        with archive(path) as content, content.open(f"{found}.npy") as file:
            begin(file, path)
            size = int(np.prod(shape[1:]))
            for start in range(0, shape[0], BLOCK):
                rows = min(BLOCK, shape[0] - start)
                data = whole_part(file.read, rows * size, path)
                pixels = torch.from_numpy(np.frombuffer(data, np.uint8).reshape(rows, *shape[1:]).copy())
                yield pixels.movedim(-1, 1) if last else pixels

    return Judged(path, shape[0], (channels, sides[0], sides[1]), blocks, labels)


def labels_of(content: zipfile.ZipFile, name: str, count: int, path: Path) -> Int[Tensor, " n"]:
    """The labels of a batch."""
    values = array(content, name, path)
    if values.shape != (count,) or values.dtype.kind not in "iu" or values.min() < 0:
        raise ValueError(
            f"{path}: {name} is {values.dtype} of shape {values.shape}; labels are integers from 0, one for each of "
            f"the {count} pictures"
        )
    return torch.from_numpy(values.astype(np.int64))


def statistics(path: Path) -> dict[str, tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]]:
    """Means and covariances of a reference, "pooled" and "spatial" as far as it has them.

    Raises:
        ValueError: if the file is damaged, or a pair is incomplete or does not fit together.
    """
    if path.is_dir():
        return {}
    found = {}
    with archive(path) as content:
        names = {name.removesuffix(".npy") for name in content.namelist()}
        for kind, (mean, covariance) in STATISTICS.items():
            if mean not in names and covariance not in names:
                continue
            if not {mean, covariance} <= names:
                raise ValueError(f"{path} has only one of {mean} and {covariance}; a reference needs both")
            mu, sigma = (torch.from_numpy(array(content, name, path).astype(np.float64)) for name in (mean, covariance))
            if (
                mu.ndim != 1
                or sigma.shape != (len(mu), len(mu))
                or not (mu.isfinite().all() and sigma.isfinite().all())
            ):
                raise ValueError(
                    f"{path}: {mean} has shape {tuple(mu.shape)}, {covariance} {tuple(sigma.shape)}; they are finite, "
                    "(d,) and (d, d): take another reference"
                )
            found[kind] = (mu, sigma)
    return found


def archive(path: Path) -> zipfile.ZipFile:
    """An `.npz` file, opened."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is no readable .npz file ({error}); copy or write it again") from error


def begin(file: Reader, path: Path) -> tuple[tuple[int, ...], np.dtype]:  # type: ignore[type-arg]
    """Read the head of an array: its shape and type; objects, which need pickle, are refused."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds a damaged array ({error}); copy or write it again") from error
    if dtype.hasobject:
        raise ValueError(f"{path} holds Python objects, which only pickle reads and which may run code; refused")
    if by_columns and len(shape) > 1:
        raise ValueError(f"{path} holds an array that is stored by columns; write it with np.ascontiguousarray")
    return shape, dtype


def header(content: zipfile.ZipFile, name: str, path: Path) -> tuple[tuple[int, ...], np.dtype]:  # type: ignore[type-arg]
    """Shape and type of an array."""
    with content.open(f"{name}.npy") as file:
        return begin(file, path)


def array(content: zipfile.ZipFile, name: str, path: Path) -> NDArray[np.generic]:
    """A whole array."""
    with content.open(f"{name}.npy") as file:
        shape, dtype = begin(file, path)
        data = whole_part(file.read, int(np.prod(shape)) * dtype.itemsize, path)
    return np.frombuffer(data, dtype).reshape(shape)


def whole_part(reader: Callable[[int], bytes], size: int, path: Path) -> bytes:
    """So many bytes, or an error."""
    try:
        data = reader(size)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy or write it again") from error
    if len(data) != size:
        raise ValueError(f"{path} ends before its arrays do; copy or write it again")
    return data


def write_batch(
    path: Path,
    pictures: Iterable[UInt8[Tensor, "_b c h w"]],
    *,
    count: int,
    shape: Sequence[int],
    labels: Tensor | None,
) -> None:
    """Write pictures as the `.npz` that the ADM evaluator takes, block by block; the file appears whole or not at all.

    Args:
        path: the file.
        pictures: uint8 blocks, (b, c, h, w); gray ones are repeated to three channels.
        count: how many there are in all.
        shape: of one: channels, height, width.
        labels: written as arr_1 if there are any.

    Raises:
        ValueError: if other than `count` pictures come.
    """
    _, height, width = shape
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, 3)}
    written = 0
    with whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as content:
        with content.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, head)
            for block in pictures:
                file.write(block.expand(-1, 3, -1, -1).movedim(1, -1).contiguous().numpy().tobytes())
                written += len(block)
        if written != count:
            raise ValueError(
                f"{written} pictures came for a batch of {count}; draw the missing ones and write it again"
            )
        if labels is not None:
            with content.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, labels.numpy().astype(np.int64))
