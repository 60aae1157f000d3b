from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from hidistill.data.hub import mapped, streamed

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """No copies outside the test's folder, no progress bars; nothing here asks the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def colors(i):
    return np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def png(i):
    file = BytesIO()
    Image.fromarray(colors(i)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{i}.png"}


FEATURES = {
    "image": datasets.Image(),
    "text": datasets.Value("string"),
    "label": datasets.ClassLabel(names=["cat", "dog"]),
}


def table(count=5, features=FEATURES, **columns):
    """Rows that count through; a column by its name replaces what it would hold."""
    made = {"image": [png(i) for i in range(count)], "text": [f"picture {i}" for i in range(count)]}
    made["label"] = [i % 2 for i in range(count)]
    made |= columns
    return datasets.Dataset.from_dict({name: made[name] for name in features}, features=datasets.Features(features))


def parquet(root, dataset, shards=2):
    root.mkdir(exist_ok=True)
    for i in range(shards):
        dataset.shard(shards, i, contiguous=True).to_parquet(root / f"train-{i:05d}-of-{shards:05d}.parquet")
    return root


def on_disk(root, dataset):
    dataset.save_to_disk(root)
    return root


def same(one, other):
    assert [record[:1] + record[2:] for record in one] == [record[:1] + record[2:] for record in other]
    assert all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))


def check(source):
    records = list(source.records(0))
    assert [(r.key, r.label, r.caption) for r in records] == [(str(i), i % 2, f"picture {i}") for i in range(5)]
    for i, record in enumerate(records):
        assert np.array_equal(record.image.numpy(), colors(i).transpose(2, 0, 1))
    assert source.classes == ("cat", "dog")
    for start in range(6):
        same(list(source.records(start)), records[start:])


def test_a_folder_of_save_to_disk(tmp_path):
    source = mapped(on_disk(tmp_path / "d", table()), split="train", size=16)
    check(source)
    assert source.count == 5
    assert source.notes == (
        "pictures from the column image, captions from text, 2 classes from label",
        "first caption (0): 'picture 0'",
    )
    with pytest.raises(ValueError, match="begins at 0 to 5"):
        source.records(6)


def test_a_folder_of_save_to_disk_with_splits(tmp_path):
    on_disk(tmp_path / "d", datasets.DatasetDict({"train": table(3), "valid": table()}))
    check(mapped(tmp_path / "d", split="valid", size=16))
    with pytest.raises(ValueError, match="d has the splits train, valid and no 'test'; give one of them"):
        mapped(tmp_path / "d", split="test", size=16)


@pytest.mark.parametrize("read", [mapped, streamed])
def test_parquet_files(tmp_path, read):
    check(read(parquet(tmp_path / "d", table()), split="train", size=16))
    check(read(str(tmp_path / "d"), split="train", size=16))
    parquet(tmp_path / "one", table(), shards=1)
    check(read(tmp_path / "one" / "train-00000-of-00001.parquet", split="train", size=16))


@pytest.mark.parametrize("read", [mapped, streamed])
def test_a_folder_of_pictures(tmp_path, read):
    for i, name in enumerate(("cat/0.png", "cat/1.png", "dog/0.png")):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colors(i)).save(tmp_path / "d" / name)
    source = read(tmp_path / "d", split="train", size=16)
    records = list(source.records(0))
    assert [(r.label, r.caption) for r in records] == [(0, None), (0, None), (1, None)]
    assert np.array_equal(records[2].image.numpy(), colors(2).transpose(2, 0, 1))
    Image.fromarray(colors(0) // 4).save(tmp_path / "d" / "cat" / "1.png")
    assert read(tmp_path / "d", split="train", size=16).digest != source.digest


def test_both_readers_agree_and_streams_have_no_length(tmp_path):
    parquet(tmp_path / "d", table())
    one, other = (read(tmp_path / "d", split="train", size=16) for read in (mapped, streamed))
    same(list(one.records(0)), list(other.records(0)))
    assert other.count is None
    assert list(other.records(5)) == list(other.records(9)) == []


@pytest.mark.parametrize("read", [mapped, streamed])
def test_what_comes_before_the_start_is_not_decoded(tmp_path, read):
    images = [{"bytes": b"<html>", "path": None}, png(1)]
    parquet(tmp_path / "d", table(2, image=images), shards=1)
    source = read(tmp_path / "d", split="train", size=16)
    assert [record.key for record in source.records(1)] == ["1"]
    with pytest.raises(ValueError, match=r"row 0 \(image\) cannot be read as a picture .*; replace it, or .*'skip'"):
        next(source.records(0))


@pytest.mark.parametrize("read", [mapped, streamed])
def test_skipping_keeps_every_index_and_the_digest(tmp_path, read):
    images = [png(0), None, {"bytes": png(2)["bytes"][:60], "path": None}, png(3), png(4)]
    parquet(tmp_path / "d", table(image=images), shards=1)
    refusing, skipping = (read(tmp_path / "d", split="train", size=16, broken=broken) for broken in ("refuse", "skip"))
    assert skipping.digest == refusing.digest
    records = list(skipping.records(0))
    assert [record.image is None for record in records] == [False, True, True, False, False]
    assert records[2].caption == "picture 2"
    same(list(refusing.records(3)), records[3:])
    with pytest.raises(ValueError, match=r"row 1 .*there is none"):
        list(refusing.records(0))


def test_pictures_stand_upright_in_three_channels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    Image.fromarray(np.rot90(colors(0)[..., 0])).save(file, "PNG", exif=exif)
    image = {"bytes": file.getvalue(), "path": None}
    record = next(mapped(on_disk(tmp_path / "d", table(1, image=[image])), split="train", size=16).records(0))
    assert np.array_equal(record.image.numpy(), np.stack([colors(0)[..., 0]] * 3))


TWO = {
    "image": datasets.Image(),
    "mask": datasets.Image(),
    "url": datasets.Value("string"),
    "title": datasets.Value("string"),
    "coarse": datasets.ClassLabel(names=["a"]),
    "fine": datasets.ClassLabel(names=["a", "b", "c"]),
    "tags": datasets.List(datasets.Value("string")),
}
ROWS = {
    "image": [png(0), png(1)],
    "mask": [png(2), png(3)],
    "url": ["u", "v"],
    "title": ["one", "two"],
    "coarse": [0, 0],
    "fine": [2, 1],
    "tags": [["x"], ["y"]],
}
ALL = {"image_column": "mask", "text_column": "title", "label_column": "fine"}


def test_several_columns_that_may_be_meant_are_refused_with_the_choices(tmp_path):
    on_disk(tmp_path / "d", table(2, TWO, **ROWS))
    for column, message in (
        ("image_column", "several may be meant, so give image_column='image' or image_column='mask'"),
        ("text_column", "text_column='url' or text_column='title', or text_column='' for none"),
        ("label_column", "label_column='coarse' or label_column='fine', or label_column='' for none"),
    ):
        with pytest.raises(ValueError, match=message):
            mapped(tmp_path / "d", split="train", size=16, **{**ALL, column: None})
    source = mapped(tmp_path / "d", split="train", size=16, **ALL)
    assert [(record.label, record.caption) for record in source.records(0)] == [(2, "one"), (1, "two")]
    assert np.array_equal(next(source.records(0)).image.numpy(), colors(2).transpose(2, 0, 1))
    assert source.classes == ("a", "b", "c")
    assert "columns that are not used: image, url, coarse, tags" in source.notes
    bare = mapped(tmp_path / "d", split="train", size=16, image_column="image", text_column="", label_column="")
    assert [(record.label, record.caption) for record in bare.records(0)] == [(None, None)] * 2
    assert bare.classes == ()


def test_columns_that_are_not_what_was_asked_for(tmp_path):
    on_disk(tmp_path / "d", table(2, TWO, **ROWS))
    for column, asked, message in (
        ("image_column", "url", "Image.*; image_column='url' is none of image, mask, so give one"),
        ("text_column", "tags", "one string each; text_column='tags' is none of url, title, so give one"),
        ("label_column", "title", "ClassLabel.*; label_column='title' is none of coarse, fine, so give one"),
    ):
        with pytest.raises(ValueError, match=message):
            mapped(tmp_path / "d", split="train", size=16, **{**ALL, column: asked})
    on_disk(tmp_path / "e", datasets.Dataset.from_dict({"text": ["x"]}))
    with pytest.raises(ValueError, match=r"has the columns text .*, and none of pictures; cast_column"):
        mapped(tmp_path / "e", split="train", size=16)


def test_among_several_strings_a_column_called_caption_is_it(tmp_path):
    features = {"image": datasets.Image(), "url": datasets.Value("string"), "caption": datasets.Value("large_string")}
    on_disk(tmp_path / "d", table(1, features, url=["u"], caption=["c"]))
    assert next(mapped(tmp_path / "d", split="train", size=16).records(0)).caption == "c"


def test_missing_captions_and_classes(tmp_path):
    texts = ["a", None, "b", " ", ""]
    parquet(tmp_path / "d", table(text=texts), shards=1)
    with pytest.raises(ValueError, match=r"3 of 5 rows have no caption in text: rows 1, 3, 4; .*filter these rows, or"):
        mapped(tmp_path / "d", split="train", size=16)
    assert [r.caption for r in mapped(tmp_path / "d", split="train", size=16, text_column="").records(0)] == [None] * 5
    records = streamed(tmp_path / "d", split="train", size=16).records(0)
    assert next(records).caption == "a"
    with pytest.raises(ValueError, match=r"row 1 has no caption in text; .*filter such rows"):
        next(records)
    on_disk(tmp_path / "e", table(2, label=[1, -1]))
    records = mapped(tmp_path / "e", split="train", size=16).records(0)
    assert next(records).label == 1
    with pytest.raises(ValueError, match="row 1 has the class -1 in label; classes are 0 to 1, so filter"):
        next(records)


def test_what_cannot_be_read(tmp_path):
    parquet(tmp_path / "d", table())
    for read in (mapped, streamed):
        with pytest.raises(ValueError, match=r"split 'nosuch': .*train.*; name one of its splits"):
            read(tmp_path / "d", split="nosuch", size=16)
        (tmp_path / "x.csv").touch()
        with pytest.raises(ValueError, match=r"x\.csv: a single file is read if it is \.parquet"):
            read(tmp_path / "x.csv", split="train", size=16)
    with pytest.raises(ValueError, match="was written by save_to_disk and needs no streaming; give it to mapped"):
        streamed(on_disk(tmp_path / "s", table()), split="train", size=16)
    with pytest.raises(ValueError, match=r"split 'train\[9:\]': .*no data.*; name one of its splits, or a slice"):
        mapped(tmp_path / "d", split="train[9:]", size=16)


def test_slices_of_a_split(tmp_path):
    parquet(tmp_path / "d", table())
    assert [r.caption for r in mapped(tmp_path / "d", split="train[3:]", size=16).records(0)] == [
        "picture 3",
        "picture 4",
    ]


@pytest.mark.parametrize("read", [mapped, streamed])
def test_the_digest_tells_one_from_another(tmp_path, read):
    parquet(tmp_path / "1", table())
    first = read(tmp_path / "1", split="train", size=16).digest
    assert read(parquet(tmp_path / "2", table()), split="train", size=16).digest == first
    other = read(parquet(tmp_path / "3", table(text=[f"other {i}" for i in range(5)])), split="train", size=16).digest
    side = read(tmp_path / "1", split="train", size=8).digest
    column = read(tmp_path / "1", split="train", size=16, text_column="").digest
    fewer = read(parquet(tmp_path / "4", table(4)), split="train", size=16).digest
    assert len({first, other, side, column, fewer}) == 5
