import json
import tarfile
from io import BytesIO

import numpy as np
import pytest
import small_pipelines as small
import torch
from PIL import Image

from hidistill.cli import main
from hidistill.data.cache import Cache, CacheError
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.folder import Folder
from hidistill.foreign.text import prompt_encoder, text_digest
from hidistill.recipes.caching import reader, write_cache

SIZE = 16
COLORS = ("red", "green", "blue", "white", "black")
THINGS = ("cat", "dog", "birds", "horse", "boat", "house", "mat", "snow")
LONG = "a red cat " * 200


def caption(i):
    return f"a {COLORS[i % 5]} {THINGS[i % 8]}"


def pixels(i, gray=False):
    found = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return found[:, :, :1].repeat(3, 2) if gray else found


def captioned(root, count=40, text=caption):
    root.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(pixels(i)).save(root / f"{i:03d}.png")
    lines = [json.dumps({"file_name": f"{i:03d}.png", "text": text(i)}) + "\n" for i in range(count)]
    (root / "metadata.jsonl").write_text("".join(lines))
    return root


def classed(root, classes, count=40, gray=False):
    for i in range(count):
        place = root / f"class{i % classes}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(i, gray)).save(place / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def sana(tmp_path_factory):
    return small.saved(small.sana(), tmp_path_factory.mktemp("teachers") / "sana")


@pytest.fixture(scope="module")
def made(tmp_path_factory, sana):
    root = tmp_path_factory.mktemp("made")
    images = captioned(root / "images")
    write_cache(teacher=sana, images=str(images), out=root / "cache")
    return root


def test_rows_are_what_the_teacher_s_own_encoders_make(made, sana):
    cache, codec, encoder = Cache.open(made / "cache"), codec_of(Folder(sana)), prompt_encoder(Folder(sana))
    assert (cache.made_from["size"], cache.shape) == (SIZE, (4, 8, 8))
    cache.check(codec_digest=codec.digest, text_digest=text_digest(Folder(sana)))
    for part in ("valid", "test"):
        found = cache.split(part)
        for i, key in enumerate(found.keys):
            number = int(key[:3])
            image = torch.from_numpy(pixels(number)).permute(2, 0, 1)
            assert torch.equal(found.images[i], image)
            torch.testing.assert_close(found.x[i], codec.encode(image[None].float() / 255)[0])
            assert found.captions[i] == caption(number)
            for name, value in encoder([caption(number)]).items():
                torch.testing.assert_close(found.cond[name][i], value[0])
    assert all(torch.equal(cache.null[name], value) for name, value in encoder.null().items())
    batch = cache.batch_at(0, batch_size=4, seed=0)
    assert batch.cond["mask"].dtype == cache.null["mask"].dtype
    assert cache.classes == []


def test_the_same_call_again_does_nothing_and_another_teacher_is_refused(made, sana, tmp_path):
    images = str(made / "images")
    before = {path: path.read_bytes() for path in sorted((made / "cache").iterdir())}
    again = write_cache(teacher=sana, images=images, out=made / "cache")
    assert again.summary.encoded == 0
    assert {path: path.read_bytes() for path in sorted((made / "cache").iterdir())} == before
    torch.manual_seed(1)
    other = small.saved(small.sana(), tmp_path / "other")
    with pytest.raises(CacheError, match=r"the autoencoder: .* there, .* here; the text encoders: .* there"):
        write_cache(teacher=other, images=images, out=made / "cache")
    with pytest.raises(CacheError, match=r"the pictures or prompts: .*; the size: 16 there, 32 here"):
        write_cache(teacher=sana, images=images, out=made / "cache", size=32)
    with pytest.raises(CacheError, match="the text encoders"):
        Cache.open(made / "cache").check(text_digest=text_digest(Folder(other)))


def test_labels_of_folders_for_a_teacher_with_classes(tmp_path):
    teacher = small.saved(small.dit(num_embeds_ada_norm=3), tmp_path / "dit")
    images = classed(tmp_path / "images", 3)
    made = write_cache(teacher=teacher, images=str(images), out=tmp_path / "cache", dtype="bfloat16")
    cache = Cache.open(tmp_path / "cache")
    assert cache.condition == "label"
    assert cache.null == {}
    assert cache.classes == ["class0", "class1", "class2"]
    assert cache.content["made_from"]["teacher"] == {"pipeline": "DiTPipeline", "family": "dit"}
    part = cache.split("test")
    assert part.cond.tolist() == [int(key[5]) for key in part.keys] == part.split.labels.tolist()
    assert "AutoencoderKL and labels" in made.words
    with pytest.raises(ValueError, match="the source has 4 classes, and the teacher 3"):
        write_cache(teacher=teacher, images=str(classed(tmp_path / "four", 4)), out=tmp_path / "more")
    with pytest.raises(ValueError, match="the source has no classes, and the teacher 3"):
        write_cache(teacher=teacher, images=str(captioned(tmp_path / "none")), out=tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_fewer_classes_are_told(tmp_path, caplog):
    teacher = small.saved(small.dit(num_embeds_ada_norm=3), tmp_path / "dit")
    with caplog.at_level("INFO"):
        write_cache(teacher=teacher, images=str(classed(tmp_path / "images", 2)), out=tmp_path / "cache")
    assert "the source has 2 classes and the teacher 3: they are taken for its first ones" in caplog.text
    assert "no captions; 2 classes by sub-folder" in caplog.text


def test_classes_are_matched_by_the_names_that_the_teacher_has(tmp_path, caplog):
    teacher = small.saved(small.dit(num_embeds_ada_norm=3), tmp_path / "dit")
    index = json.loads((teacher / "model_index.json").read_text())
    index["id2label"] = {"0": "a cat, class2", "1": "Class0", "2": "class1"}
    (teacher / "model_index.json").write_text(json.dumps(index))
    images = classed(tmp_path / "images", 3)
    with caplog.at_level("INFO"):
        write_cache(teacher=teacher, images=str(images), out=tmp_path / "cache", workers=2)
    assert "classes are matched by their names" in caplog.text
    cache = Cache.open(tmp_path / "cache")
    assert cache.classes == ["class2", "class0", "class1"]
    part = cache.split("test")
    assert part.cond.tolist() == [(int(key[5]) + 1) % 3 for key in part.keys] == part.split.labels.tolist()
    with pytest.raises(ValueError, match="are the teacher's labels \\[1, 2\\]"):
        write_cache(teacher=teacher, images=str(classed(tmp_path / "two", 2)), out=tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_a_teacher_of_gray_pixels(tmp_path):
    teacher = small.saved(small.ddpm(), tmp_path / "ddpm")
    write_cache(teacher=teacher, images=str(classed(tmp_path / "gray", 1, gray=True)), out=tmp_path / "cache")
    cache = Cache.open(tmp_path / "cache")
    assert cache.shape == (1, SIZE, SIZE)
    part = cache.split("test")
    torch.testing.assert_close(part.x, 2 * (part.images.float() / 255) - 1)
    with pytest.raises(ValueError, match="has color"):
        write_cache(teacher=teacher, images=str(classed(tmp_path / "color", 1)), out=tmp_path / "other")


def test_prompts_alone(tmp_path, sana):
    (tmp_path / "prompts.txt").write_text("".join(f"{caption(i)}\n" for i in range(40)))
    made = write_cache(teacher=sana, images=str(tmp_path / "prompts.txt"), out=tmp_path / "cache")
    cache = Cache.open(tmp_path / "cache")
    assert not cache.has_latents
    assert made.size == 0
    assert cache.cond_at(0, batch_size=3, seed=0)["text"].shape == (3, 300, 16)
    with pytest.raises(CacheError, match="prompts alone"):
        cache.batch_at(0, batch_size=3, seed=0)
    teacher = small.saved(small.dit(), tmp_path / "dit")
    with pytest.raises(ValueError, match="a dit is not conditioned by prompts"):
        write_cache(teacher=teacher, images=str(tmp_path / "prompts.txt"), out=tmp_path / "other")


def test_missing_and_long_captions(tmp_path, sana):
    with pytest.raises(ValueError, match="no captions, and a sana is conditioned by prompts"):
        write_cache(teacher=sana, images=str(classed(tmp_path / "none", 1)), out=tmp_path / "cache")
    images = captioned(tmp_path / "images", text=lambda i: LONG if i == 7 else caption(i))
    with pytest.raises(ValueError, match=r"'a red cat .* has 602 tokens, and a SanaPipeline takes 300"):
        write_cache(teacher=sana, images=str(images), out=tmp_path / "cache")
    made = write_cache(teacher=sana, images=str(images), out=tmp_path / "cache", longer="cut")
    assert made.summary.cut == {"text_encoder": 1}
    assert sum(made.summary.rows.values()) == 40


def test_broken_pictures(tmp_path, sana):
    images = captioned(tmp_path / "images")
    whole = (images / "005.png").read_bytes()
    (images / "005.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"005\.png"):
        write_cache(teacher=sana, images=str(images), out=tmp_path / "cache")
    made = write_cache(teacher=sana, images=str(images), out=tmp_path / "cache", broken="skip")
    assert made.summary.broken == ["005.png"]
    assert sum(made.summary.rows.values()) == 39


def test_sizes(tmp_path, sana):
    images = str(captioned(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"size=17: .* multiples of 2; give e\.g\. 16"):
        write_cache(teacher=sana, images=images, out=tmp_path / "cache", size=17)
    flux = small.saved(small.flux(), tmp_path / "flux")
    with pytest.raises(ValueError, match=r"does not say for which size it is made; .*--size"):
        write_cache(teacher=flux, images=images, out=tmp_path / "cache")
    wide = small.saved(small.ddpm(sample_size=(8, 16)), tmp_path / "wide")
    with pytest.raises(ValueError, match=r"is made for samples of \[8, 16\]"):
        write_cache(teacher=wide, images=images, out=tmp_path / "cache")
    write_cache(teacher=sana, images=images, out=tmp_path / "cache", size=8)
    assert Cache.open(tmp_path / "cache").shape == (4, 4, 4)


def tar(path, first, count):
    with tarfile.open(path, "w") as file:
        for i in range(first, first + count):
            image = BytesIO()
            Image.fromarray(pixels(i)).save(image, "PNG")
            for name, content in ((f"{i:03d}.png", image.getvalue()), (f"{i:03d}.txt", caption(i).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, BytesIO(content))


def test_parts_of_the_folder_s_own(tmp_path, sana):
    for part, count in (("train", 12), ("validation", 5), ("test", 7)):
        captioned(tmp_path / "images" / part, count)
    made = write_cache(teacher=sana, images=str(tmp_path / "images"), out=tmp_path / "cache", workers=2)
    assert made.summary.rows == {"train": 12, "valid": 5, "test": 7}
    assert Cache.open(tmp_path / "cache").split("valid").keys == [f"valid/{i:03d}.png" for i in range(5)]


def test_every_kind_of_source_gives_the_same_rows(tmp_path, made, sana):
    datasets = pytest.importorskip("datasets")
    tar(tmp_path / "a-0.tar", 0, 25)
    tar(tmp_path / "a-1.tar", 25, 15)
    rows = {"image": [Image.fromarray(pixels(i)) for i in range(40)], "text": [caption(i) for i in range(40)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    expected = Cache.open(made / "cache")
    for number, images in enumerate((str(tmp_path / "a-{0..1}.tar"), f"datasets:{tmp_path / 'saved'}")):
        out = tmp_path / f"cache{number}"
        write_cache(teacher=sana, images=images, out=out)
        found = Cache.open(out)
        for step in range(3):
            one, two = (each.batch_at(step, batch_size=8, seed=1) for each in (found, expected))
            assert torch.equal(one.x, two.x)
            assert torch.equal(one.cond["text"], two.cond["text"])


def test_names_of_sources():
    def called(images):
        read = reader(images, size=8, broken="refuse")
        return read.func.__module__.rpartition(".")[2], read.func.__name__, str(read.args[0]), read.keywords

    assert called("pictures") == ("captioned", "read", "pictures", {"size": 8, "broken": "refuse"})
    assert called("a/{0..3}.tar") == ("shards", "read", "a/{0..3}.tar", {"size": 8, "broken": "refuse"})
    assert called("words.jsonl") == ("prompts", "read", "words.jsonl", {})
    for name, split in (("", "train"), (":test", "test"), (":train[:10%]", "train[:10%]")):
        assert called(f"datasets:some/name{name}") == (
            "hub", "mapped", "some/name", {"split": split, "size": 8, "broken": "refuse"}
        )  # fmt: skip
    with pytest.raises(ValueError, match="on the network"):
        reader("https://somewhere/a.tar", size=8, broken="refuse")
    with pytest.raises(ValueError, match="names no dataset"):
        reader("datasets:", size=8, broken="refuse")


def test_the_command_tells_what_it_made(tmp_path, sana, capsys):
    images = captioned(tmp_path / "images", text=lambda i: LONG if i == 7 else caption(i))
    (images / "005.png").write_bytes(b"torn")
    words = ["cache", "--teacher", str(sana), "--images", str(images), "--out", str(tmp_path / "cache")]
    assert main(words) == 2
    assert "005.png" in capsys.readouterr().err
    options = ["--broken", "skip", "--longer", "cut", "--workers", "2", "--dtype", "float16"]
    assert main([*words, *options]) == 0
    told = capsys.readouterr().out
    for line in (
        "captions from the field text of metadata.jsonl",
        "latents of its AutoencoderDC and prompts as text, mask",
        "16 pixels a side",
        "left out: 1 broken pictures: 005.png",
        "cut: 1 captions for text_encoder",
        "captions: 39 different ones, each in one part alone",
        "40 records in ",
    ):
        assert line in told
    assert main([*words, *options]) == 0
    assert "everything was there already" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "images"), *options]) == 2
    assert "use an empty folder as --out" in capsys.readouterr().err
