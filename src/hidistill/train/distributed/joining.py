"""How processes that torchrun has started meet."""

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from hidistill.train.distributed.ranks import Ranks, first_line


def join(device: str, *, timeout_seconds: float, environment: Mapping[str, str] = os.environ) -> Ranks:
    """Meet the other processes that torchrun started, if it did.

    gloo between CPUs, nccl between GPUs; each process of a machine takes the GPU of its own number.

    Args:
        device: cpu or cuda.
        timeout_seconds: after which a process that does not answer is given up.
        environment: where torchrun says who is who: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.

    Raises:
        ValueError: if torchrun's variables are wrong, or there are more processes on this machine than GPUs.
        OSError: if the port is taken, or the other processes do not come.
    """
    count = number(environment, "WORLD_SIZE", 1)
    if count == 1:
        return Ranks(device=device)
    rank, local = number(environment, "RANK", None), number(environment, "LOCAL_RANK", 0)
    if not 0 <= rank < count:
        raise ValueError(f"RANK={rank} with WORLD_SIZE={count}: ranks are 0 to {count - 1}; start runs with torchrun")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ValueError(f"WORLD_SIZE={count} without {' and '.join(missing)}; torchrun sets them: start runs with it")
    if device.startswith("cuda"):
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start at most as "
                "many processes here (--nproc-per-node)"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    meet(rank, count, device, timeout_seconds, environment)
    store = dist.PrefixStore("hidistill", dist.distributed_c10d._get_default_store())  # no public name for it
    return Ranks(rank, count, device, store, timeout_seconds)


def meet(rank: int, count: int, device: str, timeout_seconds: float, environment: Mapping[str, str]) -> None:
    """Start torch's process group, with words for what usually goes wrong."""
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    address, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    began = time.monotonic()
    try:
        dist.init_process_group(backend, rank=rank, world_size=count, timeout=timedelta(seconds=timeout_seconds))
    except (dist.DistError, RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "already in use" in str(error):
            raise OSError(
                f"port {port} of {address} is taken by another program, or another run; give torchrun another one, "
                f"e.g. --master-port {int(port) + 1}, or --standalone on a single machine"
            ) from error
        waited = time.monotonic() - began
        raise OSError(
            f"process {rank} of {count} on {socket.gethostname()} did not meet the others at {address}:{port} within "
            f"{waited:.0f} s ({first_line(error)}); all {count} must be started, and reach that address"
        ) from error


def number(environment: Mapping[str, str], name: str, default: int | None) -> int:
    """A whole number among torchrun's variables."""
    found = environment.get(name, "")
    if not found and default is not None:
        return default
    if not found.isdecimal():
        raise ValueError(f"{name}={found!r}: a whole number is needed; torchrun sets it: start runs with torchrun")
    return int(found)
