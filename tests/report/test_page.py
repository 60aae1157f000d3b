import json
from html import escape
from html.parser import HTMLParser

import pytest
import torch
from made_up import full_evaluation, metrics, row, write_run
from PIL import Image

from hidistill.report.folder import read
from hidistill.report.page import write
from hidistill.report.scores import best_teacher, full_teacher, generated, role, winners
from hidistill.report.words import command, headline, table

VOID = {"meta", "img", "source", "br"}


class Reader(HTMLParser):
    """Keeps open elements, addresses, ids and text."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids, self.text, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [text for name, text in attrs if name in ("src", "href", "srcset", "xlink:href")]
        self.ids += [text for name, text in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("run"), torch.Generator().manual_seed(0)
    kinds = ("real", "teacher", "sketch", "student")
    write_run(folder, {kind: torch.rand(12, 1, 28, 28, generator=generator) for kind in kinds}, generator)
    return folder


@pytest.fixture(scope="module")
def page(run_folder):
    return write(run_folder).read_text(encoding="utf-8")


def test_the_page_is_one_file(page):
    reader = parsed(page)
    assert reader.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in reader.addresses)
    assert "://" not in page
    assert "@import" not in page
    assert "url(" not in page.replace("url(#", "")
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)


def test_ids_are_unique_and_anchors_lead_somewhere(page):
    reader = parsed(page)
    assert len(reader.ids) == len(set(reader.ids))
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= set(reader.ids)


def test_every_row_and_number_is_there(page):
    text = " ".join(parsed(page).text)
    for line in full_evaluation()["rows"]:
        assert line["name"] in text
        assert f"{line['metrics']['fd/cnn']:.3f}" in text
    for words in ("500 images", "seed 7", "2,000 held-out", "not FID", "a small classifier"):
        assert words in text
    assert "Not available" not in text


def test_what_users_wrote_is_escaped(tmp_path, page):
    assert "<no>" not in page
    assert "&lt;no&gt;" in page
    numbers = {"fd/<i>": 1.0, "<u>": 2.0}
    rows = [row("<script>alert(1)</script>", "student", 1, 1) | {"metrics": numbers}]
    evaluation = {"n": 10, "seed": "<s>", "features": {"<i>": "<em>"}, "rows": rows}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    reader = parsed(write(tmp_path).read_text(encoding="utf-8"))
    assert not {"script", "i", "u", "s", "em"} & set(reader.tags)
    assert "<script>alert(1)</script>" in reader.text


def test_pictures_lie_beside_the_page(run_folder, page):
    assert page
    names = {path.name for path in (run_folder / "pictures").iterdir()}
    assert {"comparison.png", "attention.png", "real.png", "student.png", "sketch-losses.png"} <= names
    assert {"probe-fd-cnn.png", "cost-nfe-cnn.png", "cost-seconds-net.png", "guidance-cnn.png"} <= names
    with Image.open(run_folder / "pictures" / "real.png") as picture:
        assert picture.size == (10 * 84 + 9 * 2, 2 * 84 + 2)


def test_writing_again_gives_the_same_page(tmp_path):
    evaluation = {"n": 10, "seed": 0, "rows": full_evaluation()["rows"][:2]}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    assert write(tmp_path).read_bytes() == write(tmp_path).read_bytes()


def test_a_folder_of_no_run_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "boots").mkdir()
    with pytest.raises(ValueError, match=r"is no run folder: it has neither recipe\.json nor"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["boots"]


def test_a_run_that_has_only_begun_has_a_page_that_says_so(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    text = " ".join(parsed(write(tmp_path).read_text(encoding="utf-8")).text)
    assert text.count("Not available") == 7
    assert "no evaluation of a teacher or of a student" in text


def test_a_run_without_a_student_says_so(tmp_path):
    rows = [row("teacher, 50 steps", "teacher", 50, 100, scale=1.5, **metrics(1.357))]
    (tmp_path / "evaluation.json").write_text(json.dumps({"n": 10, "seed": 0, "rows": rows}))
    text = " ".join(parsed(write(tmp_path).read_text(encoding="utf-8")).text)
    assert "1.357" in text
    assert "no one-step student to compare with" in text
    assert "The evaluation has no sketch and no student." in text


def test_the_headline_compares_with_the_teacher_at_the_same_and_at_the_best_scale():
    text = headline(full_evaluation())
    assert "1 ms instead of 55 ms an image, <b>55 times faster</b>" in text
    assert "student <b>1.234</b>, teacher <b>1.280</b> at guidance scale 1.5, 1.111 at its best (scale 1)" in text


def test_the_headline_calls_nothing_the_best_where_one_scale_was_measured():
    rows = [line for line in full_evaluation()["rows"] if line["scale"] in (None, 1.5)]
    text = headline({"rows": rows})
    assert "teacher <b>1.280</b> at guidance scale 1.5.<" in text
    assert "best" not in text
    cheaper = row("teacher, 8 steps", "teacher", 8, 16, scale=1.5, **metrics(1.1))
    text = headline({"rows": [*rows, cheaper]})
    assert "at guidance scale 1.5, 1.100 in 8 steps." in text
    assert "best" not in text


@pytest.mark.parametrize(("errors", "most", "tables"), [(False, 9, 3), (True, 6, 4)])
def test_tables_are_narrow_enough_for_the_page(errors, most, tables):
    evaluation = full_evaluation()
    if errors:
        for line in evaluation["rows"]:
            line["left_out"] = {"fd/cnn": [line["metrics"]["fd/cnn"] + x for x in (-0.3, 0.3)]}
    for line in evaluation["rows"]:
        line["metrics"] |= {f"{name}/{space}": 0.5 for name in ("density", "coverage", "precision") for space in "abc"}
    parts = table(evaluation).split("<table>")[1:]
    assert len(parts) == tables
    assert parts[0].count("&nbsp;±&nbsp;0.300") == errors * len(evaluation["rows"])
    for part in parts:
        assert part.count("<th scope='col'>") <= 1 + most
        assert all(escape(line["name"]) in part for line in evaluation["rows"])
        rows = part.count("<tr") - 1
        assert part.count("<td") == rows * (part.count("<th scope='col'>") - 1)
    assert sum(part.count("<small>") for part in parts) == 3 + 9
    assert [part.count("guidance") for part in parts] == [1] + [0] * (tables - 1)


def test_roles_and_references():
    rows = generated(full_evaluation())
    assert [role(line) for line in rows].count("teacher") == 7
    assert {role(line) for line in rows} == {"teacher", "sketch", "student"}
    assert role({"kind": "student", "name": "no sketch, 1 step"}) == "no sketch"
    assert (full_teacher(rows) or {})["name"] == "teacher, 50 steps"
    no_ends = [line | {"metrics": {"fd/cnn": 1.0}} for line in rows]
    assert (full_teacher(no_ends) or {})["name"] == "teacher, 50 steps", "steps are varied at the distilled scale"
    sweep = [row(f"teacher at {s}", "teacher", 50, 100, scale=s, end_distance=abs(s - 2.0)) for s in (1.0, 2.0, 3.0)]
    assert (full_teacher(sweep) or {})["scale"] == 2.0
    assert (best_teacher(rows, "fd/cnn") or {})["scale"] == 1.0


def test_the_best_of_a_column():
    rows = [{"metrics": {"fd/a": 2.0, "recall/a": 0.5, "high_frequency": 1.2, "end_distance": 0.0, "odd": 1.0}}]
    rows += [{"metrics": {"fd/a": 1.0, "recall/a": 0.4, "high_frequency": 0.9, "end_distance": 0.2, "odd": 2.0}}]
    rows += [{"metrics": {"fd/a": None, "recall/a": 0.5, "high_frequency": 0.5, "end_distance": 0.3}}]
    best = {metric: winners(rows, metric) for metric in rows[0]["metrics"]}
    assert best == {"fd/a": {1}, "recall/a": {0, 2}, "high_frequency": {1}, "end_distance": {1}, "odd": set()}


def test_the_command_repeats_the_recipe():
    given = {
        "sketch_steps": 3,
        "fast": False,
        "slow": True,
        "data": None,
        "times": [1.0, 0.5],
        "name": "a b",
        "none": [],
    }
    words = command({"recipe": "fashion.distill", "arguments": given})
    assert words == "hidistill train fashion.distill --sketch-steps 3 --no-fast --slow --times 1.0 0.5 --name 'a b'"


def test_a_resumed_journal_counts_every_step_once(tmp_path):
    lines = [
        {"kind": "step", "stage": "s", "step": i, "global_step": i, "student/loss": v}
        for i, v in ((0, 1), (1, 2), (1, 3))
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "st')
    run = read(tmp_path)
    assert [line["student/loss"] for line in run.journal] == [1, 3]
    assert "cut off" in run.notes[0]
    assert "cut off" in write(tmp_path).read_text()
    (tmp_path / "metrics.jsonl").write_text("oops\n" + text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is not JSON"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_broken_files_are_named(tmp_path, content):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=r"evaluation\.json.*delete it or run again"):
        write(tmp_path)


def test_broken_arrays_and_missing_folders_are_named(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "grids.npz").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"grids\.npz is no readable npz file"):
        write(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        write(tmp_path / "nowhere")


def test_intervals_latency_and_notes_are_shown_where_they_are_known():
    evaluation = full_evaluation()
    plain = table(evaluation)
    assert "ms alone" not in plain
    assert "±" not in plain
    for line in evaluation["rows"]:
        if line["kind"] != "real":
            line["latency_seconds"] = 0.0042
            line["left_out"] = {"fd/cnn": [line["metrics"]["fd/cnn"] + x for x in (-0.3, 0.3)]}
    evaluation |= {"notes": ["500 images for 1,280 features & more"], "labels": "uniform"}
    text = table(evaluation)
    assert "<th scope='col'>ms alone</th>" in text
    assert "4.2" in text
    assert "1.234&nbsp;±&nbsp;0.300" in text
    assert "jackknife" in text
    assert "500 images for 1,280 features &amp; more." in text
    assert "Classes were drawn uniformly." in text
    parsed(f"<div>{text}</div>")
