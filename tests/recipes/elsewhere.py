"""Takes an experiment's steps on another device.

It is torch's own "meta", where tensors have shapes and no numbers, and which refuses to meet a CPU's.
"""

from hidistill.path import on


def updates(experiment):
    """Every update with a batch of its stage, by name."""
    for index, stage in enumerate(experiment.stages):
        batch = on(experiment.batch_at(experiment.offset(index)), "meta")
        for name, update in stage.updates.items():
            yield f"{stage.name}, {name}", update, batch


def differentiated(experiment):
    """Names of the updates, after the loss of each was differentiated there."""
    experiment.to("meta")
    names = []
    for name, update, batch in updates(experiment):
        for parameter in update.parameters():
            parameter.requires_grad_(True)
        update.objective(batch).value.mean().backward()
        strangers = [p.shape for p in update.parameters() if p.grad is None or p.grad.device.type != "meta"]
        assert not strangers, f"{name}: no gradient there for {strangers}"
        for parameter in update.parameters():
            parameter.requires_grad_(False)
        names.append(name)
    return names
