"""Thousands of pictures over hours and processes, at a size of minutes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hidistill import weights
from hidistill.cli import drawing, main, many
from hidistill.data.judged import read
from hidistill.data.prompt_lists import Asked, PromptList
from hidistill.recipes.asking import prompts_at
from hidistill.teachers.dit import DiT, Size


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    torch.manual_seed(0)
    net = DiT(image_size=8, channels=3, classes=3, patch=4, size=Size(16, 1, 2), taps=(0,))
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("weights") / "student.safetensors"
    weights.save(path, net.student(), family="dit-flow-map", config=net.config)
    return path


def pictures(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_it_goes_on_where_it_was_and_gives_the_same_pictures(student, tmp_path, capsys):
    words = ["draw", str(student), "--count", "10", "--chunk", "4"]
    whole, npz = tmp_path / "whole", tmp_path / "all.npz"
    assert main([*words, "--out", str(whole), "--npz", str(npz)]) == 0
    assert "10 of 10 pictures are in" in capsys.readouterr().out
    first = pictures(whole)
    assert len(first) == 10
    found = read(npz)
    assert torch.equal(found.labels, torch.arange(10) % 3)
    row = np.asarray(Image.open(whole / "000007.png"))
    assert np.array_equal(next(found.blocks())[7].movedim(0, -1).numpy(), row)
    for name in ("000001.png", "000008.png"):
        (whole / name).unlink()
    assert main([*words, "--out", str(whole)]) == 0
    assert pictures(whole) == first
    other = tmp_path / "other"
    assert main([*words[:-1], "7", "--out", str(other)]) == 0
    assert all((pixels(other / n) - pixels(whole / n)).abs().max() <= 1 for n in first), (
        "a batch changes rounding at most"
    )


@pytest.mark.parametrize("labels", ["balanced", "uniform"])
def test_a_larger_count_draws_what_is_missing(student, tmp_path, labels):
    words = ["draw", str(student), "--chunk", "4", "--labels", labels, "--out"]
    out, npz = tmp_path / "x", tmp_path / "x.npz"
    assert main([*words, str(out), "--count", "6"]) == 0
    first = pictures(out)
    stamps = {name: (out / name).stat().st_mtime_ns for name in first}
    assert main([*words, str(out), "--count", "41", "--npz", str(npz)]) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in first} == stamps
    at_once, other = tmp_path / "y", tmp_path / "y.npz"
    assert main([*words, str(at_once), "--count", "41", "--npz", str(other)]) == 0
    assert len(pictures(out)) == 41
    assert all((pixels(out / n) - pixels(at_once / n)).abs().max() <= 1 for n in pictures(at_once))
    assert torch.equal(read(npz).labels, read(other).labels)


def pixels(path):
    return many.pixels(path).int()


def test_processes_share_the_work(student, tmp_path):
    out = tmp_path / "shared"
    words = ["draw", str(student), "--count", "24", "--chunk", "2", "--out", str(out)]
    command = [sys.executable, "-m", "hidistill", *words]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert main(words) == 0
    assert len(pictures(out)) == 24
    alone = tmp_path / "alone"
    assert main([*words[:-1], str(alone)]) == 0
    assert pictures(alone) == pictures(out)
    assert not list(out.glob(".*.partial"))


def test_another_order_for_the_same_folder_is_refused(student, tmp_path, capsys):
    words = ["draw", str(student), "--out", str(tmp_path / "x"), "--count", "3"]
    assert main(words) == 0
    assert main([*words, "--seed", "1"]) == 2
    assert "was begun with seed = 0, this order has 1" in capsys.readouterr().err
    assert main([*words[:-1], "2"]) == 2
    assert "is for 3 pictures, this order of 2; say --count 3 or more" in capsys.readouterr().err
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "file").write_text("")
    assert main(["draw", str(student), "--out", str(tmp_path / "y"), "--count", "3"]) == 2
    assert "holds other files" in capsys.readouterr().err
    (tmp_path / "p.txt").write_text("a cat\n")
    assert main([*words, "--prompts", str(tmp_path / "p.txt")]) == 2
    assert "draws from classes; leave --prompts out" in capsys.readouterr().err
    assert main([*words, "--chunk", "0"]) == 2


def test_a_batch_of_what_is_not_drawn_yet_is_refused(student, tmp_path):
    wanted = many.of_classes(3, [0, 1, 2])
    with pytest.raises(ValueError, match="3 of 3 pictures are not drawn yet"):
        many.batch(tmp_path, wanted, tmp_path / "x.npz", labelled=True)


def test_pictures_of_prompts_lie_where_their_judges_look(student, tmp_path):
    """A network of classes whose prompts are the names of its classes."""
    network = drawing.load(student)._replace(
        encode=lambda prompts: torch.tensor([len(prompt) % 3 for prompt in prompts])
    )
    plan = drawing.plan(network, steps=None, sampler=None, scale=None)
    settings = {"seed": 0, "chunk": 3, "device": "cpu", "tell": lambda *_: None}
    record = {"tag": "counting", "include": [], "prompt": "two"}
    lists = {
        "geneval": PromptList([Asked("00000", "two", "counting", None, record)], "geneval", "x"),
        "mjhq": PromptList([Asked("k", "a cat", "animals")], "mjhq", "x"),
        "plain": PromptList([Asked("000000", "a"), Asked("000001", "bb")], "plain", "x"),
    }
    for kind, asked in lists.items():
        wanted = many.of_prompts(asked, 2 if kind == "geneval" else 1)
        assert many.fill(tmp_path / kind, wanted, network, plan, **settings) == len(wanted)
    assert json.loads((tmp_path / "geneval" / "00000" / "metadata.jsonl").read_text()) == record
    assert (tmp_path / "geneval" / "00000" / "samples" / "0001.png").exists()
    assert (tmp_path / "mjhq" / "animals" / "k.png").exists()
    assert {path.name for path in (tmp_path / "plain").glob("*.png")} == {"000000.png", "000001.png"}


def test_plain_prompts(tmp_path):
    path = Path(tmp_path / "p.txt")
    path.write_text("a cat\na dog\n")
    assert [(item.key, item.prompt) for item in prompts_at(path).items] == [("000000", "a cat"), ("000001", "a dog")]
