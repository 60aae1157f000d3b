"""A small experiment of two stages; as a script, a place where runs are really killed.

`python small_run.py FOLDER STEPS MOMENT...` starts one process per moment, each of which takes up the run in FOLDER and
is killed by SIGKILL: after that many seconds ("0.25"), or when it calls fsync for that many times ("f7"). Then one more
process takes the run to its end. Processes are forked from one that has imported torch already.
"""

import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from hidistill.objectives.flow_matching import FlowMatching
from hidistill.path import interpolate, mean_per_sample
from hidistill.train.driver import execute
from hidistill.train.ema import Average
from hidistill.train.experiment import Experiment, Product
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Batch, Loss


class Field(nn.Module):
    """A velocity of points."""

    def __init__(self, width=16):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2))

    def velocity(self, x_t, *, t, cond):
        del cond
        return self.layers(torch.cat([x_t, t[:, None]], 1))


class Verdict(nn.Module):
    """A number per point; its spectral norm keeps a buffer that moves in every forward pass."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(spectral_norm(nn.Linear(2, 8)), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


@dataclass(frozen=True)
class Agree:
    """The student imitates the fake score and pleases the verdict, without a switch for who may have a gradient."""

    student: Field
    fake: Field
    verdict: Verdict

    def __call__(self, batch):
        t = torch.rand(len(batch.x))
        x_t = interpolate(batch.x, torch.randn_like(batch.x), t)
        mine, other = (field.velocity(x_t, t=t, cond=batch.cond) for field in (self.student, self.fake))
        return Loss(mean_per_sample((mine - other).square()) - 0.1 * self.verdict(mine).squeeze(1))


@dataclass(frozen=True)
class Separate:
    """The verdict tells data from the student's field."""

    student: Field
    verdict: Verdict

    def __call__(self, batch):
        generated = self.student.velocity(batch.x, t=torch.rand(len(batch.x)), cond=batch.cond)
        return Loss((self.verdict(generated) - self.verdict(batch.x)).tanh().squeeze(1))


def batch_at(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 2, generator=generator) * 0.3 + torch.tensor([1.0, -1.0])
    return Batch(x, torch.zeros(16, dtype=torch.int64))


def build(steps=12, *, probe=None, probe_every=0, finish=None, batches=batch_at, seed=3, width=16):
    """Stages "sketch" and "refine" of `steps` steps each, with modules as they are at the start."""
    torch.manual_seed(1)
    student, fake, verdict = Field(width), Field(width), Verdict()
    sketch = Stage(
        "sketch",
        {"student": Update(FlowMatching(student), adam(student), schedule=WarmupDecay(steps, steps // 4, steps // 3))},
        steps,
        {"student": Average(student, 0.9)},
    )
    refine = Stage(
        "refine",
        {
            "student": Update(Agree(student, fake, verdict), adam(student), every=3),
            "fake": Update(FlowMatching(fake), adam(fake)),
            "verdict": Update(Separate(student, verdict), adam(verdict), max_norm=0.1),
        },
        steps,
        {"student": Average(student, 0.95)},
    )
    products = {
        "sketch": Product("student", "sketch.safetensors", "field", {"width": width}),
        "refine": Product("student", "student.safetensors", "field", {"width": width}),
    }
    return Experiment(
        stages=[sketch, refine],
        modules={"student": student, "fake": fake, "discriminator": verdict},
        batch_at=batches,
        seed=seed,
        products=products,
        probe=probe,
        probe_every=probe_every,
        finish=finish,
        extendable=("steps",),
    )


def adam(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-2, betas=(0.9, 0.95))


def carry_out(folder, steps=12, *, checkpoint_every=5, on_event=None, journals=(), **changes):
    execute(
        build(steps, **changes),
        folder,
        recipe="tests.small",
        arguments={"steps": steps, "seed": 3},
        checkpoint_every=checkpoint_every,
        on_event=on_event,
        journals=journals,
    )


def killed_at(moment, folder, steps):
    """Fork, take up the run, and be killed; whether that happened before the run's end."""
    child = os.fork()
    if child:
        if not moment.startswith("f"):
            time.sleep(float(moment))
            os.kill(child, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if moment.startswith("f"):
        left, fsync = [int(moment[1:])], os.fsync

        def last_fsync(descriptor):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = last_fsync

    def slow(step):
        time.sleep(random.uniform(0.0, 0.01))
        return batch_at(step)

    carry_out(folder, steps, batches=slow)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, count = Path(sys.argv[1]), int(sys.argv[2])
    with TemporaryDirectory() as elsewhere:  # what torch imports at its first step, once for all forks
        carry_out(Path(elsewhere), 1)
    for moment in sys.argv[3:]:
        sys.stdout.write(f"{moment} {'killed' if killed_at(moment, place, count) else 'finished'}\n")
    carry_out(place, count)
