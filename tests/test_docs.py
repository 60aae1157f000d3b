"""The documentation points at things that exist, and says the one paragraph that everything hangs on."""

import json
import re
from pathlib import Path

import pytest
import torch

from hidistill.cli import main
from hidistill.derivative import Forward
from hidistill.foreign.network import Network
from hidistill.report.scores import MEANINGS

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


def test_every_number_of_an_evaluation_is_explained():
    text = (ROOT / "docs" / "evaluating.md").read_text()
    of_rows = [name for name in MEANINGS if not name.partition("@")[0].endswith("_real") and name != "entropy"]
    missing = [name for name in of_rows if not re.search(rf"`{name.partition('@')[0]}\b", text)]
    assert not missing


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "src/hidistill/__init__.py"])
def test_the_paragraph(name):
    plain = " ".join((ROOT / name).read_text().replace("*", "").replace(">", "").split())
    assert PARAGRAPH in plain


def test_the_recipe_in_the_documentation_learns(tmp_path, capsys):
    page = (ROOT / "docs" / "extending.md").read_text()
    code, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "ring.py").write_text(code)
    small = ["--steps", "200", "--batch-size", "64"]
    assert main(["train", f"{tmp_path / 'ring.py'}:ring", *small, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line["end_distance"] for line in lines if line["kind"] == "probe"]
    assert last < 0.8 * first


def test_the_family_in_the_documentation_is_a_teacher_and_a_student():
    """Sixty lines and no more: the network itself is asked beside it, in float64."""
    from diffusers import Lumina2Transformer2DModel
    from randomized import randomized

    page = (ROOT / "docs" / "extending.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 60
    family: dict = {"__name__": "lumina2"}
    exec(compile(code, "lumina2.py", "exec"), family)
    net = Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(32, 8, 8),
        cap_feat_dim=8,
    )  # fmt: skip
    net = randomized(net).double()
    mask = torch.ones(3, 5)
    cond = {"text": torch.randn(3, 5, 8, dtype=torch.float64), "mask": mask}
    teacher = Network(
        net, family["FAMILY"], family["CONVENTION"], null={"text": torch.zeros(1, 5, 8), "mask": mask[:1]}
    )
    x_t, t = torch.randn(3, 4, 4, 4, dtype=torch.float64), torch.tensor([0.2, 0.61, 0.93], dtype=torch.float64)
    velocity = teacher.velocity(x_t, t=t, cond=cond)
    own = net(x_t, 1 - t, cond["text"], mask.bool()).sample
    torch.testing.assert_close(velocity, -own, rtol=1e-5, atol=1e-5)  # its own sinusoids are in float32
    student = teacher.student()
    torch.testing.assert_close(student.mean_velocity(x_t, t=t, r=t / 2, cond=cond), velocity)
    randomized(student.interval)
    direction, h = torch.randn_like(x_t), 1e-6
    du = Forward()(student, x_t, t=t, r=t / 2, cond=cond, direction=direction)
    ends = [student.mean_velocity(x_t + s * direction, t=t + s, r=t / 2, cond=cond) for s in (h, -h)]
    difference = (ends[0] - ends[1]) / (2 * h)
    assert (du - difference).norm() < 1e-5 * du.norm()
    assert [layer.shape[2] for layer in teacher.features(x_t, t=t, cond=cond)] == list(teacher.feature_channels)
