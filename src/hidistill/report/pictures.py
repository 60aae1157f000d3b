"""Pictures of samples: grids, the same noise through several samplers, and attention laid over images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hidistill.types import Images, Labels

Pixels = UInt8[np.ndarray, "n c h w"]
Tile = UInt8[np.ndarray, "c h w"]
Weights = Float[np.ndarray, "taps m queries side_h side_w"]
Attention = Float[Tensor, "taps m queries side_h side_w"]

KINDS = {
    "real": "real\nheld out",
    "teacher": "teacher\n50 steps",
    "sketch": "sketch\n1 step",
    "student": "student\n1 step",
}
"""Order and captions of a comparison's rows."""

LINES = 4
"""Of a column's caption at most."""
TILE = 84
"""Side of a tile, roughly: small images are enlarged by a whole factor, those beyond twice of it are shrunk to it."""
GAP = 2
INK = (118, 122, 128, 255)
"""A gray that is read on white and on near-black: the pictures have no background of their own."""
CLEAR = (0, 0, 0, 0)
HEAT = (
    (0.0, (8, 12, 40)),
    (0.35, (96, 28, 110)),
    (0.65, (214, 72, 70)),
    (0.85, (248, 170, 50)),
    (1.0, (255, 250, 205)),
)
"""A color map whose lightness rises throughout, so that it also reads in gray."""


def save_grids(
    path: Path, *, kinds: Mapping[str, Images], labels: Labels, classes: Sequence[str], asked: str = "class"
) -> None:
    """Write samples for the report: image i of every kind has the same class, and the same noise if generated.

    Args:
        path: the file, `samples/grids.npz` in a run folder.
        kinds: images in [0, 1] by kind, any of real, teacher, sketch, student.
        labels: class of each image.
        classes: names of the classes; empty if there are none.
        asked: what a class is called: each prompt is a class of its own.

    Raises:
        ValueError: if a kind is unknown or the kinds differ in size.
    """
    unknown, shapes = set(kinds) - set(KINDS), {tuple(images.shape) for images in kinds.values()}
    if unknown or len(shapes) > 1:
        raise ValueError(
            f"kinds {sorted(kinds)} of shapes {sorted(shapes)}: use {', '.join(KINDS)}, all of one shape; draw "
            "them from the same noise and classes"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {kind: quantized(images) for kind, images in kinds.items()}
    arrays |= {"classes": np.array(list(classes), dtype=np.str_), "asked": np.array(asked)}
    np.savez_compressed(path, labels=labels.cpu().numpy(), **arrays)


def save_attention(path: Path, *, images: Images, weights: Attention) -> None:
    """Write a discriminator's attention for the report: weights over the token grid that sum to 1 per query."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, images=quantized(images), weights=weights.detach().float().cpu().numpy())


def quantized(images: Images) -> Pixels:
    """Pixels in [0, 1] as 8-bit arrays."""
    return (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def grid(images: Pixels, *, columns: int, scale: int = 1, gap: int = GAP) -> Image.Image:
    """Images in rows of `columns`, first to last, each pixel a square of `scale`; gaps and empty cells are clear.

    Raises:
        ValueError: if there are no images, or columns or scale are below 1.
    """
    count, _, height, width = images.shape
    if count < 1 or columns < 1 or scale < 1 or gap < 0:
        raise ValueError(
            f"{count} images, columns={columns}, scale={scale}, gap={gap}: each at least 1, gap at least 0"
        )
    rows, across = -(-count // columns), min(columns, count)
    canvas = blank(across * (width * scale + gap) - gap, rows * (height * scale + gap) - gap)
    for i, pixels in enumerate(images):
        tile = picture(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(tile, ((i % columns) * (width * scale + gap), (i // columns) * (height * scale + gap)))
    return canvas


def comparison(
    kinds: Mapping[str, Pixels],
    labels: Sequence[int],
    classes: Sequence[str] = (),
    *,
    columns: int = 10,
    tile: int = TILE,
    captions: Mapping[str, str] = KINDS,
) -> Image.Image:
    """Kinds below each other, samples beside each other: a column shows one noise and one class.

    Samples beyond `columns` go on in a further block below.

    Args:
        kinds: images by kind; those of `KINDS` are drawn, in its order.
        labels: class of each column.
        classes: names of the classes.
        columns: samples beside each other.
        tile: side of a sample, roughly; the words are sized by it.
        captions: what stands before each kind's row.
    """
    order = [kind for kind in KINDS if kind in kinds]
    height, width = tile_size(kinds[order[0]], tile)
    columns = min(columns, len(labels))
    blocks = [range(start, min(start + columns, len(labels))) for start in range(0, len(labels), columns)]
    small, large = font(max(9, tile // 7)), font(max(10, tile // 6))
    names = [wrapped(str(classes[label]), width, small) for label in labels] if classes else []
    lines = max((name.count("\n") + 1 for name in names), default=0)
    head = max(tile * 2 // 5, lines * (int(small.size) + 3) + 6) if classes else 0
    margin, between = tile, tile // 5
    block = head + len(order) * (height + GAP) + between
    canvas = blank(margin + columns * (width + GAP) - GAP, len(blocks) * block - between)
    pen = ImageDraw.Draw(canvas)
    for b, samples in enumerate(blocks):
        for j, i in enumerate(samples if classes else ()):
            middle = (margin + j * (width + GAP) + width // 2, b * block + head - 4)
            pen.multiline_text(middle, names[i], INK, small, anchor="md", align="center", spacing=1)
        for k, kind in enumerate(order):
            top = b * block + head + k * (height + GAP)
            place = (margin - tile // 10, top + height // 2)
            pen.multiline_text(place, captions[kind], INK, large, anchor="rm", align="right")
            for j, i in enumerate(samples):
                canvas.paste(fitted(kinds[kind][i], (width, height)), (margin + j * (width + GAP), top))
    return canvas


def one_of_each(labels: Sequence[int], *, limit: int, copies: int) -> list[int]:
    """Indices of the first `copies` samples of each class, one of each class before the next; at most `limit`."""
    seen: dict[int, int] = {}
    ranked = []
    for i, label in enumerate(labels):
        seen[label] = seen.get(label, -1) + 1
        ranked.append((seen[label], label, i))
    return [i for rank, _, i in sorted(ranked) if rank < copies][:limit]


def attention(images: Pixels, weights: Weights, *, captions: Sequence[str] = ()) -> tuple[Image.Image, float]:
    """Attention over images: a row per image, a column per tapped layer; and the weight of the brightest token.

    Weights are means over the queries, in units of average pooling (1 / tokens), on one scale from 0 to the largest.

    Raises:
        ValueError: if weights and images do not belong together.
    """
    taps, count, _, rows, columns = weights.shape
    if count != len(images):
        raise ValueError(
            f"{count} rows of weights for {len(images)} images: one for each is allowed; save them together"
        )
    relative = weights.mean(2) * rows * columns
    largest = float(relative.max())
    height, width = tile_size(images)
    head, small = 20, font(11)
    canvas = blank((taps + 1) * (width + GAP) - GAP, head + count * (height + GAP) - GAP)
    pen = ImageDraw.Draw(canvas)
    for tap, text in enumerate(["image", *(captions or [f"layer {tap + 1}" for tap in range(taps)])]):
        pen.text((tap * (width + GAP) + width // 2, head - 5), text, INK, small, anchor="ms")
    for i in range(count):
        top = head + i * (height + GAP)
        tile = fitted(images[i], (width, height))
        canvas.paste(tile, (0, top))
        for tap in range(taps):
            canvas.paste(overlay(tile, relative[tap, i] / max(largest, 1e-9)), ((tap + 1) * (width + GAP), top))
    return canvas, largest


def overlay(tile: Image.Image, heat: NDArray[np.floating[Any]]) -> Image.Image:
    """A gray version of a picture under the colors of a heat map in [0, 1]."""
    stops, colors = np.array([stop for stop, _ in HEAT]), np.array([color for _, color in HEAT], dtype=np.float64)
    levels = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(tile.size, Image.Resampling.NEAREST))
    painted = np.stack([np.interp(levels, stops, colors[:, channel]) for channel in range(3)], axis=-1)
    gray = np.asarray(tile.convert("L"), dtype=np.float64)[..., None]
    return Image.fromarray((0.35 * gray + 0.65 * painted).round().astype(np.uint8))


def picture(pixels: Tile) -> Image.Image:
    """One image; a single channel is gray."""
    channels = pixels.shape[0]
    if channels not in (1, 3):
        raise ValueError(f"an image of {channels} channels: pictures have 1 or 3; decode latents before drawing them")
    return Image.fromarray(pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def tile_size(images: Pixels, tile: int = TILE) -> tuple[int, int]:
    """Height and width of a tile: a whole multiple of the image near `tile`, or a large image shrunk."""
    height, width = images.shape[-2:]
    factor = max(1, round(tile / max(height, width))) if max(height, width) <= 2 * tile else tile / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def fitted(pixels: Tile, size: tuple[int, int]) -> Image.Image:
    """One image in the size (width, height) of a tile."""
    source = picture(pixels)
    grows = size[0] >= source.width
    return source.resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)


def wrapped(text: str, width: int, face: ImageFont.FreeTypeFont) -> str:
    """Text broken at spaces and slashes into lines no wider than a tile, where its words are not; at most `LINES`.

    In two lines it is broken where they are most alike in length, otherwise each line is filled; what is left over
    behind the last line is an ellipsis.
    """
    if face.getlength(text) <= width:
        return text
    breaks = [i + (text[i] == "/") for i in range(1, len(text) - 1) if text[i] in " /"]
    if not breaks:
        return text
    middle = min(breaks, key=lambda i: max(face.getlength(text[:i]), face.getlength(text[i:].strip())))
    halves = [text[:middle], text[middle:].strip()]
    if max(face.getlength(half) for half in halves) <= width:
        return "\n".join(halves)
    lines, start = [], 0
    for end in [*breaks, len(text)]:
        word = text[start:end]
        if lines and face.getlength((lines[-1] + word).strip()) <= width:
            lines[-1] += word
        else:
            lines.append(word.strip())
        start = end
    return "\n".join(lines if len(lines) <= LINES else [*lines[: LINES - 1], lines[LINES - 1] + " ..."])


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def blank(width: int, height: int) -> Image.Image:
    """A clear canvas."""
    return Image.new("RGBA", (width, height), CLEAR)
