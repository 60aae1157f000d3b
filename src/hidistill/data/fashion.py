"""Fashion-MNIST: 28 x 28 gray pictures of ten kinds of clothing (arXiv 1708.07747; MIT, copyright 2017 Zalando SE).

A part of it travels with the package, as two PNG mosaics whose column c holds class c: the first 500 training and
the first 200 test pictures of each class, in the order of the original files. The whole set is four idx files.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hidistill.types import Record, Source, Split

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIZE = 28
TEST_PER_CLASS = 200
TRAIN_PER_CLASS = 500
BUNDLED_TRAIN = 4000
"""The bundled training pictures split into this many for training and the rest for validation."""

ASSETS = Path(__file__).parent / "assets"
PIXELS_SHA256 = {
    "train": "1c09648a17b2acf8bdf1dfff09c0eecdd1cff590079a3c9b53c8897cf4b01c91",
    "test": "a9a3fef60943d6c23d218c668ff2a8e2537003dbf7a653b962a95bcf38a209bb",
}
"""Of the decoded pixels, so that a mosaic compressed by another library passes."""
FILES_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of what the files hold once unpacked: their compression differs between sources."""
PACKAGE = "dataset-fashion-mnist"

Part = Literal["train", "valid", "test"]


def bundled(part: Part) -> Split:
    """The part of the set that travels with the package: 4,000 train, 1,000 valid, 2,000 held-out test pictures.

    Picture i is of class i mod 10, so every prefix is balanced.
    """
    if part == "test":
        images = read_mosaic("test")
    else:
        chosen = slice(BUNDLED_TRAIN) if part == "train" else slice(BUNDLED_TRAIN, None)
        images = read_mosaic("train")[chosen]
    return Split(images.clone(), torch.arange(len(images)) % len(CLASSES), CLASSES)


def source() -> Source:
    """The bundled pictures as records, in color; a key begins with the part that its picture is in."""
    parts = {part: bundled(part) for part in get_args(Part)}
    rows = [(part, index) for part, split in parts.items() for index in range(len(split.images))]

    def records(start: int) -> Iterator[Record]:
        for part, index in rows[start:]:
            split = parts[part]
            picture = split.images[index].expand(3, SIZE, SIZE).clone()
            yield Record(f"{part}/{index:05d}", picture, int(split.labels[index]), part=part)

    digest = hashlib.sha256("".join(sorted(PIXELS_SHA256.values())).encode()).hexdigest()
    return Source(records, len(rows), digest, CLASSES, ("the bundled part of Fashion-MNIST, in its own three parts",))


@cache
def read_mosaic(name: str) -> Tensor:
    """Pictures (n, 1, 28, 28) of a bundled mosaic, row by row; checked against their hash."""
    path = ASSETS / f"fashion-mnist-{name}.png"
    try:
        with Image.open(path) as image:
            pixels = np.array(image)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); reinstall hidistill") from error
    rows = pixels.reshape(-1, SIZE, len(CLASSES), SIZE).swapaxes(1, 2).reshape(-1, 1, SIZE, SIZE)
    if hashlib.sha256(rows.tobytes()).hexdigest() != PIXELS_SHA256[name]:
        raise ValueError(f"{path}: not the pictures that hidistill was built with; reinstall hidistill")
    return torch.from_numpy(rows.copy())


def stratified(labels: Tensor, per_class: int) -> Tensor:
    """Indices of the first `per_class` items of each class, one class after the other in turn."""
    columns = [torch.nonzero(labels == c).flatten()[:per_class] for c in range(len(CLASSES))]
    return torch.stack(columns, 1).flatten()


def full(part: Part, folder: Path | None = None) -> Split:
    """The whole set: 60,000 train pictures; the 10,000 test pictures as 2,000 test (the bundled ones) and 8,000 valid.

    Args:
        part: which part.
        folder: where the four idx files lie; by default `default_folder()`.

    Raises:
        FileNotFoundError: if a file is missing; says how to fetch it.
        ValueError: if a file is damaged.
    """
    images, labels = read_idx("train" if part == "train" else "t10k", folder or default_folder())
    if part != "train":
        test = stratified(labels, TEST_PER_CLASS)
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[test] = False
        chosen = test if part == "test" else torch.nonzero(rest).flatten()
        images, labels = images[chosen], labels[chosen]
    return Split(images, labels, CLASSES)


def default_folder() -> Path:
    """$HIDISTILL_DATA/fashion-mnist, or ~/.cache/hidistill/fashion-mnist."""
    root = os.environ.get("HIDISTILL_DATA")
    return (Path(root) if root else Path.home() / ".cache" / "hidistill") / "fashion-mnist"


def read_idx(name: Literal["train", "t10k"], folder: Path) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28) and labels (n,) from the original files, in their order."""
    images = payload(folder / f"{name}-images-idx3-ubyte.gz")[16:].reshape(-1, 1, SIZE, SIZE)
    labels = payload(folder / f"{name}-labels-idx1-ubyte.gz")[8:]
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def payload(path: Path) -> np.ndarray:
    """The bytes inside a checked .gz file; an idx file starts with 4 bytes and 4 more for each dimension."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the full Fashion-MNIST is four files; run `hidistill data fashion-mnist` to fetch "
            "them, or set HIDISTILL_DATA to the folder above the folder `fashion-mnist` that holds them"
        )
    again = "delete it and run `hidistill data fashion-mnist`"
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}); {again}") from error
    if hashlib.sha256(content).hexdigest() != FILES_SHA256[path.name]:
        raise ValueError(f"{path}: its {len(content)} bytes are not those of the published file; {again}")
    return np.frombuffer(content, np.uint8)


def fetch(folder: Path | None = None) -> Path:
    """Bring the four idx files into `folder` through the system's package client, and check them.

    Nothing is installed: the Debian package is downloaded and unpacked in a temporary folder.

    Raises:
        RuntimeError: if there is no apt-get, or it fails; says how to place the files by hand.
        ValueError: if a file is not the published one.
    """
    folder = folder or default_folder()
    by_hand = f"or place {', '.join(FILES_SHA256)} into {folder} by hand"
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise RuntimeError(
            f"apt-get and dpkg are needed to fetch Fashion-MNIST; use a Debian or Ubuntu system, {by_hand}"
        )
    with tempfile.TemporaryDirectory() as name:
        unpacked = Path(name)
        download = ["apt-get", "download", PACKAGE]
        if run(download, unpacked) is not None:
            run(["apt-get", "update"], unpacked)
            if (complaint := run(download, unpacked)) is not None:
                raise RuntimeError(
                    f"`{' '.join(download)}` failed: {complaint}; run `apt-get update` as root, {by_hand}"
                )
        [package] = unpacked.glob("*.deb")
        if (complaint := run(["dpkg", "-x", str(package), name], unpacked)) is not None:
            raise RuntimeError(f"{package.name} cannot be unpacked: {complaint}; try again, {by_hand}")
        return place(unpacked / "usr" / "share" / "datasets" / "fashion-mnist", folder)


def place(source: Path, folder: Path) -> Path:
    """Check the four files in `source` and copy them into `folder`; a file appears there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES_SHA256:
        payload(source / name)
        shutil.copyfile(source / name, folder / f"{name}.part")
        (folder / f"{name}.part").rename(folder / name)
    return folder


def run(command: Sequence[str], cwd: Path) -> str | None:
    """Run a command; None if it succeeds, else the last line it complained with."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return (
        None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    )
