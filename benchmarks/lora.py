"""What teacher, student, average and fake score hold in memory: four networks, or one with low-rank slots.

    python benchmarks/lora.py

The first table is measured: each line is a process of its own that takes one step of `refine` (critics, then student,
without a discriminator) with a DiT of 6 blocks of width 384, 4 samples of 256 tokens, in float32 on one thread. "Saved"
is what the student's update keeps for its backward pass beside the weights. "Peak" is the largest resident set since
before the networks were built (Linux). The other tables are counted on networks without data. All but the peak are sums
over the storages that are really there, each counted once.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, SanaTransformer2DModel
from measuring.counting import MIB, held, saved
from measuring.results import options, publish
from torch import Tensor

from hidistill.conventions import Diffusion, Flow, Table
from hidistill.foreign.lora import LowRank, low_rank
from hidistill.foreign.network import FlowMap, Network
from hidistill.recipes.stages import refine
from hidistill.teachers import diffusers_dit, sana
from hidistill.train.loop import steps
from hidistill.train.stage import Stage
from hidistill.types import Batch

RANKS = {"four networks": 0, "rank 8": 8, "rank 32": 32}
SMALL = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 6}


def dit(**options) -> Network:  # noqa: ANN003 -- diffusers' own
    """A DiT of these sizes; those of DiT-XL/2 where none are given."""
    schedule = DDIMScheduler(num_train_timesteps=1000)
    convention = Diffusion("epsilon", Table.of(schedule.alphas_cumprod))
    return Network(DiTTransformer2DModel(**options), diffusers_dit.FAMILY, convention).eval().requires_grad_(False)


def roles(teacher: Network, rank: int) -> tuple[FlowMap, Network | LowRank]:
    """Student and fake score; copies of the whole network at rank 0."""
    if not rank:
        return teacher.student(), deepcopy(teacher)
    return FlowMap(low_rank(teacher, rank=rank)), low_rank(teacher, rank=rank)


def resident(line: str) -> float:
    """MiB of this process: now (VmRSS), or at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) for row in status.splitlines() if row.startswith(line)) / 1024


def kept(stage: Stage, batch: Batch, weights: Iterable[Tensor]) -> float:
    """MiB that the student's update keeps for its backward pass beside the weights."""
    update = stage.updates["student"]
    for parameter in update.parameters():
        parameter.requires_grad_(True)
    found = saved(lambda: update.objective(batch), weights) / MIB
    for parameter in update.parameters():
        parameter.requires_grad_(False)
    return found


def step(teacher: Network, rank: int, batch: Batch) -> tuple[Stage, list[Tensor]]:
    """One step of `refine`; its stage, and the weights of all roles."""
    student, fake = roles(teacher, rank)
    stage = refine(student, teacher, fake, None, steps=1, every=1)
    list(steps(stage, lambda _: batch, seed=0))
    modules = [teacher, student, fake, stage.averages["student"].module]
    return stage, [weight for module in modules for weight in module.parameters()]


def measured(rank: int) -> dict[str, float]:
    """One line of the first table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = Batch(torch.randn(4, 4, 32, 32), torch.arange(4))
    # What libraries load at their first use is not the networks'.
    step(dit(num_attention_heads=1, attention_head_dim=8, num_layers=1), rank, batch)
    before = resident("VmRSS")
    stage, weights = step(dit(**SMALL), rank, batch)
    peak = resident("VmHWM") - before
    states = [state for update in stage.updates.values() for state in update.optimizer.state.values()]
    trained = sum(parameter.numel() for parameter in stage.updates["student"].parameters())
    return {
        "trained, millions": trained / 1e6,
        "weights, MiB": held(weights) / MIB,
        "optimizers, MiB": held(moment for state in states for moment in state.values()) / MIB,
        "saved, MiB": kept(stage, batch, weights),
        "peak, MiB": peak,
    }


def in_a_process(rank: int) -> dict[str, float]:
    """`measured`, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--rank", str(rank)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def counted(teacher: Network) -> list[dict[str, object]]:
    """The weights of all roles, without data."""
    rows: list[dict[str, object]] = []
    whole = 0.0
    for kind in (torch.float32, torch.bfloat16):
        for label, rank in RANKS.items():
            shared = deepcopy(teacher).to(kind)
            student, fake = roles(shared, rank)
            average = deepcopy(student)
            size = held(weight for role in (shared, student, average, fake) for weight in role.parameters()) / MIB
            whole = whole or size
            trained = sum(weight.numel() for weight in student.parameters()) / 1e6
            row: dict[str, object] = {"roles": label, "network": str(kind).split(".")[1], "trained, millions": trained}
            rows.append(row | {"weights, MiB": size, "of four networks": size / whole})
    return rows


def main() -> None:
    """Print all tables."""
    chosen = options(__doc__, "lora", clocks=()).parse_args()
    rows: list[dict[str, object]] = [{"roles": label, **in_a_process(rank)} for label, rank in RANKS.items()]
    with torch.device("meta"):
        xl = DiTTransformer2DModel()
        small_sana = SanaTransformer2DModel(
            num_attention_heads=36,
            attention_head_dim=32,
            num_layers=28,
            num_cross_attention_heads=16,
            cross_attention_head_dim=72,
            cross_attention_dim=1152,
        )
    networks = {
        "DiT-XL/2": Network(xl, diffusers_dit.FAMILY, dit(**SMALL).convention),
        "SANA, 0.6 B": Network(small_sana, sana.FAMILY, Flow()),
    }
    tables = {"DiT, 6 blocks of 384": rows} | {name: counted(teacher) for name, teacher in networks.items()}
    sys.stdout.write(publish("lora", tables, chosen.out, packages=("diffusers", "peft")))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        sys.stdout.write(json.dumps(measured(int(sys.argv[2]))))
    else:
        main()
