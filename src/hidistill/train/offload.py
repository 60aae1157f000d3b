"""Optimizer state that waits in the CPU's memory while its networks use the GPU's."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from hidistill.train.experiment import Experiment


def offload_all(experiment: Experiment) -> None:
    """Let the moments of every optimizer of an experiment rest; see `offload`."""
    for stage in experiment.stages:
        for update in stage.updates.values():
            offload(update.optimizer)


def offload(optimizer: Optimizer) -> Optimizer:
    """Let an optimizer's moments lie in the CPU's memory but for the time of its step.

    Two networks that learn by Adam hold four times their weights as moments, and one of them rests while the other
    moves. Each step then copies moments to the device and back: worth it where memory is what is missing. The numbers
    are those of the optimizer as it was.

    Args:
        optimizer: any of torch's; it is changed, and given back.
    """
    optimizer.register_step_pre_hook(lambda moved, *_: to_parameters(moved))
    optimizer.register_step_post_hook(lambda moved, *_: to_memory(moved))
    to_memory(optimizer)
    return optimizer


def to_parameters(optimizer: Optimizer) -> None:
    """Moments to where their parameters are; a count of steps stays, as torch has it."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.device != parameter.device:
                state[name] = value.to(parameter.device, non_blocking=True)


def to_memory(optimizer: Optimizer) -> None:
    """Moments to the CPU; pinned where a GPU will ask for them again."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.device.type != "cpu":
                place = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                state[name] = place.copy_(value, non_blocking=False)
