import pytest
import torch
from torch import nn
from torch.optim import AdamW

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
