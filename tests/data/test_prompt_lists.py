import json

import pytest
from PIL import Image

from hidistill.data.prompt_lists import read


def mjhq(path, entries, pictures=True):
    path.mkdir(parents=True)
    (path / "meta_data.json").write_text(json.dumps(entries))
    for key, row in entries.items() if pictures else ():
        place = path / "mjhq30k_imgs" / row["category"] / f"{key}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(place)
    return path


ENTRIES = {"k1": {"category": "animals", "prompt": "a cat"}, "k2": {"category": "food", "prompt": "a pie "}}


def test_the_layout_of_mjhq(tmp_path):
    found = read(mjhq(tmp_path / "m", ENTRIES))
    assert [(item.key, item.prompt, item.category, item.real.name) for item in found.items] == [
        ("k1", "a cat", "animals", "k1.jpg"), ("k2", "a pie", "food", "k2.jpg"),
    ]  # fmt: skip
    assert found.notes == ["2 prompts of 2 categories: this is not MJHQ-30K, only its layout"]
    assert read(mjhq(tmp_path / "n", ENTRIES, pictures=False)).items[0].real is None
    other = read(mjhq(tmp_path / "o", ENTRIES | {"k2": {"category": "food", "prompt": "a tart"}}))
    assert other.digest != found.digest


def test_ten_times_three_thousand_are_mjhq_30k(tmp_path):
    entries = {f"{c}-{i}": {"category": f"c{c}", "prompt": "x"} for c in range(10) for i in range(3000)}
    assert read(mjhq(tmp_path / "m", entries, pictures=False)).notes == []


def test_what_is_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match=r"has no meta_data.json"):
        read(tmp_path)
    for content in ("[]", "{", '{"a": {"prompt": "x"}}', '{"a": 3}'):
        (tmp_path / "meta_data.json").write_text(content)
        with pytest.raises(ValueError, match="is not in MJHQ-30K's layout"):
            read(tmp_path)
    for content in ("{}", '{"a": {"category": "b", "prompt": " "}}'):
        (tmp_path / "meta_data.json").write_text(content)
        with pytest.raises(ValueError, match="empty prompts of"):
            read(tmp_path)
    whole = mjhq(tmp_path / "m", ENTRIES)
    (whole / "mjhq30k_imgs" / "food" / "k2.jpg").unlink()
    with pytest.raises(ValueError, match="lacks the pictures of 1 prompts: k2"):
        read(whole)
    with pytest.raises(FileNotFoundError, match="there are no prompts"):
        read(tmp_path / "none.jsonl")


def test_genevals_list(tmp_path):
    rows = [{"tag": "counting", "include": [{"class": "bench", "count": 2}], "prompt": "two benches"}]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(path)
    assert found.kind == "geneval"
    (item,) = found.items
    assert (item.key, item.category, item.prompt, item.record) == ("00000", "counting", "two benches", rows[0])
    path.write_text('{"tag": "x", "prompt": ""}\n')
    with pytest.raises(ValueError, match=r"lines 1 have no prompt"):
        read(path)
    (tmp_path / "plain.txt").write_text("a cat\n")
    assert read(tmp_path / "plain.txt") is None
