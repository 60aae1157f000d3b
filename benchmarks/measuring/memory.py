"""Memory as torch's own allocator tells it."""

import torch
from torch.profiler import ProfilerActivity, profile

from hidistill.train.loop import Precision, autocast
from hidistill.train.stage import Update
from hidistill.types import Batch


def allocated(update: Update, batch: Batch, *, precision: Precision = "float32") -> int:
    """Most bytes that torch's allocator had given out at once for an update."""
    parameters = update.parameters()
    for parameter in parameters:
        parameter.requires_grad_(True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        with autocast(precision, "cpu"):
            loss = update.objective(batch).value.mean()
        gradients = torch.autograd.grad(loss, parameters)
    del gradients
    for parameter in parameters:
        parameter.requires_grad_(False)
    alive = peak = 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
