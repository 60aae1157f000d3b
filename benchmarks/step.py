"""What the steps of both stages cost, part by part: products, saved activations, peak memory and time.

    python benchmarks/step.py                     # about four minutes on two cores
    python benchmarks/step.py --counts            # what is counted alone, half a minute
    python benchmarks/step.py --profile tiny S/2  # where the updates' time goes, by kinds of operations

Counted for DiT of the demo's images (tiny) and of the latents of 256 x 256 pixels (S/2, B/2, XL/2), a batch of 8, on
networks without data. Products are in forwards F of the student at the batch's size. "Saved" is what a forward call
keeps for its backward pass beside the weights, with fused attention; "peak" is the most that tensors hold at one time
beside weights and batch, gradients among them. Times are medians with quartiles of calls in turns; a quarter of the
rows have r < t, guidance is on in all of them, and no optimizer is part of it.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from measuring.counting import MIB, flops, peak, saved
from measuring.problems import BACK_ENDS, SIZES, Roles, refine_parts, roles, sketch_parts, torch_func, update_of
from measuring.results import options, publish
from measuring.timing import Spread, in_turns
from torch.profiler import ProfilerActivity, profile

from hidistill.derivative import Forward
from hidistill.train.loop import autocast

BATCH = 8
TIMED = {"tiny": (32, 7), "S/2": (4, 3)}
"""Rows and rounds of what is timed; a quarter of the rows has a derivative, so that there must be four."""
WHOLE = {"S/2"}
"""Sizes of which whole steps and the derivative are timed, and no other parts: these take minutes."""


def counts(name: str) -> list[dict[str, object]]:
    """Products and peak of each part, at one size."""
    made = roles(name, BATCH, device="meta")
    forward = flops(lambda: student_forward(made))
    # Central differences look at the times, which are not there; unfused attention is not what peaks are counted with.
    uncounted = ("(central)", "(torch.func.jvp)")
    parts = {part: call for part, call in all_parts(made).items() if not part.endswith(uncounted)}
    return [
        {"size": name, "part": part, "F": flops(call) / forward, "peak, MiB": peak(call) / MIB}
        for part, call in parts.items()
    ]


def totals(name: str) -> dict[str, object]:
    """What an image costs at a size, and what the sketch's step saves for its backward pass."""
    made = roles(name, BATCH, device="meta")
    forward = flops(lambda: student_forward(made))
    own = list(made.student.parameters())
    for weight in own:
        weight.requires_grad_(True)
    kept = saved(lambda: whole_loss(made), own)
    weights = sum(weight.numel() for weight in own)
    return {
        "size": name,
        "weights, millions": weights / 1e6,
        "F, GFLOP an image": forward / BATCH / 1e9,
        "saved by the sketch's step, MiB an image": kept / BATCH / MIB,
    }


def student_forward(made: Roles) -> None:
    """F."""
    with torch.no_grad():
        made.student.mean_velocity(made.x_t, t=made.t, r=made.r, cond=made.batch.cond)


def whole_loss(made: Roles) -> torch.Tensor:
    """The sketch's loss, with its graph."""
    objective = update_of(made, Forward()).objective
    return objective.at(made.batch, t=made.t, r=made.r, noise=made.noise, first=made.rows).value  # type: ignore[attr-defined]


def all_parts(made: Roles) -> Mapping[str, Callable[[], None]]:
    """The parts of both stages by name; what does not depend on the derivative's back end comes once."""
    parts: dict[str, Callable[[], None]] = {}
    for back_end, derivative in BACK_ENDS.items():
        for part, call in sketch_parts(made, derivative).items():
            dependent = part.startswith(("derivative", "whole"))
            if derivative is torch_func and not part.startswith("derivative"):
                continue  # only to compare with
            parts[f"sketch: {part}" + (f" ({back_end})" if dependent else "")] = call
    parts |= {f"refine: {part}": call for part, call in refine_parts(made).items()}
    without = refine_parts(made, adversarial=False)
    return parts | {f"refine without a discriminator: {part}": without[part] for part in list(without)[-2:]}


def times(name: str, precision: str, device: str, rounds: int, clock: str = "wall") -> list[dict[str, object]]:
    """Seconds of each part, at one size and precision."""
    batch, usual = TIMED[name]
    made = roles(name, batch, device=device)

    def under(call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with autocast(precision, device):
                call()

        return run

    central = "(central)"  # refuses less than float32
    calls = {"F": lambda: student_forward(made)} | dict(all_parts(made))
    kept = {
        part: under(call)
        for part, call in calls.items()
        if (precision == "float32" or not part.endswith(central)) and (name not in WHOLE or is_whole(part))
    }
    taken = in_turns(kept, rounds or usual, clock=clock)
    one = Spread.of(taken["F"]).median
    return [
        {"size": name, "precision": precision, "part": part, "ms an image": 1e3 * spread.median / batch}
        | {"low": 1e3 * spread.low / batch, "high": 1e3 * spread.high / batch, "in times of F": spread.median / one}
        for part, spread in ((part, Spread.of(values)) for part, values in taken.items())
    ]


def is_whole(part: str) -> bool:
    """Whether a part is a forward, a derivative or a whole step."""
    return part == "F" or "update" in part or part.startswith(("sketch: derivative", "sketch: whole"))


KINDS: Mapping[str, tuple[str, ...]] = {
    "products": ("addmm", "mm", "bmm", "baddbmm", "convolution", "mkldnn_convolution"),
    "attention": ("scaled_dot_product",),
    "activations": ("gelu", "silu"),
    "normalization": ("layer_norm", "group_norm"),
    "copies": ("copy_", "cat"),
}
"""Parts of the names of torch's operations; products are named in full."""


def kind_of(name: str) -> str:
    """The kind of an operation."""
    if name in KINDS["products"]:
        return "products"
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def profiled(name: str, device: str, calls: int = 3) -> list[dict[str, object]]:
    """Percent of the processor's time that each kind of operation takes, in the updates of both stages."""
    made = roles(name, TIMED[name][0], device=device)
    rows = []
    for part, call in all_parts(made).items():
        if "update" not in part and part != "sketch: whole step (forward)":
            continue
        call()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(calls):
                call()
        spent: Counter[str] = Counter()
        for event in seen.key_averages():
            spent[kind_of(event.key.removeprefix("aten::"))] += event.self_cpu_time_total
        shares = {kind: 100 * spent[kind] / spent.total() for kind in (*KINDS, "other")}
        rows.append({"size": name, "part": part} | shares)
    return rows


def main() -> None:
    """Count, time, write."""
    parser = options(__doc__, "step")
    parser.add_argument("--counts", action="store_true", help="count, and time nothing")
    parser.add_argument("--profile", nargs="+", choices=list(TIMED), default=[], help="profile these sizes alone")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=0, help="rounds of timing; 0 is 7 for tiny and 3 for S/2")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    if chosen.profile:
        rows = [row for name in chosen.profile for row in profiled(name, chosen.device)]
        sys.stdout.write(publish("profile", {"Percent of the processor's time": rows}, chosen.out))
        return
    sections: dict[str, list[dict[str, object]]] = {"Sizes": [totals(name) for name in chosen.sizes]}
    sections["Products and peak memory, a batch of 8"] = [row for name in chosen.sizes for row in counts(name)]
    if not chosen.counts:
        sections["Time"] = [
            row
            for name in chosen.sizes
            if name in TIMED
            for precision in chosen.precisions
            for row in times(name, precision, chosen.device, chosen.rounds, chosen.clock)
        ]
    sys.stdout.write(publish("step", sections, chosen.out))


if __name__ == "__main__":
    main()
