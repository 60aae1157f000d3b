"""Votes in their file: nothing is lost, nothing is counted twice, broken lines are named."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from hidistill.view.preference import Preference
from hidistill.view.votes import Vote, append, read, refuse_place

VOTE = Vote("student [a]", "teacher [b]", "Bag <b>", 7, "first", "second", "2026-01-01T00:00:00+00:00")


def test_what_was_appended_is_read(tmp_path):
    path = tmp_path / "votes.jsonl"
    assert read(path).votes == ()
    votes = [replace(VOTE, choice=choice, seed=i) for i, choice in enumerate(["first", "tie", "second", "first"])]
    for vote in votes:
        append(path, vote)
    append(path, replace(VOTE, first="student [c]"))
    found = read(path)
    assert list(found.votes[:4]) == votes
    assert found.of(VOTE.pair) == Preference(2, 1, 1)
    assert found.unreadable == []


def test_a_cut_off_line_spoils_none_after_it(tmp_path):
    path = tmp_path / "votes.jsonl"
    append(path, VOTE)
    kept = path.read_text()
    path.write_text(kept + kept[: len(kept) // 2])
    append(path, VOTE)
    found = read(path)
    assert len(found.votes) == 2
    assert found.unreadable == [2]


@pytest.mark.parametrize(
    "change", [{"choice": "left"}, {"seed": "7"}, {"left": "tie"}, {"more": 1}, {"asked": None}], ids=str
)
def test_lines_that_are_no_votes(tmp_path, change):
    path = tmp_path / "votes.jsonl"
    append(path, VOTE)
    line = json.loads(path.read_text()) | change
    path.write_text(json.dumps(line) + "\n")
    assert read(path) == ([], [1])


def test_processes_vote_in_one_file(tmp_path):
    path = tmp_path / "votes.jsonl"
    code = (
        "import sys; from pathlib import Path; from hidistill.view.votes import Vote, append\n"
        "for i in range(50): append(Path(sys.argv[1]), Vote('a', 'b', 'x' * 3000, i, 'first', 'first', 'now'))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert read(path).of(("a", "b")) == Preference(100, 0, 0)


def test_places_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        refuse_place(tmp_path)
    with pytest.raises(ValueError, match=r"ends in \.jsonl"):
        refuse_place(tmp_path / "votes.csv")
    with pytest.raises(ValueError, match="there is no folder"):
        refuse_place(tmp_path / "none" / "votes.jsonl")
