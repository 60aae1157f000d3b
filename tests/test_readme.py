import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from hidistill.cli import main

ROOT = Path(__file__).parent.parent


def test_the_readmes_python_runs(capsys, tmp_path, monkeypatch):
    """The code block as it stands, with three steps a stage instead of hundreds."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    short, count = re.subn(r"steps=\d+", "steps=3", block)
    assert count == 2
    names: dict = {}
    exec(compile(short, "README.md", "exec"), names)
    assert names["images"].shape == (10, 1, 28, 28)
    assert 0 <= names["images"].min() <= names["images"].max() <= 1
    moved = [
        not torch.equal(mine, theirs)
        for mine, theirs in zip(names["student"].net.parameters(), names["teacher"].parameters(), strict=True)
    ]
    assert all(moved)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["sketch"] * 3 + ["refine"]
    with Image.open("student.png") as picture:
        assert picture.width > 10 * 56
        assert len(picture.convert("L").getcolors()) > 10
    assert main(["sample", "student.safetensors", "--label", "sandal", "--count", "4"]) == 0
    assert Path("samples.png").exists()


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readmes_commands_are_targets(command):
    assert command in (ROOT / "README.md").read_text()
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
