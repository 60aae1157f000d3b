"""Rates of a run: from a clock that the test turns, and from a run that really waits for its data."""

import json
import time

import pytest
import torch
from small_run import Field, adam, batch_at, carry_out

from hidistill.objectives.flow_matching import FlowMatching
from hidistill.train.driver import execute
from hidistill.train.experiment import Experiment
from hidistill.train.meter import Load, Meter
from hidistill.train.stage import Stage, Update
from hidistill.types import Batch


def steps_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def test_rates_of_a_step():
    loads = {"critics": Load(flops=100, every=1, tokens=9, samples=4), "student": Load(300, 2, 5, 4)}
    meter = Meter(loads, peak=1000.0, device="cpu")
    meter.timed(lambda step: Batch(torch.zeros(8, 2), torch.zeros(8)))(0)
    found = meter.read(1, 2.0)
    assert found["samples_per_second"] == 4.0
    assert found["tokens_per_second"] == 36.0
    assert found["flops_per_second"] == 100.0  # critics alone, on twice the samples that were counted
    assert found["utilization"] == 0.1
    assert meter.read(2, 2.0)["flops_per_second"] == 400.0
    assert 10 < found["memory_mib"] < 1e6
    among = Meter(loads, peak=1000.0, device="cpu", processes=3)
    among.timed(lambda step: Batch(torch.zeros(8, 2), torch.zeros(8)))(0)
    together = among.read(1, 2.0)
    rates = ("samples_per_second", "tokens_per_second", "flops_per_second")
    assert [together[name] for name in rates] == [3 * found[name] for name in rates]
    assert together["utilization"] == found["utilization"]


def test_a_run_that_waits_for_its_data_says_so(tmp_path):
    field = Field()

    def slow(step):
        time.sleep(0.05)
        return batch_at(step)

    stage = Stage("fit", {"student": Update(FlowMatching(field), adam(field))}, 4)
    run = Experiment([stage], {"student": field}, slow, seed=0)
    execute(run, tmp_path, recipe="x", arguments={})
    taken = steps_of(tmp_path)
    assert all(line["pace"]["data_share"] > 0.3 for line in taken)
    assert all(line["seconds"] > 0.05 for line in taken)


def test_work_is_counted_once_and_gradients_are_told_by_role(tmp_path):
    carry_out(tmp_path, 3)
    found = json.loads((tmp_path / "work.json").read_text())["updates"]
    # 3 -> 16 -> 2: forward twice 2 (48 + 32) per row and the gradient of both layers' weights and of the hidden ones.
    assert found["sketch"]["student"]["flops"] > 0
    assert all(line["pace"]["flops_per_second"] > 0 for line in steps_of(tmp_path))


def test_what_cannot_be_counted_is_said_and_stops_nothing(tmp_path):
    class Looking(Field):
        def velocity(self, x_t, *, t, cond):
            return super().velocity(x_t, t=t, cond=cond) * (1.0 if x_t.sum().item() > 0 else 2.0)

    field, told = Looking(), []
    stage = Stage("fit", {"student": Update(FlowMatching(field), adam(field))}, 2)
    run = Experiment([stage], {"student": field}, batch_at, seed=0)
    execute(run, tmp_path, recipe="x", arguments={}, on_event=told.append)
    assert "FlowMatching cannot be counted" in told[0].message
    assert all("flops_per_second" not in line["pace"] for line in steps_of(tmp_path))
    assert all(line["pace"]["samples_per_second"] > 0 for line in steps_of(tmp_path))


@pytest.mark.parametrize("rows", [4, 16])
def test_a_counted_linear_layer_is_the_closed_form(rows):
    from hidistill.train.counting import count_update

    field = Field(width=16)
    batch = Batch(torch.randn(rows, 2), torch.zeros(rows))
    before = torch.get_rng_state()
    work = count_update(Update(FlowMatching(field), adam(field)), batch, [field])
    assert torch.equal(before, torch.get_rng_state())
    forward = 2 * rows * (3 * 16 + 16 * 2)
    assert work.flops == 2 * forward + 2 * rows * 16 * 2  # weights' gradients again as much; the hidden layer's beside
    assert work.moving == sum(p.numel() for p in field.parameters())
    assert all(p.grad is None for p in field.parameters())
