"""What one process of a run does, and what happens to it on the way."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import reading
import small_run
import torch
import two_stages

from hidistill.cli import described
from hidistill.share import Drawn
from hidistill.train.checkpoint import Best
from hidistill.train.distributed.joining import join
from hidistill.train.distributed.ranks import ALONE, LostRank
from hidistill.train.distributed.watch import GIVEN_UP
from hidistill.train.distributed.work import Sharding, Work
from hidistill.train.driver import execute
from hidistill.train.patience import Terminated
from hidistill.weights import state_of


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(1000)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


HAPPENINGS = {"die": die, "hang": hang, "stop": stop, "terminate": terminate}


def main(  # noqa: C901 -- a list of what may happen
    rank, *, folder, what="two_stages", steps=20, passes=1, checkpoint_every=1000, timeout=60.0, at=None,
    happens=None, to=0, folders=None, slow=0.0, rows=16, sharding=None, background=False, best=None,
    probe_every=0, workers=0, precision="float32", **more,
):  # fmt: skip
    """One process of a run of `small_run` or `two_stages`.

    Args:
        rank: of this process.
        folder: of the run.
        what: which experiment.
        steps: of each of its stages.
        at: step over both stages before which something happens.
        happens: what: die, hang, stop, terminate; nan in a row of the data, or in a weight.
        to: the process that it happens to; -1 is all.
        folders: another folder for each process.
        slow: seconds that a step takes longer, at most.
        rows: of a batch.
    """
    torch.set_num_threads(1)
    experiment = {"two_stages": two_stages.build, "small": small_run.build, "reading": reading.build}[what](
        steps, **{name: f"{value}-{rank}" if name == "log" else value for name, value in more.items()}
    )
    source = experiment.batch_at

    def batch_at(step):
        batch = source(step)
        batch = type(batch)(batch.x[:rows], batch.cond[:rows])
        time.sleep(random.uniform(0.0, slow))
        if step == at and to in (rank, -1):
            if happens == "nan":
                batch.x[5] = float("nan")
            elif happens == "nan in a weight":
                next(experiment.modules["student"].parameters()).data.view(-1)[0] = float("nan")
            else:
                HAPPENINGS[happens]()
        return batch

    def probe(stage):
        student = experiment.modules["student"]
        return {"weight": float(sum(weights.float().abs().sum() for weights in state_of(student).values()))}

    def take(picked, step):
        if step == at and to in (rank, -1):
            HAPPENINGS[happens]()
        return source.take(picked, step)

    drawn = Drawn(source.pick, take) if isinstance(source, Drawn) else batch_at
    experiment = replace(experiment, batch_at=drawn, probe=probe, probe_every=probe_every, precision=precision)
    ranks = ALONE
    try:
        ranks = join("cpu", timeout_seconds=timeout)
        execute(
            experiment,
            Path(folders[rank] if folders else folder),
            recipe=f"tests.{what}",
            arguments={"steps": steps},
            checkpoint_every=checkpoint_every,
            work=Work(ranks, passes, workers),
            sharding=None if sharding is None else Sharding(**sharding),
            background=background,
            best=best and Best(best),
        )
    except Terminated:
        return 143
    except LostRank as error:
        os.write(2, str(error).encode())
        return GIVEN_UP
    except (ValueError, OSError, ArithmeticError) as error:
        os.write(2, described(error).encode())
        return 2
    finally:
        ranks.close()
    return 0


def warm_up():
    """What torch imports at its first step, once for all forks."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as elsewhere:
        main(0, folder=elsewhere, what="small", steps=1)
