import numpy as np
import pytest
import torch
from PIL import Image

from hidistill.data.images import PARTS, choose_size, folder, read


def write(root, classes=("a", "b"), count=30, color=False):
    generator = np.random.default_rng(0)
    for c in classes:
        (root / c).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (16, 16, 3) if color else (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / c / f"{i:03d}.png")
    return root


def test_classes_parts_and_exact_pixels(tmp_path):
    pictures = read(write(tmp_path))
    assert pictures.classes == ("a", "b")
    assert pictures.images.shape == (60, 1, 16, 16)
    assert pictures.facts.per_class == {"a": 30, "b": 30}
    assert pictures.facts.sides == {16: 60}
    splits = [pictures.split(part) for part in PARTS]
    assert [len(split.images) for split in splits] == [48, 6, 6]
    assert all(torch.bincount(split.labels).tolist() == [len(split.images) // 2] * 2 for split in splits)
    originals = {np.asarray(Image.open(path)).tobytes() for path in tmp_path.rglob("*.png")}
    assert {image.numpy().tobytes() for split in splits for image in split.images} == originals


def test_the_parts_depend_on_names_alone(tmp_path):
    first = folder(write(tmp_path / "one"), part="test")
    (tmp_path / "two" / "b").mkdir(parents=True)
    for path in sorted((tmp_path / "one").rglob("*.png"), reverse=True):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes())
    second = folder(tmp_path / "two", part="test")
    assert torch.equal(first.images, second.images)


def test_pictures_that_are_enlarged_are_told(tmp_path):
    root = write(tmp_path)
    assert read(root, size=16).choice.reasons[0] == "size 16: asked for"
    reason = read(root, size=40).choice.reasons[0]
    assert "60 of 60 pictures (sides 16 to 16) are smaller and are enlarged, half of them at least 2.5 times" in reason


def test_no_sub_folders_means_no_classes(tmp_path):
    pictures = read(write(tmp_path, classes=("",), count=50))
    assert pictures.classes == ()
    assert pictures.labels.unique().tolist() == [0]


def test_one_sub_folder_means_no_classes(tmp_path):
    pictures = read(write(tmp_path, classes=("only",), count=50))
    assert pictures.classes == ()
    assert len(pictures.images) == 50


def test_color_shows_even_in_one_picture(tmp_path):
    write(tmp_path, classes=("",), count=50)
    Image.new("RGB", (16, 16), (200, 10, 10)).save(tmp_path / "red.png")
    pictures = read(tmp_path)
    assert pictures.choice.channels == 3
    assert any("color" in reason for reason in pictures.choice.reasons)


def test_gray_saved_as_color_is_gray(tmp_path):
    write(tmp_path, classes=("",), count=49)
    Image.new("RGB", (16, 16), (90, 90, 90)).save(tmp_path / "gray.jpg", quality=30)
    assert read(tmp_path).choice.channels == 1


def test_transparency_palette_and_16_bits(tmp_path):
    write(tmp_path, classes=("",), count=50)
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "z1.png")
    Image.new("L", (16, 16), 77).convert("P").save(tmp_path / "z2.png")
    Image.fromarray(np.full((16, 16), 77 * 256 + 255, np.uint16)).save(tmp_path / "z3.png")
    images = read(tmp_path).images
    assert [image.unique().tolist() for image in images[-3:]] == [[255], [77], [77]]


def test_the_center_is_cropped_and_turned_upright(tmp_path):
    write(tmp_path, classes=("",), count=50)
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 255
    Image.fromarray(wide).save(tmp_path / "z1.png")
    top = np.zeros((16, 16), np.uint8)
    top[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(top).save(tmp_path / "z2.png", exif=exif)
    images = read(tmp_path, size=8).images
    assert images[-2].unique().tolist() == [255]
    assert images[-1][0, 5:].float().mean() > 250
    assert images[-1][0, :3].float().mean() < 5


@pytest.mark.parametrize(
    ("sides", "size"), [([28] * 100, 28), ([500] * 100, 64), ([16] * 5 + [40] * 95, 40), ([16] * 20 + [40] * 80, 16)]
)
def test_the_size_upscales_few(sides, size):
    assert choose_size(sides)[0] == size


def test_tiny_pictures_are_refused():
    with pytest.raises(ValueError, match="below 8"):
        choose_size([5] * 100)


def test_a_missing_and_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no pictures"):
        read(tmp_path)


def test_broken_files_are_named(tmp_path):
    write(tmp_path)
    whole = (tmp_path / "a" / "000.png").read_bytes()
    (tmp_path / "a" / "000.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"1 of the files cannot be read.*a/000\.png"):
        read(tmp_path)
    (tmp_path / "b" / "001.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"b/001\.png"):
        read(tmp_path)


def test_folders_that_cannot_be_learned_from(tmp_path):
    write(tmp_path / "few", count=3)
    with pytest.raises(ValueError, match="at least 50"):
        read(tmp_path / "few")
    write(tmp_path / "hole")
    (tmp_path / "hole" / "c").mkdir()
    with pytest.raises(ValueError, match="sub-folders c hold no pictures"):
        read(tmp_path / "hole")
    write(tmp_path / "mixed")
    Image.new("L", (16, 16)).save(tmp_path / "mixed" / "lone.png")
    with pytest.raises(ValueError, match="1 pictures beside"):
        read(tmp_path / "mixed")
    write(tmp_path / "parts", classes=("train", "test"))
    with pytest.raises(ValueError, match="no classes"):
        read(tmp_path / "parts")
    with pytest.raises(ValueError, match="size=4"):
        read(tmp_path / "parts", size=4)


def test_other_files_are_reported(tmp_path):
    write(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / ".hidden").write_text("x")
    pictures = read(tmp_path)
    assert list(pictures.facts.ignored) == ["a/notes.txt"]
    assert any("notes.txt" in reason for reason in pictures.choice.reasons)
