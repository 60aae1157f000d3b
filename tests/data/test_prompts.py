import json

import pytest

from hidistill.data.prompts import read


def lines(path, prompts, field="prompt"):
    path.write_text("".join(json.dumps({field: prompt}) + "\n" for prompt in prompts))
    return path


def test_a_line_is_a_prompt(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa dog\r\n  é \u2028 cat\nlast".encode())
    source = read(path)
    assert [record[:4] for record in source.records(0)] == [
        ("1", None, None, "a dog"),
        ("2", None, None, "é \u2028 cat"),
        ("3", None, None, "last"),
    ]
    assert (source.count, source.classes) == (3, ())
    assert source.notes == ("3 prompts, no pictures", "first caption (1): 'a dog'")


@pytest.mark.parametrize("field", ["prompt", "caption", "text"])
def test_an_object_is_a_prompt(tmp_path, field):
    assert [record.caption for record in read(lines(tmp_path / "p.jsonl", ["a", "b\nc"], field)).records(0)] == [
        "a",
        "b\nc",
    ]


@pytest.mark.parametrize("start", range(5))
def test_the_middle_onwards_is_the_tail_of_the_whole(tmp_path, start):
    source = read(lines(tmp_path / "p.jsonl", "abcd"))
    assert list(source.records(start)) == list(source.records(0))[start:]


def test_a_source_begins_within_itself(tmp_path):
    with pytest.raises(ValueError, match="begins at 0 to 2"):
        read(lines(tmp_path / "p.jsonl", "ab")).records(3)


def test_both_formats_have_one_digest_which_tells_prompts_and_order(tmp_path):
    (tmp_path / "p.txt").write_text("a\nb\n")
    assert read(tmp_path / "p.txt").digest == read(lines(tmp_path / "p.jsonl", "ab")).digest
    digests = {read(lines(tmp_path / "p.jsonl", prompts)).digest for prompts in ("ab", "ba", "abc", ["ab"])}
    assert len(digests) == 4


def test_repeated_prompts_are_kept_and_told(tmp_path):
    source = read(lines(tmp_path / "p.jsonl", ["a", "b", "a", "b", "b", "c"]))
    assert source.count == 6
    assert "2 prompts occur more than once and are kept, e.g. 3 times 'b'" in source.notes


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
@pytest.mark.parametrize("text", ["", "\n"])
def test_empty_files_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"p\..* holds no prompts; write one per line"):
        read(tmp_path / name)


def test_empty_lines_are_named(tmp_path):
    (tmp_path / "p.txt").write_text("a\n\nb\n \n\n")
    with pytest.raises(ValueError, match=r"3 of 5 prompts are empty, those of lines 2, 4, 5; .*fill or remove"):
        read(tmp_path / "p.txt")
    with pytest.raises(ValueError, match="1 of 2 prompts are empty, those of lines 2"):
        read(lines(tmp_path / "p.jsonl", ["a", " "]))
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"text2": "b"}\n')
    with pytest.raises(ValueError, match="those of lines 2"):
        read(tmp_path / "p.jsonl")


def test_files_that_are_no_prompts(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*p\.txt; give"):
        read(tmp_path / "p.txt")
    with pytest.raises(ValueError, match=r"p\.csv: prompts come in files that end in \.txt or \.jsonl; rename"):
        read(tmp_path / "p.csv")
    with pytest.raises(ValueError, match="has the fields title; it needs one of prompt, caption and text, so rename"):
        read(lines(tmp_path / "p.jsonl", "ab", "title"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "text": "b"}')
    with pytest.raises(ValueError, match="text and prompt, each of which may be the caption"):
        read(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "id": 3}')
    assert "fields that are not used: id" in read(tmp_path / "p.jsonl").notes
