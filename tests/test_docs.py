"""The documentation points at things that exist, and says the one paragraph that everything hangs on."""

import json
import re
from pathlib import Path

import pytest

from hidistill.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
PARAGRAPH = (
    "A teacher is a velocity field. A student is a flow map. An objective turns a batch into a loss per sample. "
    "A stage says who moves, down which objective, how often. A recipe is a function that puts them together."
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    """`folder/file.py` in backticks is a path of the repository or of the package; capitals are placeholders."""
    for path in re.findall(r"`((?:[a-z_0-9.]+/)+[a-z_0-9]+\.(?:py|md|toml|txt))`", page.read_text()):
        places = (ROOT / path, ROOT / "src" / "hidistill" / path, page.parent / path)
        assert any(place.exists() for place in places), f"{page.name} names {path}"


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "src/hidistill/__init__.py"])
def test_the_paragraph(name):
    plain = " ".join((ROOT / name).read_text().replace("*", "").replace(">", "").split())
    assert PARAGRAPH in plain


def test_the_recipe_in_the_documentation_learns(tmp_path, capsys):
    page = (ROOT / "docs" / "extending.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "ring.py").write_text(code)
    small = ["--steps", "200", "--batch-size", "64"]
    assert main(["train", f"{tmp_path / 'ring.py'}:ring", *small, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line["end_distance"] for line in lines if line["kind"] == "probe"]
    assert last < 0.8 * first
