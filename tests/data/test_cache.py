import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hidistill.codecs import Pixels
from hidistill.data import captioned
from hidistill.data.cache import Cache, CacheError, Plan, write
from hidistill.data.cache.feeding import Stretch, feed
from hidistill.seeds import shuffled
from hidistill.types import Record, Source

COUNT, SIZE = 100, 8
KILLS = 5
COLORS = ("red", "green", "blue", "white", "black", "yellow")
THINGS = ("cat", "dog", "bird", "fish", "house", "boat", "tree")


def caption(i):
    return f"a {COLORS[i % 6]} {THINGS[i % 7]}"


def record(i):
    pixels = torch.from_numpy(np.random.default_rng(i).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8))
    return Record(f"{i:04d}.png", pixels, i % 3, caption(i))


def source(*, count=COUNT, stop=None, broken=(), told=COUNT, digest="one", gray=False):
    """Records that are functions of their index; ends with an error before record `stop`."""

    def records(start):
        for i in range(start, count):
            if i == stop:
                raise ValueError(f"record {i} is not for now")
            found = record(i)._replace(**{"image": None} if i in broken else {})
            yield found._replace(image=found.image[:1].expand(3, -1, -1)) if gray else found

    return Source(records, told, digest, ("a", "b", "c"), ("of numbers",))


def plan(**options):
    settings = {"codec": Pixels(), "codec_digest": "pixels", "prompts": None, "size": SIZE, "batch_size": 4, "rows": 16}
    return Plan(**settings | options)


def files(root):
    return {path.name: path.read_bytes() for path in sorted(root.iterdir()) if path.name != ".lock"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write(root, source, plan())
    return root


def test_rows_are_the_records_and_parts_go_by_caption(whole):
    cache = Cache.open(whole)
    assert sum(cache.count(part) for part in ("train", "valid", "test")) == COUNT
    found = {}
    for part in ("train", "valid", "test"):
        for path in sorted(whole.glob(f"{part}-*.safetensors")):
            tensors = load_file(path)
            lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
            assert ("image" in tensors) == (part != "train")
            for i, line in enumerate(lines):
                expected = record(int(line["key"][:4]))
                assert (line["caption"], line["label"]) == (expected.caption, expected.label)
                assert torch.equal(tensors["x"][i], 2 * (expected.image.float() / 255) - 1)
                assert tensors["label"][i] == expected.label
                if part != "train":
                    assert torch.equal(tensors["image"][i], expected.image)
                found.setdefault(line["caption"], set()).add(part)
    assert all(len(parts) == 1 for parts in found.values())
    assert len(found) == 42


def test_a_batch_is_a_function_of_the_step(whole):
    one, two = Cache.open(whole), Cache.open(whole)
    keys = [
        json.loads(line)["key"]
        for path in sorted(whole.glob("train-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    for step in (0, 3, 50):
        batch = one.batch_at(step, batch_size=7, seed=5)
        assert torch.equal(batch.x, two.batch_at(step, batch_size=7, seed=5).x)
        rows = shuffled(len(keys), batch_size=7, step=step, seed=5).tolist()
        expected = [record(int(keys[row][:4])) for row in rows]
        assert torch.equal(batch.x, torch.stack([2 * (each.image.float() / 255) - 1 for each in expected]))
        assert batch.cond.tolist() == [each.label for each in expected]
        assert batch.step == step
        assert torch.equal(one.cond_at(step, batch_size=7, seed=5), batch.cond)


def test_held_out_parts_keep_their_pictures(whole):
    cache = Cache.open(whole)
    part = cache.split("test")
    assert len(part.images) == cache.count("test") == len(part.captions) == len(part.x)
    for i, key in enumerate(part.keys):
        expected = record(int(key[:4]))
        assert torch.equal(part.images[i], expected.image)
        assert torch.equal(part.x[i], 2 * (expected.image.float() / 255) - 1)
        assert (part.captions[i], int(part.split.labels[i]), int(part.cond[i])) == (
            expected.caption,
            *[expected.label] * 2,
        )
    assert part.split.classes == ["a", "b", "c"]
    assert cache.split("test", 2).keys == part.keys[:2]
    with pytest.raises(CacheError, match="of valid and test"):
        cache.split("train")


@pytest.mark.parametrize("stop", [0, 1, 15, 16, 17, 63, 99])
def test_a_cache_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, whole, stop):
    with pytest.raises(ValueError, match="not for now"):
        write(tmp_path, partial(source, stop=stop), plan())
    with pytest.raises(CacheError, match=rf"not finished \({stop // 16 * 16} records so far\)"):
        Cache.open(tmp_path)
    summary = write(tmp_path, source, plan())
    assert summary.encoded == COUNT - stop // 16 * 16
    assert files(tmp_path) == files(whole)
    again = write(tmp_path, source, plan())
    assert again.encoded == 0
    assert replace(again, seconds=0.0, encoded=0) == replace(summary, seconds=0.0, encoded=0)
    assert files(tmp_path) == files(whole)


def test_two_processes_write_the_same_bytes_and_pass_errors_on(tmp_path, whole):
    write(tmp_path / "two", source, plan(workers=2))
    assert files(tmp_path / "two") == files(whole)
    with pytest.raises(ValueError, match="record 40 is not for now"):
        write(tmp_path / "stopped", partial(source, stop=40), plan(workers=2))
    assert (
        Cache.open(whole).content["segments"][:2]
        == json.loads((tmp_path / "stopped" / "manifest.json").read_text())["segments"]
    )


def test_a_batch_is_decoded_while_the_one_before_it_is_used():
    """One batch ahead and no more, in another thread; what it raises comes where its batch would have come."""
    read = {}

    def records(start):
        for i in range(start, 9):
            if i == 7:
                raise OSError("record 7 is broken")
            read[i] = threading.current_thread().name
            yield record(i)

    made = Source(records, count=9, digest="", classes=(), notes=())
    with feed(lambda: made, Stretch(1, None, 2, 100), workers=1) as batches:
        for expected, last in (([1, 2], 4), ([3, 4], 6)):
            assert [each.key for each in next(batches)] == [record(i).key for i in expected]
            until = time.monotonic() + 10
            while len(read) < last and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.05)
            assert sorted(read) == list(range(1, last + 1))
        assert [each.key for each in next(batches)] == [record(i).key for i in (5, 6)]
        with pytest.raises(OSError, match="record 7 is broken"):
            next(batches)
    assert set(read.values()) == {"decode"}
    until = time.monotonic() + 10
    while [each for each in threading.enumerate() if each.name == "decode"] and time.monotonic() < until:
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "decode"]


def test_who_has_had_enough_does_not_wait_for_a_slow_source():
    going = threading.Event()

    def records(start):
        yield record(start)
        going.wait(30)
        yield record(start + 1)

    made = Source(records, 2, "", (), ())
    begin = time.monotonic()
    with feed(lambda: made, Stretch(0, None, 1, 100), workers=1) as batches:
        assert len(next(batches)) == 1
    assert time.monotonic() - begin < 10
    going.set()


def test_a_source_whose_length_nobody_knows(tmp_path, whole):
    write(tmp_path / "all", partial(source, told=None), plan())
    assert files(tmp_path / "all") == files(whole)
    write(tmp_path / "even", partial(source, count=64, told=None), plan())
    assert Cache.open(tmp_path / "even").content["complete"]
    with pytest.raises(ValueError, match="says that it has 100 records and gave 64"):
        write(tmp_path / "less", partial(source, count=64), plan())


def test_broken_pictures_are_left_out_and_listed(tmp_path):
    summary = write(tmp_path, partial(source, broken=(0, 20, 99)), plan())
    assert summary.broken == ["0000.png", "0020.png", "0099.png"]
    assert sum(summary.rows.values()) == COUNT - 3
    cache = Cache.open(tmp_path)
    assert sum(cache.count(part) for part in summary.rows) == COUNT - 3
    with pytest.raises(ValueError, match="none is left to train on"):
        write(tmp_path / "none", partial(source, broken=range(COUNT)), plan())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_in_half_precision_are_read_as_float32(tmp_path, whole, dtype):
    write(tmp_path, source, plan(dtype=dtype))
    found, exact = (Cache.open(root).batch_at(1, batch_size=9, seed=0).x for root in (tmp_path, whole))
    assert found.dtype == torch.float32
    assert torch.equal(found, exact.to(getattr(torch, dtype)).float())
    assert sum(map(len, files(tmp_path).values())) < sum(map(len, files(whole).values()))


def test_gray_teachers_take_gray_pictures_alone(tmp_path):
    write(tmp_path / "gray", partial(source, gray=True), plan(channels=1))
    assert Cache.open(tmp_path / "gray").shape == (1, SIZE, SIZE)
    assert Cache.open(tmp_path / "gray").split("test").images.shape[1] == 1
    with pytest.raises(ValueError, match=r"the picture 0000\.png has color"):
        write(tmp_path / "color", source, plan(channels=1))


def test_labels_that_the_teacher_has_not_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"0002\.png has the label 2, and the teacher .* from 0 to 1"):
        write(tmp_path, source, plan(classes=2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codec_digest": "other"}, "the autoencoder: 'pixels' there, 'other' here"),
        ({"size": 16}, "the size: 8 there, 16 here"),
        ({"dtype": "float16"}, "the type of the stored numbers: 'float32' there, 'float16' here"),
        ({"rows": 8}, "the rows of a shard: 16 there, 8 here"),
        ({"teacher": {"pipeline": "P", "family": "f"}}, "the teacher's pipeline and family"),
    ],
)
def test_another_plan_is_refused_by_name(tmp_path, options, words):
    with pytest.raises(ValueError, match="not for now"):
        write(tmp_path, partial(source, stop=20), plan())
    before = files(tmp_path)
    with pytest.raises(CacheError, match=f"made from something else: {words}"):
        write(tmp_path, source, plan(**options))
    with pytest.raises(CacheError, match="the pictures or prompts: 'one' there, 'two' here"):
        write(tmp_path, partial(source, digest="two"), plan())
    assert files(tmp_path) == before
    write(tmp_path, source, plan(rows=None))


def test_the_rows_of_a_shard_are_chosen_by_their_size(tmp_path):
    write(tmp_path, source, plan(rows=None))
    assert Cache.open(tmp_path).made_from["rows"] == 2048


def test_the_cache_of_another_teacher_is_refused(whole):
    cache = Cache.open(whole)
    cache.check(codec_digest="pixels")
    with pytest.raises(CacheError, match="the autoencoder: 'pixels' there, 'other' here"):
        cache.check(codec_digest="other")
    with pytest.raises(CacheError, match="the text encoders: None there, 'words' here"):
        cache.check(codec_digest="pixels", text_digest="words")


def damaged(root):
    """Every file, each with a way to harm it."""
    for name in ("train-00001.safetensors", "valid-00002.safetensors", "test-00000.jsonl"):
        content = (root / name).read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        yield root / name, content[:-3], "bytes, .* were written"
        yield root / name, bytes(flipped), "its sha256 differs"
        yield root / name, None, "is missing"


def test_damaged_files_are_named_and_written_anew(tmp_path):
    write(tmp_path, source, plan())
    before = files(tmp_path)
    for path, content, words in damaged(tmp_path):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CacheError, match=rf"{path.name} .*{words}.*writes this file anew"):
            Cache.open(tmp_path)
        assert write(tmp_path, source, plan()).encoded == 16
        assert files(tmp_path) == before
    for i in (0, 1, 6):
        (tmp_path / f"train-0000{i}.safetensors").unlink()
    assert write(tmp_path, source, plan()).encoded == 16 + 16 + 4
    assert files(tmp_path) == before


def test_what_is_no_cache_is_refused(tmp_path, whole):
    with pytest.raises(CacheError, match=r"is no cache: it has no manifest\.json"):
        Cache.open(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"holds notes\.txt but no manifest\.json; use an empty folder"):
        write(tmp_path, source, plan())
    assert files(tmp_path) == {"notes.txt": b"mine"}
    manifest = json.loads((whole / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": 9}))
    with pytest.raises(CacheError, match="is of format 9"):
        Cache.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest)[:-5])
    with pytest.raises(CacheError, match="is damaged"):
        Cache.open(tmp_path)


def test_two_writers_do_not_meet(tmp_path):
    def meeting():
        with pytest.raises(CacheError, match=rf"being written by another process \({os.getpid()}\)"):
            write(tmp_path, source, plan())
        return source()

    write(tmp_path, meeting, plan())


def test_a_full_disk_leaves_what_was_written(tmp_path, whole):
    write(tmp_path / "small", partial(source, count=16, told=None), plan())
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def late(start):
        for number, found in enumerate(source().records(start), start):
            if number == 40:  # from here on no file may be longer
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
            yield found

    try:
        with pytest.raises(OSError, match=r"train-00002.* are free there.*intact: free some space, then run the same"):
            write(tmp_path / "full", lambda: replace(source(), records=late), plan())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list((tmp_path / "full").glob(".*.partial"))
    assert write(tmp_path / "full", source, plan()).encoded == COUNT - 32
    assert files(tmp_path / "full") == files(whole)


def test_plans_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="workers=3"):
        plan(workers=3)
    with pytest.raises(ValueError, match="dtype='int8'"):
        plan(dtype="int8")
    with pytest.raises(ValueError, match="batch_size=0"):
        plan(batch_size=0)
    with pytest.raises(ValueError, match="nothing to store"):
        plan(codec=None)


WRITER = """
import sys, torch
from functools import partial
from pathlib import Path
torch.set_num_threads(1)
from hidistill.codecs import Pixels
from hidistill.data import captioned
from hidistill.data.cache import Plan, write
if __name__ == "__main__":
    options = {"codec": Pixels(), "codec_digest": "pixels", "prompts": None, "size": 32, "batch_size": 4, "rows": 8}
    read = partial(captioned.read, Path(sys.argv[1]), size=32)
    print("ready", flush=True)
    write(Path(sys.argv[2]), read, Plan(**options, workers=int(sys.argv[3])))
"""


def pictures(root, count):
    root.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(root / f"{i:04d}.png")
        (root / f"{i:04d}.txt").write_text(caption(i))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kills_at_random_moments_end_in_the_same_bytes(tmp_path, workers):
    images = pictures(tmp_path / "images", 240)
    read = partial(captioned.read, images, size=32)
    started = time.monotonic()
    options = {"codec": Pixels(), "codec_digest": "pixels", "prompts": None, "size": 32, "batch_size": 4, "rows": 8}
    write(tmp_path / "whole", read, Plan(**options))
    seconds = time.monotonic() - started
    chance, killed = random.Random(0), 0
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    for _ in range(KILLS):
        command = [sys.executable, str(script), str(images), str(tmp_path / "killed"), str(workers)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            assert process.stdout.readline() == b"ready\n"
            before = len(list((tmp_path / "killed").glob("*")))
            while process.poll() is None and len(list((tmp_path / "killed").glob("*"))) <= before:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, seconds / KILLS))
            killed += process.poll() is None
            process.kill()
    assert killed > KILLS // 2
    write(tmp_path / "killed", read, Plan(**options, workers=workers))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
