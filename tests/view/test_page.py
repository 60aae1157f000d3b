"""What the page answers, without a browser: against the samplers themselves, and in words for bad input."""

import asyncio
import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up import CLASSES, write_run
from PIL import Image

from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.sampling import euler, jump
from hidistill.seeds import fold_in, normal
from hidistill.teachers.dit import DiT, Size
from hidistill.view import blind
from hidistill.view.answers import Answers
from hidistill.view.cast import Match, Scene, Space
from hidistill.view.flow import along_field, along_map, frames
from hidistill.view.pairs import draw_pair, seeds_of
from hidistill.view.server import Guard, bound, is_loopback, warning
from hidistill.view.votes import read
from hidistill.view.wishes import IN_TURN, Wish, conditions, wish

NAMES = ("bag", "<i>coat</i>", "sandal")
FIELDS = {"asked": IN_TURN, "seed": "3", "count": 3, "student_steps": 1, "teacher_steps": 4, "scale": 1.5}


@pytest.fixture
def match():
    teacher = DiT(image_size=8, channels=1, classes=3, patch=4, size=Size(8, 2, 1), taps=(0, 1))
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    student = teacher.student()
    for module in (teacher, student):
        module.eval().requires_grad_(False)
    head = Adaptive(teacher.feature_channels).eval()
    return Match("run, student", student, "s", teacher, "t", Space((1, 8, 8), 3, NAMES), 1.5, head)


@pytest.fixture
def scene(match, tmp_path):
    images = {"student": torch.rand(8, 1, 12, 12), "real": torch.rand(8, 1, 12, 12)}
    run = tmp_path / "run"
    run.mkdir()
    write_run(run, images, torch.Generator().manual_seed(0))
    return Scene({match.name: match}, {"run": run}, tmp_path / "votes.jsonl")


def pictures(html):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_pairs_are_the_samplers_own_images(match):
    made = Wish(seed=3, count=4, student_steps=2, teacher_steps=3)
    pair = draw_pair(match, made)
    noise = normal([fold_in(3, "sample", i) for i in range(4)], (1, 8, 8))
    labels = torch.tensor([0, 1, 2, 0])
    own = match.space.codec.decode(jump(match.student, noise, cond=labels, times=(1.0, 0.5, 0.0)))
    torch.testing.assert_close(pair.student.images, own, atol=0.51 / 255, rtol=0)
    own = match.space.codec.decode(euler(Guided(match.teacher, 1.5), noise, cond=labels, steps=3))
    torch.testing.assert_close(pair.teacher.images, own, atol=0.51 / 255, rtol=0)
    assert (pair.teacher.nfe, pair.student.nfe) == (6, 2)


def test_the_page_shows_those_images_and_escapes_names(scene, match):
    html = Answers(scene).compare(match.name, **FIELDS)
    shown = pictures(html)
    assert len(shown) == 6
    pair = draw_pair(match, wish(match, **FIELDS))
    for i in range(3):
        np.testing.assert_array_equal(shown[2 * i], (pair.teacher.images[i, 0] * 255).round().byte().numpy())
        np.testing.assert_array_equal(shown[2 * i + 1], (pair.student.images[i, 0] * 255).round().byte().numpy())
    assert "<i>coat" not in html
    assert "&lt;i&gt;coat" in html
    assert html.count("alt=") == 6


def test_along_the_map_the_ends_are_noise_and_the_one_step_image(match):
    made = Wish(seed=1, count=2, teacher_steps=40)
    found = frames(match, made)
    cond, _ = conditions(match.space, made)
    noise, decode = normal(seeds_of(made), (1, 8, 8)), match.space.codec.decode
    for images in (found.teacher, found.student):
        torch.testing.assert_close(images[0], decode(noise))
    torch.testing.assert_close(found.student[-1], decode(jump(match.student, noise, cond=cond)))
    own = decode(euler(Guided(match.teacher, 1.5), noise, cond=cond, steps=40))
    torch.testing.assert_close(found.teacher[-1], own, atol=1e-5, rtol=1e-5)
    assert found.teacher_steps == 40


def test_a_true_flow_map_is_where_its_field_goes():
    """The field x has the flow map x_r = x_1 exp(r - 1), that is u = x (1 - exp(r - t)) / (t - r)."""

    class Exponential:
        def velocity(self, x_t, *, t, cond):
            return x_t

        def mean_velocity(self, x_t, *, t, r, cond):
            gap = (t - r)[:, None]
            return x_t * (1 - (-gap).exp()) / gap

    noise, times = torch.randn(5, 3, dtype=torch.float64), [1 - i / 20 for i in range(21)]
    cond = torch.zeros(5, dtype=torch.long)
    on_map = along_map(Exponential(), noise, cond=cond, times=times)
    for r, x in zip(times, on_map, strict=True):
        torch.testing.assert_close(x, noise * torch.tensor(r - 1, dtype=torch.float64).exp())
    errors = []
    for between in (4, 8):
        ends = along_field(Exponential(), noise, cond=cond, times=times, between=between)[-1]
        errors.append(float((ends - on_map[-1]).norm()))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)


def test_the_slider_has_a_frame_for_every_time(scene, match):
    html = Answers(scene).flow(match.name, **FIELDS)
    strips = pictures(html)
    assert len(strips) == 6
    assert all(strip.shape[:2] == (8, 21 * 8) for strip in strips)
    assert 'type="range"' in html


def test_attention_is_shown_for_both(scene, match):
    html = Answers(scene).attention(match.name, 0.3, **FIELDS)
    assert len(pictures(html)) == 2
    answers = Answers(scene)
    answers.compare(match.name, **FIELDS)
    assert answers.attention(match.name, 0.3, **FIELDS) == html  # the pair that is there already
    answers.compare(match.name, **FIELDS | {"seed": 4})
    assert answers.attention(match.name, 0.3, **FIELDS) == html
    headless = Scene({"x": replace(match, head=None, headless="no <head>")}, {}, scene.votes)
    said = Answers(headless).attention("x", 0.3, **FIELDS)
    assert 'role="alert"' in said
    assert "no &lt;head&gt;" in said


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("seed", "abc", r"seed &#x27;abc&#x27;: must be a whole number"),
        ("seed", "-1", "whole number from 0"),
        ("seed", "", "seed is empty"),
        ("seed", "9" * 50, "whole number"),
        ("seed", "<script>", "&lt;script&gt;"),
        ("asked", "bagg", "did you mean &#x27;bag&#x27;"),
        ("asked", "7", "labels are 0 to 2"),
        ("asked", "", "no class has this name"),
        ("count", 0, "number of images"),
        ("student_steps", 9, "student&#x27;s steps"),
        ("teacher_steps", None, "teacher&#x27;s steps is empty"),
        ("scale", "nan", "guidance scale"),
        ("scale", 21, "guidance scale"),
    ],
)
def test_bad_input_is_said_on_the_page(scene, match, field, value, words):
    said = Answers(scene).compare(match.name, **FIELDS | {field: value})
    assert 'role="alert"' in said
    assert words in said
    assert "<script>" not in said


def test_names_that_the_page_does_not_have(scene, tmp_path):
    answers = Answers(scene)
    assert "there is no student &#x27;x&#x27;" in answers.compare("x", **FIELDS)
    assert "there is no run &#x27;../..&#x27;" in answers.run("../..")


def test_a_blind_vote_is_written_as_it_was_meant(scene, match):
    answers, given = Answers(scene, session=5), {**FIELDS}
    del given["seed"], given["count"]
    sides = set()
    for number in range(6):
        found, html = answers.trial(match.name, number, **given)
        sides.add(found.first_is_left)
        assert len(pictures(html)) == 2
        assert "teacher" not in html
        assert "student" not in html
        student = draw_pair(match, wish(match, asked=found.asked, seed=found.seed, count=1, scale=1.5, teacher_steps=4))
        mine = found.left if found.first_is_left else found.right
        torch.testing.assert_close(mine, student.student.images)
        assert answers.vote(found, "left")[0]
    assert sides == {True, False}
    votes = read(scene.votes).votes
    assert len(votes) == 6
    assert all(vote.choice == vote.left for vote in votes)
    assert len({vote.seed for vote in votes}) == 6
    assert blind.choice_of(found, "neither") == "tie"
    assert "of 6 votes" in answers.preference(match.name, **given)
    assert "No vote has decided" in answers.preference(match.name, **given | {"student_steps": 2})


def test_votes_that_cannot_be_written_are_not_taken_for_written(scene, match, tmp_path):
    gone = replace(scene, votes=tmp_path / "gone" / "votes.jsonl")
    found, _ = Answers(gone).trial(match.name, 0, asked=IN_TURN, student_steps=1, teacher_steps=1, scale=1.0)
    done, said = Answers(gone).vote(found, "left")
    assert not done
    assert 'role="alert"' in said
    assert "no pictures to choose" in Answers(scene).vote(None, "left")[1]


def test_a_run_is_shown_and_not_written(scene):
    run = scene.runs["run"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    html = Answers(scene).run("run")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert html.count("<svg") > 5
    assert html.count("<table") >= 1
    assert CLASSES[3] not in html
    assert "Running: step 599" in html
    (run / "finished").touch()
    assert "Finished at step 599" in Answers(scene).run("run")


def test_a_run_that_grows_is_drawn_anew(scene):
    answers = Answers(scene)
    before = answers.state("run")
    assert answers.state("run") == before
    with (scene.runs["run"] / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "stage": "refine", "step": 300, "global_step": 600, "seconds": 1, "loss": 1}\n')
    assert answers.state("run") != before
    assert "step 600" in answers.run("run")


def test_a_run_that_went_away_is_said(scene):
    run = scene.runs["run"]
    run.rename(run.with_name("elsewhere"))
    assert "is not a folder" in Answers(scene).run("run")


def test_who_can_come(tmp_path):
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.3")] == [True] * 3 + [
        False
    ] * 2
    assert warning("127.0.0.1") == ""
    assert "without a password" in warning("0.0.0.0")
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(ValueError, match="nothing can listen at"):
            bound("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ValueError, match="ports are 1 to 65535"):
        bound("127.0.0.1", 70000)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:80"}, 200),
        ({"host": "localhost:80", "origin": "http://localhost:80"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "127.0.0.1:80", "origin": "http://127.0.0.1:81"}, 403),
        ({"host": "127.0.0.1:80", "origin": "null"}, 403),
        ({"host": "127.0.0.1.elsewhere.example:80"}, 421),
        ({}, 421),
    ],
)
def test_only_the_page_itself_is_answered(headers, status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(Guard(app, frozenset({"127.0.0.1", "localhost", "::1"}))(scope, None, send))
    assert sent[0]["status"] == status
    assert (sent[1]["body"] == b"in") == (status == 200)
    assert (b"content-security-policy" in dict(sent[0]["headers"])) == (status == 200)


def test_a_page_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="neither a student nor a run"):
        Scene({}, {}, tmp_path / "votes.jsonl")


def test_prompts(match):
    asked = []

    def encode(prompts):
        asked.extend(prompts)
        return torch.zeros(len(prompts), dtype=torch.long)

    prompted = replace(match, space=replace(match.space, encode=encode))
    pair = draw_pair(prompted, wish(prompted, asked=" a red apple ", seed=0, count=2, teacher_steps=2))
    assert asked == ["a red apple"] * 2
    assert len(pair.student.images) == 2
    with pytest.raises(ValueError, match="the prompt is empty"):
        wish(prompted, asked=" ", seed=0)


def test_images_are_those_of_the_sample_command(match):
    from hidistill.cli import drawing

    network = drawing.Network(match.student, "dit-flow-map", (1, 8, 8), 3, NAMES)
    plan = drawing.plan(network, steps=1, sampler=None, scale=None)
    theirs = drawing.images(network, plan, torch.tensor([0, 1, 2]), count=3, seed=9, device="cpu")
    torch.testing.assert_close(draw_pair(match, Wish(seed=9, count=3, teacher_steps=1)).student.images, theirs)
