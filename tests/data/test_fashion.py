import gzip
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hidistill.data import fashion
from hidistill.data.fashion import CLASSES, FILES_SHA256, bundled, default_folder, fetch, full, place, read_mosaic

missing = [name for name in FILES_SHA256 if not (default_folder() / name).is_file()]
needs_full = pytest.mark.skipif(
    bool(missing), reason=f"{missing} not in {default_folder()}: hidistill data fashion-mnist"
)


@pytest.mark.parametrize(("part", "count"), [("train", 4000), ("valid", 1000), ("test", 2000)])
def test_bundled_parts_are_balanced_in_every_prefix(part, count):
    split = bundled(part)
    assert split.images.shape == (count, 1, 28, 28)
    assert split.images.dtype == torch.uint8
    assert split.classes == CLASSES
    for prefix in (10, 250, count):
        assert torch.bincount(split.labels[:prefix]).tolist() == [prefix // 10] * 10


def test_bundled_parts_share_no_picture():
    pictures = torch.cat([bundled(part).images for part in ("train", "valid", "test")])
    assert len({picture.numpy().tobytes() for picture in pictures}) == 7000


def test_labels_belong_to_the_pictures():
    train, test = bundled("train"), bundled("test")
    means = torch.stack([train.images[train.labels == c].float().mean(0) for c in range(10)]).flatten(1)
    nearest = torch.cdist(test.images.float().flatten(1), means).argmin(1)
    assert (nearest == test.labels).double().mean() > 0.6


def test_a_caller_cannot_spoil_the_pictures_of_the_next_one():
    before = bundled("test").images.clone()
    bundled("test").images.zero_()
    assert torch.equal(bundled("test").images, before)


def test_a_damaged_mosaic_is_refused(tmp_path, monkeypatch):
    source = fashion.ASSETS / "fashion-mnist-test.png"
    monkeypatch.setattr(fashion, "ASSETS", tmp_path)
    read_mosaic.cache_clear()
    (tmp_path / source.name).write_bytes(source.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="reinstall"):
        bundled("test")
    pixels = np.array(Image.open(source))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / source.name)
    with pytest.raises(ValueError, match="not the pictures"):
        bundled("test")


def test_the_missing_full_set_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="hidistill data fashion-mnist"):
        full("train", tmp_path)


def test_a_truncated_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 8)[:-20])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        full("test", tmp_path)
    path.write_bytes(gzip.compress(b"another file"))
    with pytest.raises(ValueError, match="not those of the published file"):
        full("test", tmp_path)


def test_fetching_without_the_package_client_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"apt-get.*by hand"):
        fetch(tmp_path)


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDISTILL_DATA", str(tmp_path))
    assert default_folder() == tmp_path / "fashion-mnist"


@needs_full
def test_the_bundled_test_part_is_the_full_one():
    one, other = bundled("test"), full("test")
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)


@needs_full
def test_valid_and_test_are_the_original_test_set():
    parts = [full("test"), full("valid")]
    original, labels = fashion.read_idx("t10k", default_folder())
    assert [len(part.images) for part in parts] == [2000, 8000]

    def keys(images, labels):
        return sorted(bytes([label]) + image.numpy().tobytes() for image, label in zip(images, labels, strict=True))

    assert keys(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts])) == keys(original, labels)


@needs_full
def test_the_bundled_training_pictures_are_the_first_of_each_class():
    images, labels = fashion.read_idx("train", default_folder())
    assert images.shape == (60000, 1, 28, 28)
    ours = torch.cat([bundled("train").images, bundled("valid").images])
    for c in (0, 7):
        assert torch.equal(ours[c::10], images[labels == c][:500])


@needs_full
def test_placed_files_read_back(tmp_path):
    place(default_folder(), tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == sorted(FILES_SHA256)
    shutil.rmtree(tmp_path / "copy")


def test_records_are_the_three_parts_in_their_order():
    source = fashion.source()
    assert source.count == 7000
    assert source.classes == fashion.CLASSES
    tail = list(source.records(6995))
    assert [record.key for record in tail] == [f"test/{index:05d}" for index in range(1995, 2000)]
    test = fashion.bundled("test")
    for record, image, label in zip(tail, test.images[1995:], test.labels[1995:], strict=True):
        assert record.label == int(label)
        assert all(torch.equal(channel, image[0]) for channel in record.image)
    first = next(source.records(0))
    assert first.key == "train/00000"
    assert torch.equal(first.image[0], fashion.bundled("train").images[0, 0])
