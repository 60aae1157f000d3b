from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from hidistill.pictures import (
    DAMAGED,
    colored,
    each,
    endings,
    looked,
    pictures_below,
    pixels,
    pixels_or_none,
    refuse_choices,
    side,
    square,
)


def encoded(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height=16, width=16, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_of_the_asked_size_keeps_its_pixels():
    colors = noise()
    assert np.array_equal(pixels(encoded(Image.fromarray(colors)), 16).numpy(), colors.transpose(2, 0, 1))


def test_the_center_is_cropped():
    colors = noise(16, 48)
    assert np.array_equal(square(BytesIO(encoded(Image.fromarray(colors))), 16), colors[:, 16:32])
    assert np.array_equal(square(BytesIO(encoded(Image.fromarray(noise(47, 16)))), 16), noise(47, 16)[15:31])


# Values of the tag and what undoes them: EXIF 2.3, section 4.6.4, Orientation.
@pytest.mark.parametrize(
    ("tag", "upright"),
    [
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (8, lambda x: np.rot90(x)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_turns_upright(tag, upright, kind):
    exif = Image.Exif()
    exif[0x0112] = tag
    colors = noise()
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(colors), kind, exif=exif, **options)
    assert np.array_equal(pixels(data, 16).numpy().transpose(1, 2, 0), upright(colors))


def test_gray_palette_16_bits_and_one_bit_become_three_channels():
    gray = noise(channels=1)
    wide = gray.astype(np.uint16) * 256 + 255
    for image in (Image.fromarray(gray), Image.fromarray(gray).convert("P"), Image.fromarray(wide)):
        shown = pixels(encoded(image), 16)
        assert shown.shape == (3, 16, 16)
        assert np.array_equal(shown.numpy(), np.stack([gray] * 3))
    bits = Image.fromarray(gray > 127)
    assert np.array_equal(pixels(encoded(bits), 16)[0].numpy(), np.where(gray > 127, 255, 0))


def test_transparency_shows_white():
    colors = noise(channels=4)
    colors[..., 3] = np.where(np.arange(16) < 8, 0, 255)
    shown = pixels(encoded(Image.fromarray(colors)), 16).numpy().transpose(1, 2, 0)
    assert (shown[:, :8] == 255).all()
    assert np.array_equal(shown[:, 8:], colors[:, 8:, :3])
    palette = Image.fromarray(np.repeat([[0, 1]], 8, 0).astype(np.uint8).repeat(8, 1), mode=None).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    shown = pixels(encoded(palette, transparency=0), 16)
    assert shown[:, 0, 0].tolist() == [255, 255, 255]
    assert shown[:, 0, 15].tolist() == [40, 50, 60]


def test_half_transparency_mixes_with_white():
    shown = pixels(encoded(Image.new("RGBA", (4, 4), (0, 100, 200, 51))), 4)
    # 51 / 255 = 1 / 5 of the color and 4 / 5 of white.
    assert shown[:, 0, 0].tolist() == [204, 224, 244]


def test_pixels_of_unknown_range_are_refused():
    with pytest.raises(ValueError, match="mode F, whose range is unknown; save them with 8 bits"):
        pixels(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), 4)


# Pillow says so of TIFF files before it raises.
@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_files_that_are_cut_off_are_damaged(kind):
    data = encoded(Image.fromarray(noise(64, 64)), kind)
    assert pixels(data, 8).shape == (3, 8, 8)
    for share in (0, 0.01, 0.5):
        with pytest.raises(DAMAGED):
            pixels(data[: int(share * len(data))], 8)


def test_broken_and_missing_pictures_are_refused_or_skipped():
    data = encoded(Image.fromarray(noise()))
    assert torch.equal(pixels_or_none(data, 16, broken="refuse", where="here"), pixels(data, 16))
    for bad, reason in ((None, "there is none"), (b"<html>", "of no kind that Pillow knows"), (data[:60], "truncated")):
        assert pixels_or_none(bad, 16, broken="skip", where="here") is None
        with pytest.raises(
            ValueError, match=rf"here cannot be read .*\(.*{reason}.*\); replace it, or .*broken='skip'"
        ):
            pixels_or_none(bad, 16, broken="refuse", where="here")


def test_a_picture_has_a_side():
    refuse_choices(1, "skip")
    with pytest.raises(ValueError, match="size=0: a picture's side is at least 1"):
        refuse_choices(0, "skip")


def test_pictures_and_other_files_below_a_folder(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "b-c/1.webp", "a.txt", ".x.png", ".cache/1.png", "b/._1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert pictures_below(tmp_path) == (["b/1.JPG", "b/2.png", "b-c/1.webp"], ["a.txt"])
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".tiff"} <= endings()


def test_all_broken_files_are_named_together(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(encoded(Image.fromarray(noise(8 + i, 40))) if i < 2 else b"no picture")
    names = [f"{i}.png" for i in range(9)]
    sides, broken = looked(tmp_path, names, side)
    assert sides == [8, 9]
    assert list(broken) == names[2:]
    assert each(tmp_path, names[:2], side) == [8, 9]
    with pytest.raises(ValueError, match=r"7 of the files .*: 2\.png .*, 6\.png \(.*\) and 2 more; repair or remove"):
        each(tmp_path, names, side)


def test_gray_may_be_off_by_what_jpeg_rounds():
    gray = np.repeat(noise()[..., :1] // 2, 3, -1)
    gray[..., 1] += 2
    assert not colored(gray)
    gray[3, 4, 1] += 1
    assert colored(gray)
    assert colored(gray[None])
