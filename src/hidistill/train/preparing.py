"""What is looked at, and made ready, before a run begins or ends."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copy, copytree
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from hidistill.train.distributed.ranks import Ranks
from hidistill.train.distributed.work import Averaging, Sharding
from hidistill.train.experiment import Experiment


def refuse_paper(experiment: Experiment) -> None:
    """Refuse networks that have shapes and no numbers.

    Raises:
        ValueError: naming the role.
    """
    for role, module in {**experiment.modules, **experiment.frozen}.items():
        if any(parameter.is_meta for parameter in module.parameters()):
            raise ValueError(
                f"the {role} has shapes and no numbers: it is there to be planned (`hidistill doctor RECIPE`), not "
                "to be trained; give a recipe that reads or makes a teacher"
            )


def refuse_device(device: str) -> None:
    """Refuse a device that this machine has not.

    Raises:
        ValueError: naming what is wrong with it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without the device
        first = str(error).splitlines()[0]
        raise ValueError(
            f"device={device!r}: {first}; `hidistill doctor` says what this machine has: use cpu, or cuda with a build "
            "of torch for it"
        ) from error


def refuse_parts(sharding: Sharding | None, ranks: Ranks, *, offload_optimizer: bool) -> None:
    """Refuse networks in parts where there is nobody to share them with, and with offloaded moments.

    Raises:
        ValueError: naming what does not go together.
    """
    if sharding is None:
        return
    if offload_optimizer:
        raise ValueError("moments of networks in parts stay with them; leave --offload-optimizer out, or --sharded")
    if ranks.count == 1:
        raise ValueError("networks are to be held in parts, by one process alone; start several with torchrun")


def divide(
    experiment: Experiment, sharding: Sharding | None, ranks: Ranks
) -> Callable[[Sequence[Tensor]], Averaging] | None:
    """Have each process hold its part of the networks, if that is wanted; what averages gradients then."""
    if sharding is None:
        return None
    from hidistill.train.distributed.sharding import apply, averaging

    apply(sharding, experiment, ranks)
    return averaging


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder that looks like the run's, and into which nothing need be written."""
    with TemporaryDirectory() as place:
        for each in folder.iterdir():
            if each.name != "checkpoints":
                (copytree if each.is_dir() else copy)(each, Path(place) / each.name)
        yield Path(place)
