import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hidistill.data import captioned
from hidistill.data.captioned import read

NAMES = ("a.png", "b.jpg", "sub/c.webp", "sub-x/d.png")


def colors(i):
    return np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def write(root, names=NAMES):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colors(i)).save(root / name)
    return root


def with_lines(root, rows):
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def with_texts(root, names=NAMES):
    for i, name in enumerate(names):
        (root / name).with_suffix(".txt").write_text(f"picture {i}\n")
    return root


def cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def same(one, other):
    assert [record[:1] + record[2:] for record in one] == [record[:1] + record[2:] for record in other]
    assert all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))


def test_json_lines_in_any_order(tmp_path):
    rows = [{"file_name": name, "caption": f"picture {i}", "w": 3} for i, name in enumerate(NAMES)]
    source = read(with_lines(write(tmp_path), rows[::-1]), size=16)
    records = list(source.records(0))
    # By code point: "-" comes before "/".
    assert [record.key for record in records] == ["a.png", "b.jpg", "sub-x/d.png", "sub/c.webp"]
    assert [record.caption for record in records] == ["picture 0", "picture 1", "picture 3", "picture 2"]
    assert [record.label for record in records] == [None] * 4
    assert (source.count, source.classes) == (4, ())
    assert np.array_equal(records[0].image.numpy(), colors(0).transpose(2, 0, 1))
    assert source.notes == (
        "captions from the field caption of metadata.jsonl",
        "fields of metadata.jsonl that are not used: w",
        "the 2 sub-folders are not read as classes: there are captions",
        "first caption (a.png): 'picture 0'",
    )


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_a_table_with_commas_quotes_and_line_breaks(tmp_path, column):
    write(tmp_path)
    captions = ['one, "two"', "a\nb", "é", " d "]
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", column], *zip(NAMES, captions, strict=True)])
    told = {record.key: record.caption for record in read(tmp_path, size=8).records(0)}
    assert told == dict(zip(NAMES, ['one, "two"', "a\nb", "é", "d"], strict=True))


def test_text_files(tmp_path):
    with_texts(write(tmp_path))
    (tmp_path / "a.txt").write_text("\n two\nlines \n")
    (tmp_path / "readme.md").touch()
    source = read(tmp_path, size=16)
    assert {record.key: record.caption for record in source.records(0)} == dict(
        zip(NAMES, ["two\nlines", "picture 1", "picture 2", "picture 3"], strict=True)
    )
    assert source.notes[0] == "captions from the text file beside each picture"
    assert "1 captions have several lines and are used whole" in source.notes
    assert source.notes[-2:] == (r"first caption (a.png): 'two\nlines'", "1 other files left out: readme.md")


def test_classes_by_sub_folder(tmp_path):
    source = read(write(tmp_path, ["y/1.png", "x/1.png", "x/deep/0.png"]), size=16)
    assert source.classes == ("x", "y")
    assert [(r.key, r.label, r.caption) for r in source.records(0)] == [
        ("x/1.png", 0, None),
        ("x/deep/0.png", 0, None),
        ("y/1.png", 1, None),
    ]
    assert source.notes == ("no captions; 2 classes by sub-folder: x, y",)


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["only/1.png", "only/2.png"]])
def test_pictures_alone(tmp_path, names):
    source = read(write(tmp_path, names), size=16)
    assert [(r.key, r.label, r.caption) for r in source.records(0)] == [(name, None, None) for name in names]
    assert source.classes == ()
    assert source.notes == ("no captions and no classes: neither metadata, nor text files, nor two sub-folders",)


def test_one_picture_is_enough_and_none_is_not(tmp_path):
    assert read(write(tmp_path / "one", ["1.png"]), size=16).count == 1
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*; give a folder"):
        read(tmp_path / "nowhere", size=16)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no pictures; give a folder of PNG"):
        read(tmp_path / "none", size=16)


def test_every_picture_has_three_channels_and_stands_upright(tmp_path):
    gray = colors(0)[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(gray.astype(np.uint16) * 256).save(tmp_path / "sixteen.png")
    Image.fromarray(np.rot90(gray)).save(tmp_path / "turned.png", exif=exif)
    Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "white.png")
    shown = {record.key: record.image for record in read(tmp_path, size=16).records(0)}
    assert (shown.pop("white.png") == 255).all()
    for image in shown.values():
        assert image.dtype == torch.uint8
        assert np.array_equal(image.numpy(), np.stack([gray] * 3))


@pytest.mark.parametrize("start", range(5))
def test_the_middle_onwards_is_the_tail_of_the_whole(tmp_path, start):
    source = read(with_texts(write(tmp_path)), size=16)
    same(list(source.records(start)), list(source.records(0))[start:])


def test_what_comes_before_the_start_is_not_opened(tmp_path):
    source = read(with_texts(write(tmp_path)), size=16)
    (tmp_path / "a.png").unlink()
    assert [record.key for record in source.records(1)] == ["b.jpg", "sub-x/d.png", "sub/c.webp"]
    with pytest.raises(FileNotFoundError):
        next(source.records(0))


def test_a_source_begins_within_itself(tmp_path):
    source = read(with_texts(write(tmp_path)), size=16)
    for start in (-1, 5):
        with pytest.raises(ValueError, match="begins at 0 to 4"):
            source.records(start)


def test_the_digest_tells_names_sizes_captions_and_the_side(tmp_path):
    first = read(with_texts(write(tmp_path / "1")), size=16).digest
    assert read(with_texts(write(tmp_path / "2")), size=16).digest == first
    digests = {first, read(tmp_path / "2", size=8).digest}
    (tmp_path / "2" / "a.txt").write_text("another")
    digests.add(read(tmp_path / "2", size=16).digest)
    Image.fromarray(colors(0) // 4).save(tmp_path / "1" / "a.png")
    digests.add(read(tmp_path / "1", size=16).digest)
    (tmp_path / "1" / "a.png").rename(tmp_path / "1" / "e.png")
    (tmp_path / "1" / "a.txt").rename(tmp_path / "1" / "e.txt")
    digests.add(read(tmp_path / "1", size=16).digest)
    assert len(digests) == 5


def test_missing_captions_are_counted_and_named(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    with_texts(write(tmp_path, names), names[7:])
    message = (
        r"7 of 9 pictures have no caption: 0\.png, 1\.png, 2\.png, 3\.png, 4\.png and 2 more; captions are for all "
        "pictures or for none, so write a text file of the same name beside each, or move these pictures away"
    )
    with pytest.raises(ValueError, match=message):
        read(tmp_path, size=16)
    for name in names[7:]:
        (tmp_path / name).with_suffix(".txt").unlink()
    with_lines(tmp_path, [{"file_name": name, "text": "x"} for name in names[:8]])
    with pytest.raises(ValueError, match=r"1 of 9 pictures have no caption: 8\.png; .* add them to metadata\.jsonl"):
        read(tmp_path, size=16)


@pytest.mark.parametrize("empty", ["", " \n", None])
def test_empty_captions_are_named(tmp_path, empty):
    with_lines(write(tmp_path, ["a.png", "b.png"]), [{"file_name": "a.png", "text": "x"}])
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "b.png", "text": empty}))
    with pytest.raises(ValueError, match=r"1 of 2 pictures have an empty caption: b\.png; captions are for all"):
        read(tmp_path, size=16)


def test_metadata_that_does_not_fit(tmp_path):
    write(tmp_path, ["a.png"])
    row = {"file_name": "a.png", "text": "x"}
    for rows, message in (
        (
            [row, {"file_name": "z.png", "text": "x"}],
            r"names 1 pictures that are not there: z\.png; .*add the pictures",
        ),
        ([row, {"file_name": "./a.png", "text": "y"}], r"names a\.png twice, .* entry 2; leave one"),
        ([{"file_name": "a.png", "title": "x"}], "has the fields file_name, title; it needs file_name and one of text"),
        ([{"image": "a.png", "text": "x"}], "has the fields image, text; it needs file_name"),
        ([{**row, "prompt": "y"}], "has the fields text and prompt, each of which may be the caption; leave one"),
        ([{"file_name": "a.png", "text": ["x", "y"]}], r"text of a\.png is \['x', 'y'\]; a caption is one string"),
        ([], r"has the fields \(none\)"),
    ):
        with pytest.raises(ValueError, match=message):
            read(with_lines(tmp_path, rows), size=16)


def test_a_table_with_uneven_lines(tmp_path):
    write(tmp_path, ["a.png"])
    for line in ("a.png,one, two", "a.png"):
        (tmp_path / "metadata.csv").write_text(f"file_name,text\n{line}\n")
        with pytest.raises(ValueError, match=r"line 2: the columns are file_name, text, .*; put quotes around"):
            read(tmp_path, size=16)


def test_captions_told_in_two_ways(tmp_path):
    with_lines(write(tmp_path, ["a.png"]), [{"file_name": "a.png", "text": "x"}])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"captions in metadata\.jsonl and in text files such as a\.txt; keep one"):
        read(tmp_path, size=16)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(ValueError, match=r"captions in metadata\.jsonl and in metadata\.csv; keep one"):
        read(tmp_path, size=16)


def test_metadata_in_other_places_is_not_overlooked(tmp_path):
    write(tmp_path, ["train/a.png", "valid/a.png"])
    with_lines(tmp_path / "train", [{"file_name": "a.png", "text": "x"}])
    with pytest.raises(ValueError, match=r"holds train/metadata\.jsonl; captions are read from .* at the top, so give"):
        read(tmp_path, size=16)
    assert next(read(tmp_path / "train", size=16).records(0)).caption == "x"
    (tmp_path / "train" / "metadata.jsonl").rename(tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match=r"holds metadata\.parquet"):
        read(tmp_path, size=16)


def test_folders_that_are_no_classes(tmp_path):
    write(tmp_path / "lone", ["x/1.png", "y/1.png", "2.png"])
    with pytest.raises(ValueError, match=r"1 pictures beside its 2 sub-folders: 2\.png; .*move these pictures"):
        read(tmp_path / "lone", size=16)
    write(tmp_path / "hole", ["x/1.png", "y/1.png"])
    (tmp_path / "hole" / "z").mkdir()
    with pytest.raises(ValueError, match="the sub-folders z hold no pictures; fill or remove"):
        read(tmp_path / "hole", size=16)
    write(tmp_path / "parts", ["train/1.png", "test/1.png"])
    with pytest.raises(ValueError, match=r"which are no classes; give .*train instead"):
        read(tmp_path / "parts", size=16)


def test_broken_headers_show_at_once_and_together(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    write(tmp_path, names)
    for name in names[2:]:
        (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"7 of the files .*: 2\.png .* and 2 more; replace or remove .*broken='skip'"):
        read(tmp_path, size=16)
    source = read(tmp_path, size=16, broken="skip")
    assert source.notes[1].startswith("7 of the files cannot be read as pictures: 2.png")
    assert [record.image is None for record in source.records(0)] == [False] * 2 + [True] * 7
    for name in names[:2]:
        (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"9 of the files .*; replace them$"):
        read(tmp_path, size=16, broken="skip")


def test_a_picture_that_is_cut_off_shows_when_it_is_reached(tmp_path):
    names = [f"{i}.png" for i in range(5)]
    write(tmp_path, names)
    for name in ("2.png", "4.png"):
        cut(tmp_path / name)
    records = read(tmp_path, size=16).records(0)
    assert [next(records).key, next(records).key] == ["0.png", "1.png"]
    with pytest.raises(
        ValueError, match=r"2 of the files .*: 2\.png \(.*\), 4\.png \(.*looked at 3\); replace them, or"
    ):
        next(records)


def test_skipping_keeps_every_index_and_the_digest(tmp_path):
    names = [f"{i}.png" for i in range(5)]
    with_texts(write(tmp_path, names), names)
    cut(tmp_path / "2.png")
    refusing, skipping = read(tmp_path, size=16), read(tmp_path, size=16, broken="skip")
    assert (skipping.count, skipping.digest) == (refusing.count, refusing.digest) == (5, refusing.digest)
    records = list(skipping.records(0))
    assert [record.key for record in records if record.image is None] == ["2.png"]
    assert records[2].caption == "picture 2"
    same(list(refusing.records(3)), records[3:])


def test_enlarged_pictures_are_told(tmp_path):
    write(tmp_path, ["a.png", "b.png"])
    Image.new("RGB", (90, 64)).save(tmp_path / "c.png")
    assert read(tmp_path, size=40).notes[1] == (
        "2 of 3 pictures (sides 16 to 64) are smaller than 40 and are enlarged, half of them at least 2.5 times"
    )


def test_parts_of_a_folder_are_read_one_after_the_other_and_named(tmp_path):
    levels = {"train": (10, 20, 30), "validation": (40,), "test": (50, 60)}
    for place, colors in levels.items():
        (tmp_path / place).mkdir()
        rows = []
        for color in colors:
            Image.new("RGB", (8, 8), (color, color, color)).save(tmp_path / place / f"{color}.png")
            rows.append({"file_name": f"{color}.png", "text": f"gray {color}"})
        (tmp_path / place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = captioned.divided(tmp_path, size=8)
    expected = [("train", 10), ("train", 20), ("train", 30), ("valid", 40), ("test", 50), ("test", 60)]
    found = list(source.records(0))
    assert [(record.part, int(record.image[0, 0, 0])) for record in found] == expected
    assert [record.key for record in found][3] == "valid/40.png"
    assert [record.caption for record in found][-1] == "gray 60"
    assert source.count == 6
    for start in range(7):
        assert [record.key for record in source.records(start)] == [record.key for record in found][start:]
    assert source.digest != captioned.divided(tmp_path, size=4).digest


def test_a_folder_is_divided_only_if_it_has_a_part_to_train_on_and_one_held_out(tmp_path):
    (tmp_path / "train").mkdir()
    assert captioned.parts_of(tmp_path) == {}
    (tmp_path / "car").mkdir()
    assert captioned.parts_of(tmp_path) == {}
    (tmp_path / "test").mkdir()
    assert captioned.parts_of(tmp_path) == {"train": tmp_path / "train", "test": tmp_path / "test"}
