"""Pictures to be judged: what the ADM evaluator's files hold, and every way in which they can be wrong."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from hidistill.data.judged import BLOCK, read, statistics, write_batch


def pictures(n=5, c=3, h=6, w=4):
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8)


def saved(path, images):
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        array = image.movedim(0, -1).numpy()
        Image.fromarray(array[..., 0] if len(image) == 1 else array).save(path / f"{i:03}.png")
    return path


def all_of(judged):
    return torch.cat(list(judged.blocks()))


def test_a_batch_comes_back_as_numpy_and_we_read_it(tmp_path):
    images, labels = pictures(2 * BLOCK + 3), torch.arange(2 * BLOCK + 3) % 7
    path = tmp_path / "new" / "samples.npz"
    write_batch(path, images.split(400), count=len(images), shape=images.shape[1:], labels=labels)
    with np.load(path, allow_pickle=False) as content:
        assert np.array_equal(content["arr_0"], images.movedim(1, -1).numpy())
        assert np.array_equal(content["arr_1"], labels.numpy())
    found = read(path)
    assert (found.count, found.shape) == (len(images), (3, 6, 4))
    assert torch.equal(all_of(found), images)
    assert torch.equal(found.labels, labels)
    assert [len(block) for block in found.blocks()] == [BLOCK, BLOCK, 3]


def test_gray_pictures_are_written_in_color_and_numpys_own_files_are_read(tmp_path):
    images = pictures(4, c=1)
    write_batch(tmp_path / "gray.npz", [images], count=4, shape=images.shape[1:], labels=None)
    found = read(tmp_path / "gray.npz")
    assert found.labels is None
    assert torch.equal(all_of(found), images.repeat(1, 3, 1, 1))
    np.savez_compressed(tmp_path / "own.npz", images=images.numpy(), labels=np.arange(4))
    assert torch.equal(all_of(read(tmp_path / "own.npz")), images)


def test_a_batch_of_too_few_is_not_left_behind(tmp_path):
    with pytest.raises(ValueError, match="5 pictures came for a batch of 6"):
        write_batch(tmp_path / "x.npz", [pictures()], count=6, shape=(3, 6, 4), labels=None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_and_without_classes(tmp_path):
    a, b = pictures(3), pictures(2)
    saved(tmp_path / "flat", a)
    assert torch.equal(all_of(read(tmp_path / "flat")), a)
    saved(tmp_path / "deep" / "x", a)
    saved(tmp_path / "deep" / "y", b)
    found = read(tmp_path / "deep")
    assert torch.equal(all_of(found), torch.cat([a, b]))
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    gray = pictures(2, c=1)
    assert torch.equal(all_of(read(saved(tmp_path / "gray", gray))), gray)


def test_mixed_sizes_modes_and_broken_pictures_are_named(tmp_path):
    saved(tmp_path, pictures(2))
    Image.new("RGB", (5, 6)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=r"odd.png is 5 x 6 of mode RGB, 000.png 4 x 6 .* one size and mode"):
        all_of(read(tmp_path))
    Image.new("RGBA", (4, 6)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=r"odd\.png is 4 x 6 of mode RGBA"):
        all_of(read(tmp_path))
    (tmp_path / "odd.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"odd.png is no whole picture"):
        all_of(read(tmp_path))


def test_nothing_and_something_else(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder and no file .*none.npz"):
        read(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text.npz is no readable .npz file"):
        read(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(ValueError, match=r"holds the arrays a, b; a batch has its pictures in arr_0"):
        read(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "arr_0 is float32"),
        (np.zeros((2, 4, 4), np.uint8), r"of shape \(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"of shape \(2, 4, 4, 4\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "at least one"),
        (np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)), "stored by columns"),
        (np.array([{"x": 1}], dtype=object), "only pickle reads"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path, array, words):
    np.savez(tmp_path / "x.npz", arr_0=array)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "x.npz")


def test_labels_that_do_not_fit(tmp_path):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for labels in (np.arange(3), np.array([0.5, 1]), np.array([-1, 0])):
        np.savez(tmp_path / "x.npz", arr_0=images, arr_1=labels)
        with pytest.raises(ValueError, match="labels are integers from 0, one for each of the 2"):
            read(tmp_path / "x.npz")


def test_a_file_that_is_cut_off(tmp_path):
    write_batch(tmp_path / "x.npz", [pictures()], count=5, shape=(3, 6, 4), labels=None)
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[:200])
    with pytest.raises(ValueError, match="no readable"):
        read(tmp_path / "cut.npz")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (9, 6, 4, 3)})
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as content:
        content.writestr("arr_0.npy", head.getvalue() + bytes(100))
    with pytest.raises(ValueError, match="ends before its arrays do"):
        all_of(read(tmp_path / "short.npz"))
    with zipfile.ZipFile(tmp_path / "headless.npz", "w") as content:
        content.writestr("arr_0.npy", b"no array")
    with pytest.raises(ValueError, match="holds a damaged array"):
        read(tmp_path / "headless.npz")


def test_statistics_as_far_as_there_are_some(tmp_path):
    mu, sigma = np.arange(3.0), np.eye(3)
    np.savez(tmp_path / "both.npz", mu=mu, sigma=sigma, mu_s=mu.astype(np.float32), sigma_s=sigma)
    found = statistics(tmp_path / "both.npz")
    assert set(found) == {"pooled", "spatial"}
    assert found["spatial"][0].dtype == torch.float64
    assert torch.equal(found["pooled"][1], torch.eye(3, dtype=torch.float64))
    assert statistics(tmp_path) == {}
    np.savez(tmp_path / "none.npz", arr_0=mu)
    assert statistics(tmp_path / "none.npz") == {}
    np.savez(tmp_path / "half.npz", mu=mu)
    with pytest.raises(ValueError, match="only one of mu and sigma"):
        statistics(tmp_path / "half.npz")
    for broken in (np.eye(4), np.full((3, 3), np.nan)):
        np.savez(tmp_path / "odd.npz", mu=mu, sigma=broken)
        with pytest.raises(ValueError, match=r"finite, \(d,\) and \(d, d\)"):
            statistics(tmp_path / "odd.npz")
