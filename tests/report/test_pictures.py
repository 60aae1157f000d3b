import numpy as np
import pytest
import torch
from PIL import Image

from hidistill.report.pictures import (
    GAP,
    attention,
    comparison,
    font,
    grid,
    one_of_each,
    overlay,
    quantized,
    save_attention,
    save_grids,
    tile_size,
    wrapped,
)


def shades(count, side=3, channels=1):
    """Image i is flat with the value 10 i."""
    return np.broadcast_to(
        10 * np.arange(count, dtype=np.uint8)[:, None, None, None], (count, channels, side, side)
    ).copy()


def test_a_grid_keeps_order_and_places_every_pixel():
    drawn = grid(shades(7), columns=3, scale=2, gap=1)
    assert drawn.size == (3 * 6 + 2, 3 * 6 + 2)
    for i in range(7):
        x, y = (i % 3) * 7, (i // 3) * 7
        for corner in ((x, y), (x + 5, y + 5)):
            assert drawn.getpixel(corner) == (10 * i, 10 * i, 10 * i, 255)
    assert drawn.getpixel((6, 0))[3] == 0, "gaps are clear"
    assert drawn.getpixel((7, 14))[3] == 0, "cells without an image are clear"


def test_a_grid_enlarges_by_squares():
    images = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    drawn = np.asarray(grid(images, columns=4, scale=3))[..., :3]
    assert drawn.shape == (6, 6, 3)
    np.testing.assert_array_equal(drawn, images[0].transpose(1, 2, 0).repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"scale": 0}, {"gap": -1}])
def test_a_grid_refuses_what_it_cannot_draw(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        grid(shades(2), **{"columns": 2} | wrong)
    with pytest.raises(ValueError, match="2 channels"):
        grid(shades(2, channels=2), columns=1)


def test_a_comparison_has_kinds_below_and_samples_beside_each_other():
    side = 84
    kinds = {"student": shades(3, side), "real": shades(3, side) + 100}
    drawn = comparison(kinds, [0, 1, 2], columns=2, tile=side)
    cell, block = side + GAP, 2 * (side + GAP) + side // 5
    assert drawn.size == (side + 2 * cell - GAP, 2 * block - side // 5)
    for i in range(3):
        x, y = side + (i % 2) * cell + 9, (i // 2) * block + 9
        assert drawn.getpixel((x, y))[0] == 100 + 10 * i, "real comes first whatever the mapping's order"
        assert drawn.getpixel((x, y + cell))[0] == 10 * i


def test_one_of_each_class_comes_before_the_second():
    labels = [2, 2, 0, 1, 0, 2, 1]
    assert one_of_each(labels, limit=99, copies=2) == [2, 3, 0, 4, 6, 1]
    assert one_of_each(labels, limit=2, copies=2) == [2, 3]


@pytest.mark.parametrize(("side", "expected"), [(28, 84), (84, 84), (32, 96), (100, 100), (256, 84), (8, 80)])
def test_tiles_are_whole_multiples_or_shrunk(side, expected):
    assert tile_size(shades(1, side), 84) == (expected, expected)


def test_attention_is_measured_in_units_of_average_pooling():
    images = shades(2, 8)
    weights = np.full((1, 2, 3, 4, 4), 1 / 16, dtype=np.float32)
    assert attention(images, weights)[1] == pytest.approx(1.0)
    weights[0, 1] = 0
    weights[0, 1, :, 0, 3] = 1
    drawn, largest = attention(images, weights)
    assert largest == pytest.approx(16.0)
    height, width = tile_size(images)
    assert drawn.size == (2 * (width + GAP) - GAP, 20 + 2 * (height + GAP) - GAP)
    left, top = width + GAP, 20 + height + GAP
    hot, cold = drawn.getpixel((left + width - 1, top)), drawn.getpixel((left, top + height - 1))
    assert sum(hot[:3]) > 400 > sum(cold[:3])
    with pytest.raises(ValueError, match="2 rows of weights for 1 images"):
        attention(images[:1], weights)


def test_brighter_attention_is_lighter_in_gray_too():
    ramp = np.linspace(0, 1, 40).reshape(1, 40)
    gray = np.asarray(overlay(Image.new("L", (40, 1)), ramp).convert("L")).astype(int)
    assert (np.diff(gray[0]) > 0).all()


def test_saved_inputs_come_back(tmp_path):
    images = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    save_grids(tmp_path / "a" / "grids.npz", kinds={"real": images}, labels=torch.arange(3), classes=["x", "y", "z"])
    with np.load(tmp_path / "a" / "grids.npz", allow_pickle=False) as saved:
        assert saved["real"][:, 0, 0, 0].tolist() == [0, 128, 255]
        assert saved["classes"].tolist() == ["x", "y", "z"]
        np.testing.assert_array_equal(saved["real"], quantized(images))
    weights = torch.rand(2, 3, 1, 5, 5)
    save_attention(tmp_path / "attention.npz", images=images, weights=weights)
    with np.load(tmp_path / "attention.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["weights"], weights.numpy())


def test_grids_of_unknown_kinds_or_sizes_are_refused(tmp_path):
    images = torch.zeros(2, 1, 4, 4)
    for kinds in ({"foe": images}, {"real": images, "student": images[:1]}):
        with pytest.raises(ValueError, match="use real, teacher, sketch, student"):
            save_grids(tmp_path / "grids.npz", kinds=kinds, labels=torch.zeros(2, dtype=torch.int64), classes=[])


def test_long_names_break_where_both_lines_are_shortest():
    face = font(11)
    assert wrapped("Bag", 64, face) == "Bag"
    assert wrapped("a rather long name", 64, face) == "a rather\nlong name"
    assert wrapped("Unbreakablename", 20, face) == "Unbreakablename"
    caption = 'Japanese "not free of charge" button, 3D render'
    lines = wrapped(caption, 84, face).split("\n")
    assert " ".join(lines) == caption
    assert len(lines) > 2
    assert all(face.getlength(line) <= 84 for line in lines)
    assert wrapped("one two three four five six seven eight nine ten", 40, face).endswith(" ...")
