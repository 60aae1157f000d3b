"""The same steps by others and by us, in one run: first shown equal, then timed in turns.

    python benchmarks/side_by_side.py --fastgen CHECKOUT --py-meanflow CHECKOUT/meanflow --modelopt FOLDER

Peers are installed or given by their folders; one that is missing is said and left out. All get the same network,
weights, data, times and noise. "Difference" is the largest relative difference of the losses, and of the gradients as
vectors where both should have the same. Ratios are medians of paired ratios, ours by theirs, with quartiles; below 1 we
are faster. "Saved" is what the losses keep for the backward pass beside the weights, ours by theirs. A step is losses
and backward pass, without optimizer. With --compile ours is also timed as `hidistill train --compile` runs it, which
takes minutes for each network; peers run as they come. Its difference is that of its gradients from our plain step's.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import peers.fastgen
import peers.meanflow
import peers.model_optimizer
import torch
from measuring.counting import flops, moving, saved
from measuring.problems import SIZES, Roles, roles
from measuring.results import options, publish
from measuring.timing import Spread, in_turns, ratio
from peers import MissingPeerError, Pair
from torch import Tensor, nn

from hidistill.train.compiling import METHODS, CompiledPass, load_compiler
from hidistill.train.loop import autocast

Losses = Callable[[], dict[str, Tensor]]
Adapter = Callable[[Roles, Path | None], Sequence[Pair]]
PEERS: Mapping[str, Adapter] = {
    "fastgen": peers.fastgen.pairs,
    "py-meanflow": peers.meanflow.pairs,
    "modelopt": peers.model_optimizer.pairs,
}


def difference(pair: Pair) -> dict[str, float]:
    """Largest relative difference of the losses, and of the gradients; not a number where these should differ."""
    answers = []
    for losses in (pair.ours, pair.theirs):
        seen: dict[str, float] = {}

        def total(losses: Callable = losses, seen: dict = seen) -> Tensor:
            found = losses()
            seen |= {name: value.item() for name, value in found.items()}
            return found["total"]

        answers.append((seen, gradients(pair.parameters, total)))
    (ours, gradient), (theirs, other) = answers
    loss = max(abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-8) for name in theirs)
    apart = float((gradient - other).norm() / other.norm()) if pair.gradients else float("nan")
    return {"loss": loss, "gradient": apart}


def gradients(parameters: Sequence[Tensor], total: Callable[[], Tensor]) -> Tensor:
    """All gradients as one vector."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        found = torch.autograd.grad(total(), list(parameters), allow_unused=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for p, g in zip(parameters, found, strict=True)])  # fmt: skip


def kept(pair: Pair, losses: Callable) -> int:
    """Bytes saved for the backward pass."""
    for parameter in pair.parameters:
        parameter.requires_grad_(True)
    try:
        return saved(lambda: losses()["total"], pair.parameters)
    finally:
        for parameter in pair.parameters:
            parameter.requires_grad_(False)


Passes = Mapping[nn.Module, Mapping[str, CompiledPass]]


def compiled(made: Roles) -> Passes:
    """The passes of our networks as `hidistill train --compile` has them."""
    load_compiler()
    networks = (made.teacher, made.student, made.fake)
    return {
        each: {name: CompiledPass(getattr(each, name)) for name in METHODS if hasattr(each, name)} for each in networks
    }


@contextmanager
def taking(passes: Passes) -> Iterator[None]:
    """Within it networks take these passes; peers, who are given the same networks, are called outside."""
    for network, own in passes.items():
        vars(network).update(own)
    try:
        yield
    finally:
        for network, own in passes.items():
            for name in own:
                del vars(network)[name]


def row(
    peer: str,
    pair: Pair,
    made: Roles,
    *,
    rounds: int,
    precision: str,
    clock: str = "wall",
    passes: Passes | None = None,
) -> dict[str, object]:
    """One line of the table."""
    device = made.t.device.type

    def step(updates: Sequence[tuple[Pair, Losses]]) -> Callable[[], None]:
        def total(losses: Losses) -> Tensor:
            with autocast(precision, device):
                return losses()["total"]

        calls = [moving(each.parameters, partial(total, losses)) for each, losses in updates]

        def run() -> None:
            for call in calls:
                call()

        return run

    updates = pair.updates
    apart = [difference(each) for each in updates]
    calls = {"ours": step([(each, each.ours) for each in updates])}
    calls["theirs"] = step([(each, each.theirs) for each in updates])
    with torch.no_grad():
        f = flops(lambda: made.student.mean_velocity(made.x_t, t=made.t, r=made.r, cond=made.batch.cond))
    ours, theirs = (max(kept(each, getattr(each, side)) for each in updates) for side in ("ours", "theirs"))
    found = {
        "peer": peer,
        "step": pair.name,
        "difference of losses": f"{max(each['loss'] for each in apart):.0e}",
        "of gradients": f"{max(each['gradient'] for each in apart):.0e}" if pair.gradients else "-",
        "ours, F": flops(calls["ours"]) / f,
        "theirs, F": flops(calls["theirs"]) / f,
        "saved, ours / theirs": ours / theirs,
    }
    if passes is not None:
        fast = [(each, within(passes, each.ours)) for each in updates]
        calls["compiled"] = step(fast)
        off = [difference(replace(each, theirs=losses, gradients=True))["gradient"] for each, losses in fast]
        found["compiled, difference"] = f"{max(off):.0e}"
    taken = in_turns(calls, rounds, clock=clock)
    found |= {f"{name}, s": Spread.of(seconds).text() for name, seconds in taken.items()}
    found["ours / theirs"] = ratio(taken["ours"], taken["theirs"]).text()
    if passes is not None:
        found["compiled / theirs"] = ratio(taken["compiled"], taken["theirs"]).text()
    return found


def within(passes: Passes, losses: Losses) -> Losses:
    """The losses and their way back, by these passes."""

    def run() -> dict[str, Tensor]:
        with taking(passes):
            return losses()

    return run


def compared(words: Sequence[str] | None = None) -> tuple[dict[str, list[dict[str, object]]], list[str], Path]:
    """A table with every peer that is there, notes, and the folder they go to, for the words of a command line."""
    parser = options(__doc__, "side_by_side")
    for peer in PEERS:
        parser.add_argument(f"--{peer}", type=Path, help="its folder, if it is not installed")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="ours compiled as well")
    chosen = parser.parse_args(words)
    rows, notes = [], []
    for peer in chosen.peers:
        made = roles(chosen.size, chosen.batch, device=chosen.device)
        made.head.eval()  # spectral norms would change from call to call
        try:
            found = PEERS[peer](made, getattr(chosen, peer.replace("-", "_")))
        except MissingPeerError as error:
            notes.append(str(error))
            continue
        timing = {"rounds": chosen.rounds, "precision": chosen.precision, "clock": chosen.clock}
        passes = compiled(made) if chosen.compile else None
        rows += [row(peer, pair, made, **timing, passes=passes) for pair in found]
    title = f"{chosen.size}, batch {chosen.batch}, {chosen.precision}, {chosen.rounds} rounds, {chosen.clock} clock"
    return {title: rows}, notes, chosen.out


def main() -> None:
    """Compare and write."""
    sections, notes, out = compared()
    sys.stdout.write(publish("side_by_side", sections, out, notes=notes, packages=("nvidia-modelopt",)))


if __name__ == "__main__":
    main()
