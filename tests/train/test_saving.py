"""Checkpoints that are written beside training, the best one of a metric, spikes, and a clock that jumps."""

import json
import resource
import time
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from small_run import batch_at, build
from test_resume import Stop, final_state, journal, numbers
from torch import nn

from hidistill.train.checkpoint import Best, newest_first
from hidistill.train.driver import execute
from hidistill.train.loop import descend
from hidistill.train.saving import Keeping
from hidistill.train.spikes import Spikes, TooManySpikes
from hidistill.train.stage import Update
from hidistill.types import Batch, Loss


def carry_out(folder, steps=12, *, checkpoint_every=5, on_event=None, experiment=None, **settings):
    execute(
        experiment or build(steps), folder, recipe="tests.small", arguments={"steps": steps}, on_event=on_event,
        checkpoint_every=checkpoint_every, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    carry_out(folder)
    return folder


@pytest.mark.parametrize("last", [3, 12, 18])
@pytest.mark.parametrize("how", [Stop, KeyboardInterrupt])
def test_a_thread_writes_what_training_would_have_written(undisturbed, tmp_path, last, how):
    def stop(event):
        if event.kind == "step" and event.global_step == last:
            raise how

    with pytest.raises(how):
        carry_out(tmp_path, on_event=stop, background=True, checkpoint_every=2)
    assert int(newest_first(tmp_path / "checkpoints")[0].name) >= last - 2
    carry_out(tmp_path, background=True, checkpoint_every=2)
    assert final_state(tmp_path) == final_state(undisturbed)
    taken = [line for line in numbers(tmp_path) if line["kind"] == "step"]
    assert taken == [line for line in numbers(undisturbed) if line["kind"] == "step"]


def test_a_thread_that_cannot_write_ends_the_run_and_keeps_what_was_there(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event):
        if event.kind == "step" and event.global_step == 14:
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))  # the fake score's moments need more

    try:
        with pytest.raises(OSError, match=r"cannot write the checkpoint .*Earlier checkpoints are intact"):
            carry_out(tmp_path, experiment=build(width=400), on_event=fill, background=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in newest_first(tmp_path / "checkpoints")] == ["00000012", "00000010"]
    carry_out(tmp_path, experiment=build(width=400))
    assert (tmp_path / "finished").exists()


def evaluated(scores):
    """An experiment whose n-th short evaluation gives the n-th score."""
    left = iter(scores)
    return build(probe=lambda stage: {"score": next(left)}, probe_every=4)


@pytest.mark.parametrize(("largest", "best"), [(False, "00000008"), (True, "00000016")])
def test_the_best_checkpoint_stays(tmp_path, largest, best):
    scores = [3.0, 1.0, 2.0, 5.0, 4.0, 4.0, 4.0]
    carry_out(tmp_path, experiment=evaluated(scores), best=Best("score", largest=largest))
    names = [path.name for path in newest_first(tmp_path / "checkpoints")]
    assert names == ["00000024", "00000022", best]
    state = json.loads((tmp_path / "checkpoints" / best / "state.json").read_text())
    assert state["score"]["score"] == (max if largest else min)(scores)


def test_a_best_that_nobody_measured_keeps_the_newest_alone(tmp_path):
    carry_out(tmp_path, experiment=evaluated([1.0] * 7), best=Best("other"))
    assert [path.name for path in newest_first(tmp_path / "checkpoints")] == ["00000024", "00000022"]


@pytest.mark.parametrize("wrong", [{"every": 0}, {"newest": 0}])
def test_no_checkpoints_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        Keeping(**wrong)


def test_spikes_by_hand():
    spikes = Spikes(factor=3.0, recent=3, most=2)
    taken = [spikes.admits({"fake": norm}, where="w") for norm in (1.0, 100.0, 2.0, 7.0, 5.0, 20.0, 4.0)]
    # The median of 1, 100 and 2 is 2, of 100, 2 and 5 it is 5; the first three are taken whatever they are.
    assert taken == [True, True, True, False, True, False, True]
    assert (spikes.skipped, spikes.in_a_row, list(spikes.norms["fake"])) == (2, 0, [2.0, 5.0, 4.0])
    again = Spikes(factor=3.0, recent=3, most=2)
    again.load(json.loads(json.dumps(spikes.state())))
    assert again == spikes
    assert not again.admits({"fake": 13.0}, where="w")
    assert not again.admits({"fake": 13.0}, where="w")
    with pytest.raises(TooManySpikes, match=r"w: the gradient's norm is 13, and 4 is usual; 2 steps in a row were"):
        again.admits({"fake": 13.0}, where="w")
    with pytest.raises(ValueError, match="must be above 1"):
        Spikes(factor=1.0)


def test_each_role_has_a_history_of_its_own():
    spikes = Spikes(factor=3.0, recent=2, most=1)
    usual, spike = {"fake": 8.0, "discriminator": 0.01}, {"fake": 8.0, "discriminator": 1.0}
    assert [spikes.admits(norms, where="w") for norms in (usual, usual, spike, usual)] == [True, True, False, True]
    assert {role: list(norms) for role, norms in spikes.norms.items()} == {
        role: [norm] * 2 for role, norm in usual.items()
    }
    assert not spikes.admits(spike, where="w")
    with pytest.raises(TooManySpikes, match=r"w: the gradient's norm of discriminator is 1, and 0.01 is usual"):
        spikes.admits(spike, where="w")


def test_a_checkpoint_whose_norms_have_no_roles_is_taken_up_without_them():
    spikes = Spikes(factor=3.0, recent=2, most=1)
    spikes.load({"norms": [1.0, 1.0], "skipped": 2, "in_a_row": 1})
    assert spikes.admits({"student": 100.0}, where="w")
    assert (spikes.skipped, spikes.in_a_row) == (2, 0)


def test_a_role_that_has_only_begun_to_move_does_not_spike():
    spikes = Spikes(factor=3.0, recent=2, most=1)
    for norm in (0.0, 0.0, 1.0):
        assert spikes.admits({"student": norm}, where="w")


def test_a_spike_of_the_smaller_gradient_skips_the_update():
    """Two roles in one update: the verdict's gradient jumps from 1e-3 to 1, which is still less than the field's."""
    torch.manual_seed(0)
    field, verdict = nn.Linear(2, 2), nn.Linear(2, 1)

    @dataclass(frozen=True)
    class Both:
        def __call__(self, batch):
            return Loss(10 * field(batch.x).square().sum(1) + batch.cond[:, 0] * verdict(batch.x).squeeze(1), {})

    groups = [{"params": list(m.parameters()), "role": r} for m, r in ((field, "fake"), (verdict, "discriminator"))]
    update = Update(Both(), torch.optim.SGD(groups, lr=1e-4), spikes=Spikes(factor=10.0, recent=3))
    weights = [[p.clone() for p in verdict.parameters()]]
    for step in range(6):
        factor = 1.0 if step == 4 else 1e-3
        scalars = descend(update, Batch(torch.ones(4, 2), torch.full((4, 1), factor), step), where="w", seed=step)
        weights.append([p.clone() for p in verdict.parameters()])
        assert scalars["gradient"] == scalars["gradient_fake"] > scalars["gradient_discriminator"]
    moved = [not torch.equal(one[0], other[0]) for one, other in pairwise(weights)]
    assert moved == [True, True, True, True, False, True]


def spiky(bad):
    """Data far out at some steps; updates that skip them."""

    def batches(step):
        batch = batch_at(step)
        return Batch(batch.x * 1e4, batch.cond) if step in bad else batch

    experiment = build(30, batches=batches).skipping(20.0)
    for stage in experiment.stages:
        for update in stage.updates.values():
            update.spikes.recent = 4
    return experiment


def test_a_spike_moves_nothing_is_counted_and_survives_a_stop(tmp_path):
    def stop(event):
        if event.kind == "step" and event.global_step == 13:
            raise KeyboardInterrupt

    carry_out(tmp_path / "whole", 30, experiment=spiky({10, 20}))
    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path / "stopped", 30, experiment=spiky({10, 20}), on_event=stop)
    carry_out(tmp_path / "stopped", 30, experiment=spiky({10, 20}))
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "stopped")
    skipped = [
        line["student/skipped"]
        for line in journal(tmp_path / "whole")
        if line["kind"] == "step" and line["stage"] == "sketch"
    ]
    assert skipped == [0.0] * 10 + [1.0] * 10 + [2.0] * 10


def test_too_many_spikes_end_the_run(tmp_path):
    with pytest.raises(TooManySpikes, match=r"stage 'sketch', step 15, update 'student'.*5 steps in a row"):
        carry_out(tmp_path, 30, experiment=spiky(set(range(10, 30))))


def test_a_clock_that_jumps_changes_nothing(undisturbed, tmp_path, monkeypatch):
    own, jumps = time.time, iter(3600.0 * (-1) ** n * n for n in range(10**9))
    monkeypatch.setattr(time, "time", lambda: own() + next(jumps))
    with pytest.raises(Stop):
        carry_out(tmp_path, on_event=lambda event: (_ for _ in ()).throw(Stop) if event.global_step == 8 else None)
    carry_out(tmp_path)
    assert final_state(tmp_path) == final_state(undisturbed)
    assert all(line["seconds"] >= 0 for line in journal(tmp_path))
