import json
import tarfile
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from hidistill.data.shards import braces, read


def picture(i, kind="PNG"):
    file = BytesIO()
    Image.fromarray(colors(i)).save(file, kind)
    return file.getvalue()


def colors(i):
    return np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def shard(path, files):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            data = data if isinstance(data, bytes) else data.encode()
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    return path


def captioned(root, counts=(3, 1, 2)):
    """Shards of samples whose keys and captions count through."""
    number = 0
    for i, count in enumerate(counts):
        files = []
        for _ in range(count):
            files += [(f"{number:04d}.png", picture(number)), (f"{number:04d}.txt", f"picture {number}\n")]
            number += 1
        shard(root / f"s-{i:02d}.tar", files)
    return root / "s-*.tar"


def same(one, other):
    assert [record[:1] + record[2:] for record in one] == [record[:1] + record[2:] for record in other]
    assert all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("pattern", ["s-*.tar", "s-{00..02}.tar", "s-{02,00,01}.tar", "{s-0[0-1],s-02}.tar"])
def test_samples_come_in_the_order_of_the_shards(tmp_path, pattern):
    captioned(tmp_path)
    source = read(tmp_path / pattern, size=16)
    records = list(source.records(0))
    assert [(r.key, r.label, r.caption) for r in records] == [(f"000{i}", None, f"picture {i}") for i in range(6)]
    for i, record in enumerate(records):
        assert np.array_equal(record.image.numpy(), colors(i).transpose(2, 0, 1))
    assert (source.count, source.classes) == (None, ())
    assert source.notes == (
        f"3 shards; captions from txt, no classes, as in sample 0000 of {tmp_path / 's-00.tar'}",
        "first caption (0000): 'picture 0'",
    )


# The package leaves the files that it has read open.
@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*a.tar:pytest.PytestUnraisableExceptionWarning")
def test_the_packages_own_writer_and_reader_agree(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(3):
            row = {"caption": f"c {i}", "w": 3}
            writer.write({"__key__": f"x/{i}", "png": picture(i), "json": row, "cls": i, "seg.png": picture(9)})
    theirs = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("pilrgb")
    source = read(tmp_path / "a.tar", size=16)
    for ours, other in zip(source.records(0), theirs, strict=True):
        assert (ours.key, ours.label, ours.caption) == (other["__key__"], other["cls"], other["json"]["caption"])
        assert np.array_equal(ours.image.numpy(), np.asarray(other["png"]).transpose(2, 0, 1))
    assert "captions from json (caption), classes from cls, without names" in source.notes[0]
    assert "parts of it that are not used: seg.png" in source.notes


@pytest.mark.parametrize("start", range(7))
def test_the_middle_onwards_is_the_tail_of_the_whole(tmp_path, start):
    source = read(captioned(tmp_path), size=16)
    same(list(source.records(start)), list(source.records(0))[start:])


def test_a_source_begins_within_itself(tmp_path):
    source = read(captioned(tmp_path), size=16)
    for start, allowed in ((7, "0 to 6"), (-1, "0 or more")):
        with pytest.raises(ValueError, match=f"begins at {allowed}"):
            list(source.records(start))


def test_what_comes_before_the_start_is_not_decoded(tmp_path):
    path = shard(
        tmp_path / "a.tar", [("0.png", picture(0)[:60]), ("0.txt", "\xff"), ("1.png", picture(1)), ("1.txt", "b")]
    )
    path.write_bytes(path.read_bytes().replace("\xff".encode(), b"\xff "))
    with pytest.raises(ValueError, match="txt is not UTF-8"):
        read(path, size=16)
    path = shard(tmp_path / "a.tar", [("0.png", picture(0)[:60]), ("1.png", picture(1))])
    assert [record.key for record in read(path, size=16).records(1)] == ["1"]


def test_other_endings_gray_pictures_and_files_that_are_no_samples(tmp_path):
    gray = BytesIO()
    Image.fromarray(colors(1)[..., 0]).save(gray, "TIFF")
    files = [
        ("0.PNG", picture(0)),
        ("._0.png", "x"),
        ("__info__.json", "{}"),
        ("notes", "x"),
        ("d.x/1.tiff", gray.getvalue()),
    ]
    records = list(read(shard(tmp_path / "a.tar", files), size=16).records(0))
    assert [record.key for record in records] == ["0", "d.x/1"]
    assert np.array_equal(records[1].image.numpy(), np.stack([colors(1)[..., 0]] * 3))


def test_txt_goes_before_json(tmp_path):
    files = [("0.jpg", picture(0, "JPEG")), ("0.json", json.dumps({"text": "b", "caption": "c"})), ("0.txt", "a")]
    source = read(shard(tmp_path / "a.tar", files), size=16)
    assert next(source.records(0)).caption == "a"
    assert "parts of it that are not used: json" in source.notes
    with pytest.raises(ValueError, match=r"sample 0 of .*: json has the fields text and caption, .*leave one"):
        read(shard(tmp_path / "a.tar", files[:2]), size=16)


TEXT = [("0.png", picture(0)), ("0.txt", "a")]
CLASS = [("0.png", picture(0)), ("0.cls", "0")]
JSON = [("0.png", picture(0)), ("0.json", '{"text": "a"}')]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            TEXT,
            [("1.png", picture(1))],
            "has no caption, but the first sample has one in txt; .* write this shard anew",
        ),
        (TEXT[:1], [("1.png", picture(1)), ("1.txt", "b")], "has a caption in txt, but the first sample has none"),
        (
            JSON,
            [("1.png", picture(1)), ("1.json", '{"prompt": "b"}')],
            r"in json \(prompt\), but .* one in json \(text\)",
        ),
        (JSON, [("1.png", picture(1)), ("1.json", '{"text": ["b"]}')], r"text is \['b'\]; a caption is one string"),
        (JSON, [("1.png", picture(1)), ("1.json", "{")], "json is no JSON .*; write this shard anew"),
        (TEXT, [("1.png", picture(1)), ("1.txt", " \n")], "has an empty caption in txt; captions are for all"),
        (CLASS, [("1.png", picture(1))], "has no class in cls, unlike the first sample; .* write this shard anew"),
        (CLASS, [("1.png", picture(1)), ("1.cls", "dog")], "has the class 'dog'; cls holds a number from 0 on"),
        (TEXT, [("1.txt", "b")], "has the parts txt, 0 of them pictures; each sample has one"),
        (TEXT, [("1.png", b""), ("1.jpg", b""), ("1.txt", "b")], "has the parts png, jpg, txt, 2 of them pictures"),
        (TEXT, [("1.png", b""), ("1.png", b"")], "has two files png; a sample has one of each"),
        (TEXT, [("1.png", picture(1)[:99]), ("1.txt", "b")], r"\(png\) cannot be read as a picture .*broken='skip'"),
    ],
)
def test_a_sample_unlike_the_first_is_named_with_its_shard(tmp_path, first, second, message):
    shard(tmp_path / "a.tar", first)
    shard(tmp_path / "b.tar", second)
    records = read(tmp_path / "{a,b}.tar", size=16).records(0)
    assert next(records).key == "0"
    with pytest.raises(ValueError, match=rf"sample 1 of .*b\.tar.*{message}"):
        next(records)


def test_skipping_keeps_every_index_and_the_digest(tmp_path):
    files = [("0.png", picture(0)), ("1.png", picture(1)[:99]), ("2.png", picture(2))]
    path = shard(tmp_path / "a.tar", files)
    refusing, skipping = read(path, size=16), read(path, size=16, broken="skip")
    assert skipping.digest == refusing.digest
    records = list(skipping.records(0))
    assert [(record.key, record.image is None) for record in records] == [("0", False), ("1", True), ("2", False)]
    same(list(refusing.records(2)), records[2:])


def test_shards_that_are_cut_off_or_compressed_are_named_together(tmp_path):
    pattern = captioned(tmp_path)
    whole = (tmp_path / "s-01.tar").read_bytes()
    (tmp_path / "s-01.tar").write_bytes(whole[:700])
    with tarfile.open(tmp_path / "s-02.tar", "w:gz") as tar:
        tar.add(tmp_path / "s-00.tar", "0.png")
    with pytest.raises(ValueError, match=r"2 of 3 shards do not end .*: .*s-01\.tar, .*s-02\.tar; .*fetch them anew"):
        read(pattern, size=16)


def test_holes_and_damage_within_a_shard_are_not_its_end(tmp_path):
    pattern = captioned(tmp_path)
    path = tmp_path / "s-01.tar"
    whole = path.read_bytes()
    # A header is 512 bytes; that of the text file follows the picture's header and its padded data.
    second = 512 + -(-len(picture(3)) // 512) * 512
    assert whole[second : second + 8] == b"0003.txt"
    hole = bytes(len(whole) - second)
    damaged = whole[:second] + b"\xff" * 8 + whole[second + 8 :]
    for data in (whole[:second] + hole + bytes(1 << 20), damaged, whole + whole):
        path.write_bytes(data)
        source = read(pattern, size=16)
        with pytest.raises(ValueError, match=r"s-01\.tar ends after [0-9,]+ of its .* bytes: .*fetch or write this"):
            list(source.records(0))
    long = shard(tmp_path / "long.tar", [("0.png", picture(0)), ("0.npy", bytes(9000))]).read_bytes()
    path.write_bytes(long[:4000] + bytes(1024))
    with pytest.raises(ValueError, match=r"s-01\.tar is damaged or cut off \(.*\); fetch or write this shard anew"):
        list(read(pattern, size=16).records(0))


def test_patterns_without_shards(tmp_path):
    captioned(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"1 of 4 shards are not there: .*s-03\.tar; fetch them"):
        read(tmp_path / "s-{00..03}.tar", size=16)
    with pytest.raises(FileNotFoundError, match=r"x-\*\.tar fits no file; correct it"):
        read(tmp_path / "x-*.tar", size=16)
    with pytest.raises(ValueError, match=r"is a folder; give the tar files in it, such as .*/\*\.tar"):
        read(tmp_path, size=16)
    with pytest.raises(ValueError, match="is no file of this machine; fetch the shards"):
        read("https://example.org/{000..002}.tar", size=16)
    with pytest.raises(ValueError, match=r"a\.tar: 1 shards without samples; give shards with"):
        read(shard(tmp_path / "a.tar", []), size=16)


def test_braces_as_a_shell_expands_them():
    assert braces("a{08..11}b") == ["a08b", "a09b", "a10b", "a11b"]
    assert braces("{8..11}") == ["8", "9", "10", "11"]
    assert braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert braces("{a,b{1,2}}") == ["a", "b1", "a", "b2"]
    for pattern in ("{a}", "{3..1}", "{}"):
        with pytest.raises(ValueError, match=r"means nothing; write \{000\.\.012\} or \{a,b\}"):
            braces(pattern)


def test_the_digest_tells_shards_sizes_and_the_side(tmp_path):
    source = read(captioned(tmp_path), size=16)
    assert read(tmp_path / "s-{02,01,00}.tar", size=16).digest == source.digest
    assert (
        len({source.digest, read(tmp_path / "s-0[01].tar", size=16).digest, read(tmp_path / "s-*.tar", size=8).digest})
        == 3
    )
