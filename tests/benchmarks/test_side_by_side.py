import json
import sys

import pytest
import side_by_side
import torch
from measuring.problems import roles
from peers import MissingPeerError, Pair, load


def test_a_missing_peer_is_said_and_left_out(tmp_path, monkeypatch, capsys):
    words = ["side_by_side.py", "--peers", "fastgen", "--fastgen", str(tmp_path / "nowhere"), "--batch", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "out")])
    side_by_side.main()
    assert "there is no folder" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "side_by_side.json").read_text())
    assert "FastGen" in found["notes"][0]
    assert {"machine", "torch", "commit", "command"} <= found["origin"].keys()


def test_a_peer_that_cannot_be_imported_says_how_it_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "half_there.py").write_text("import something_that_nobody_has\n")
    with pytest.raises(MissingPeerError, match=r"Half is left out.*something_that_nobody_has.*pip install half"):
        load("Half", "half_there", tmp_path, "pip install half")


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_pair_is_compared_by_losses_and_gradients(factor):
    made = roles("tiny", 4)
    own = list(made.student.parameters())

    def loss(scale):
        u = made.student.mean_velocity(made.x_t, t=made.t, r=made.r, cond=made.batch.cond)
        return {"total": scale * u.square().mean()}

    pair = Pair("one", lambda: loss(factor), lambda: loss(1.0), own)
    apart = side_by_side.difference(pair)
    assert apart["loss"] == pytest.approx(factor - 1, abs=1e-5)
    assert apart["gradient"] == pytest.approx(factor - 1, abs=1e-5)
    line = side_by_side.row("us", pair, made, rounds=1, precision="float32", clock="cpu")
    assert line["ours, F"] == line["theirs, F"] == pytest.approx(3.0, abs=0.05)
    assert line["saved, ours / theirs"] == pytest.approx(1.0, abs=0.01)
    assert all(weight.grad is None and not weight.requires_grad for weight in own)
    assert torch.is_grad_enabled()
