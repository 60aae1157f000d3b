"""Moments that rest in the CPU's memory change nothing but where they lie."""

from contextlib import nullcontext

import pytest
import torch
from small_run import build
from test_resume import Stop, final_state
from torch import nn
from torch.optim import AdamW

from hidistill.cli.running import Settings
from hidistill.train.distributed.work import Sharding, Work
from hidistill.train.driver import execute
from hidistill.train.offload import offload, to_memory, to_parameters


def trained(wrap, device="cpu"):
    torch.manual_seed(0)
    net = nn.Linear(5, 3).to(device)
    optimizer = wrap(AdamW(net.parameters(), lr=0.1))
    for step in range(4):
        if step == 2:  # a run that is taken up again
            again = wrap(AdamW(net.parameters(), lr=0.1))
            again.load_state_dict(optimizer.state_dict())
            optimizer = again
        optimizer.zero_grad()
        net(torch.ones(2, 5, device=device) * step).square().sum().backward()
        optimizer.step()
    return net.weight.detach().cpu(), optimizer


def test_the_numbers_are_those_without_it():
    assert torch.equal(trained(offload)[0], trained(lambda optimizer: optimizer)[0])


def test_moments_go_where_they_are_asked_for_and_counts_of_steps_stay():
    """The meta device in the place of a GPU: what is there has left the CPU."""
    _, optimizer = trained(lambda optimizer: optimizer)
    counts = [state["step"] for state in optimizer.state.values()]
    moved = {parameter.to("meta"): state for parameter, state in optimizer.state.items()}
    optimizer.state.clear()
    optimizer.state.update(moved)
    to_parameters(optimizer)
    states = list(optimizer.state.values())
    assert {state[name].device.type for state in states for name in ("exp_avg", "exp_avg_sq")} == {"meta"}
    assert [state["step"] for state in states] == counts


def test_a_run_that_offloads_is_the_run_that_does_not(tmp_path):
    """To the last bit, also where it is stopped and taken up with or without."""

    def carry_out(name, *, until=None, **how):
        def stop(event):
            if event.kind == "step" and event.global_step == until:
                raise Stop

        settings = {"recipe": "tests.small", "arguments": {"steps": 12}, "checkpoint_every": 5, "on_event": stop} | how
        execute(build(12), tmp_path / name, **settings)

    carry_out("plain")
    carry_out("whole", offload_optimizer=True)
    for until, how in ((8, True), (17, False), (None, True)):
        with pytest.raises(Stop) if until else nullcontext():
            carry_out("taken up", until=until, offload_optimizer=how)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "taken up") == final_state(tmp_path / "plain")


def test_every_optimizer_of_a_run_is_offloaded(tmp_path):
    """A CPU has nowhere to bring moments from: what can be seen there are the hooks."""
    for offloaded in (False, True):
        run, folder = build(3), tmp_path / str(offloaded)
        execute(run, folder, recipe="tests.small", arguments={"steps": 3}, offload_optimizer=offloaded)
        optimizers = [update.optimizer for stage in run.stages for update in stage.updates.values()]
        assert [len(optimizer._optimizer_step_pre_hooks) for optimizer in optimizers] == [int(offloaded)] * 4


def test_moments_of_networks_in_parts_are_not_offloaded(tmp_path):
    with pytest.raises(ValueError, match="leave --offload-optimizer out, or --sharded"):
        execute(build(3), tmp_path, recipe="x", arguments={}, sharding=Sharding(), work=Work(), offload_optimizer=True)
    with pytest.raises(ValueError, match="leave it out, or --sharded"):
        Settings(sharded=True, offload_optimizer=True)


@pytest.mark.gpu
def test_a_run_on_a_gpu_offloads_and_is_the_run_that_does_not(tmp_path):
    runs = {name: build(6) for name in ("plain", "offloaded")}
    for name, run in runs.items():
        how = {"device": "cuda", "offload_optimizer": name == "offloaded"}
        execute(run, tmp_path / name, recipe="tests.small", arguments={"steps": 6}, **how)
    assert final_state(tmp_path / "plain") == final_state(tmp_path / "offloaded")
    optimizers = [update.optimizer for stage in runs["offloaded"].stages for update in stage.updates.values()]
    assert {s["exp_avg"].device.type for optimizer in optimizers for s in optimizer.state.values()} == {"cpu"}


@pytest.mark.gpu
def test_moments_rest_in_the_memory_of_the_cpu():
    plain, _ = trained(lambda optimizer: optimizer, "cuda")
    weights, optimizer = trained(offload, "cuda")
    assert torch.equal(weights, plain)
    for state in optimizer.state.values():
        assert state["exp_avg"].device.type == "cpu"
        assert state["exp_avg"].is_pinned()
    to_parameters(optimizer)
    assert all(state["exp_avg"].is_cuda for state in optimizer.state.values())
    to_memory(optimizer)
