import json

import pytest

from hidistill.records import (
    as_caption,
    caption_field,
    digest,
    first_caption,
    first_five,
    json_lines,
    refuse_start,
    text_of,
)


def test_the_one_field_that_is_the_caption():
    assert caption_field(["file_name", "prompt"], "here") == "prompt"
    assert caption_field(["file_name"], "here") is None
    with pytest.raises(ValueError, match=r"here has the fields text and caption, .*; leave one of them"):
        caption_field(["caption", "text"], "here")


def test_captions_are_strings_without_white_space_around():
    assert as_caption(" a \n b\n", "here") == "a \n b"
    assert as_caption(None, "here") == ""
    with pytest.raises(ValueError, match=r"here is \['a', 'b'\]; a caption is one string, so store one"):
        as_caption(["a", "b"], "here")


def test_text_files_are_utf_8_with_or_without_a_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffé".encode())
    assert text_of(tmp_path / "a.txt") == "é"
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 \(invalid start byte at byte 2\); save it as UTF-8"):
        text_of(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"a": 1}', "", '{"a": 2}'], "line 2, is empty; .* remove it"),
        (['{"a": 1}', '{"a": '], "line 2, is no JSON .*; write one object per line"),
        (["[1]"], r"line 1, is \[1\]; each line is one JSON object"),
    ],
)
def test_lines_that_are_no_objects_are_named(tmp_path, lines, message):
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        json_lines(tmp_path / "x.jsonl")


def test_json_lines_keep_line_separators_within_strings(tmp_path):
    # Python's splitlines would break lines at U+2028, which JSON allows in strings.
    rows = [{"text": "a\u2028b"}, {"text": "c\r\nd"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), newline="")
    assert json_lines(tmp_path / "x.jsonl") == rows


def test_where_a_source_may_begin():
    refuse_start(0, 0)
    refuse_start(3, 3)
    refuse_start(9, None)
    with pytest.raises(ValueError, match=r"records from 4 on: this source begins at 0 to 3; .*compare their digests"):
        refuse_start(4, 3)
    with pytest.raises(ValueError, match="begins at 0 or more"):
        refuse_start(-1, None)


def test_a_digest_knows_bounds_and_order():
    assert digest([["a", 1], "b"]) == digest([("a", 1), "b"])
    assert len({digest(x) for x in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", None], [["ab", "c"]])}) == 5


def test_what_people_are_shown():
    assert first_five([1, 2, 3]) == "1, 2, 3"
    assert first_five(range(1007)) == "0, 1, 2, 3, 4 and 1,002 more"
    assert first_caption({"k": "dog", "l": "cat"}) == "first caption (k): 'dog'"
    assert first_caption({"k": "x" * 130}) == f"first caption (k): '{'x' * 120}...'"
