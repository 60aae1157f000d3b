"""Half an hour of one GPU: what the steps reach of it, CIFAR-10 from nothing, and sampling.

    python benchmarks/gpu/run.py --plan                                       # says what would run, and runs nothing
    python benchmarks/gpu/run.py steps teacher distill sampling --data cifar10.npz --out OUT
    python benchmarks/gpu/run.py --toy --out OUT                              # all of it on a CPU in two minutes

Every part ends within --minutes: what is not done then is stopped as by Ctrl-C, keeps its checkpoint, and the same
command goes on with it. What is done is not done again. Each part writes NAME.json and NAME.md to OUT.

cifar10.npz holds uint8 pixels and labels as x (n, 32, 32, 3), y (n,), xt and yt, training and test; fetch it with the
terms of its makers (docs/speed.md). Lengths of the trainings are chosen by the first steps' speed, so that they
fill their time, and are kept in OUT/lengths.json.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from math import lcm
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import sampling
import side_by_side
import step
from measuring.results import publish
from measuring.timing import Spread, in_turns

from hidistill.data.fashion import bundled
from hidistill.files import whole
from hidistill.metrics.classifier import read_classifier, save_classifier, train_classifier
from hidistill.path import on
from hidistill.recipes.images import REFINE, SKETCH, batches, flow_matching, root_mean_square
from hidistill.recipes.judging import Jury, jury, read_teacher
from hidistill.recipes.two_stages import Plan, distillation
from hidistill.seeds import fold_in
from hidistill.teachers.dit import DiT, Size
from hidistill.train.driver import execute
from hidistill.train.experiment import Experiment
from hidistill.train.loop import quickest, steps
from hidistill.types import Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Rows = list[dict[str, object]]
T = TypeVar("T")


@dataclass(frozen=True)
class Campaign:
    """What all parts share.

    Args:
        out: folder of the results and the runs.
        data: of CIFAR-10; None takes the bundled pictures, for the toy.
        minutes: of each part.
        toy: the smallest of everything.
        device: where it runs.
        peers: options of side_by_side, such as --fastgen CHECKOUT.
    """

    out: Path
    data: Path | None
    minutes: float
    toy: bool
    device: str
    peers: tuple[str, ...] = ()

    @property
    def network(self) -> dict[str, object]:
        """Of the teacher: 22 million weights; 60 thousand in the toy."""
        if self.toy:
            return {"patch": 7, "size": Size(32, 2, 2), "taps": (0, 1)}
        return {"patch": 2, "size": Size(384, 12, 6), "activation": "silu"}

    @property
    def batch(self) -> int:
        """Pictures a step."""
        return 8 if self.toy else 512


def pictures(campaign: Campaign) -> dict[str, Split]:
    """Train, valid (the last tenth of the training pictures) and test."""
    if campaign.data is None:
        return {part: cut(bundled(part), 200) for part in ("train", "valid", "test")}
    with np.load(campaign.data, allow_pickle=False) as file:
        missing = sorted({"x", "y", "xt", "yt"} - set(file.files))
        if missing:
            raise ValueError(f"{campaign.data}: no {', '.join(missing)} in it; it needs x, y, xt and yt")
        x, xt = (torch.from_numpy(file[name]).permute(0, 3, 1, 2).contiguous() for name in ("x", "xt"))
        y, yt = (torch.from_numpy(file[name]).long() for name in ("y", "yt"))
    edge = len(x) * 9 // 10
    return {
        "train": Split(x[:edge], y[:edge], CLASSES),
        "valid": Split(x[edge:], y[edge:], CLASSES),
        "test": Split(xt, yt, CLASSES),
    }


def cut(split: Split, count: int) -> Split:
    """The first pictures."""
    return Split(split.images[:count], split.labels[:count], split.classes)


def judges_of(campaign: Campaign, splits: Mapping[str, Split]) -> Jury:
    """A classifier trained once on the training pictures, and EfficientNet if it is installed."""
    path = campaign.out / "classifier.safetensors"
    if not path.exists():
        classifier = train_classifier(cut(splits["train"], 20_000), steps=20 if campaign.toy else 1500)
        save_classifier(path, classifier, {"data": "training pictures"})
    return jury(splits["train"], splits["valid"], splits["test"], read_classifier(path), "classifier-64")


def roofline(campaign: Campaign) -> Rows:
    """The two ceilings: products of large matrices, and copies of memory, in this precision on this device."""
    n, kind = (256, torch.float32) if campaign.toy else (8192, torch.bfloat16)
    a, b = torch.randn(2, n, n, device=campaign.device).to(kind)
    source = torch.empty(n * n * 4, device=campaign.device)
    target = torch.empty_like(source)
    taken = in_turns({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, 3 if campaign.toy else 20, 3)
    product, copy = Spread.of(taken["product"]).median, Spread.of(taken["copy"]).median
    name = f"products of {n} x {n}, {str(kind).split('.')[1]}"
    return [
        {"ceiling": name, "value": 2 * n**3 / product / 1e12, "unit": "TFLOP/s"},
        {"ceiling": "copies, read and written", "value": 8 * source.numel() / copy / 1e9, "unit": "GB/s"},
    ]  # fmt: skip


def run_steps(campaign: Campaign) -> Mapping[str, Rows]:
    """Each part of both stages: products a second, and how much of the ceiling that is."""
    kept = Kept(campaign.out / "steps.partial.json")
    found: dict[str, Rows] = {"Ceilings": kept.once("ceilings", lambda: roofline(campaign))}
    ceiling = float(found["Ceilings"][0]["value"])  # type: ignore[arg-type]
    sizes = ("tiny",) if campaign.toy else ("S/2", "B/2", "XL/2")
    precision = "float32" if campaign.toy else "bfloat16"
    rows = 4 if campaign.toy else 64
    for size in sizes:
        step.TIMED[size] = (rows if size != "XL/2" else rows // 2, 2 if campaign.toy else 10)
        products = {row["part"]: row["F"] for row in kept.once(f"{size} counts", lambda size=size: step.counts(size))}
        one = float(step.totals(size)["F, GFLOP an image"]) / 1e3  # type: ignore[arg-type]
        timed = kept.once(size, lambda size=size: step.times(size, precision, campaign.device, 0))
        for row in timed:
            if row["part"] in products:
                row["TFLOP/s"] = float(products[row["part"]]) * one / (float(row["ms an image"]) / 1e3)  # type: ignore[arg-type]
                row["of the ceiling"] = row["TFLOP/s"] / ceiling
        found[size] = [{"TFLOP/s": "", "of the ceiling": ""} | row for row in timed]
    if campaign.peers or campaign.toy:
        words = ["--size", sizes[0], "--batch", str(rows), "--precision", precision, "--device", campaign.device]
        words += ["--rounds", "1" if campaign.toy else "10", "--out", str(campaign.out)]
        found["Side by side"] = kept.once("peers", lambda: peers_of([*words, *campaign.peers]))
    return found


def peers_of(words: list[str]) -> Rows:
    """The steps of peers and ours; a line that says so where there is none."""
    tables, notes, _ = side_by_side.compared(words)
    return [row for rows in tables.values() for row in rows] or [{"peer": note} for note in notes]


class Kept:
    """Results of a part that was stopped, so that it goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """What was kept, or what is computed now, and kept."""
        if name not in self.found:
            self.found[name] = compute()
            with whole(self.path) as place:
                place.write_text(json.dumps(self.found))
        return self.found[name]


def teacher_of(campaign: Campaign, splits: Mapping[str, Split], length: int) -> Experiment:
    """The teacher's training, a fifth of it polish near the ends."""
    train = splits["train"]
    torch.manual_seed(fold_in(0, "weights"))
    _, channels, side, _ = train.images.shape
    net = DiT(
        image_size=side, channels=channels, classes=len(train.classes), data_std=root_mean_square(train),
        **campaign.network,  # type: ignore[arg-type]
    )  # fmt: skip
    polish = length // 5
    experiment = flow_matching(
        net, train, steps=length - polish, decay_steps=(length - polish) // 4, polish_steps=polish,
        batch_size=campaign.batch, lr=1e-3, seed=0, card={"data": "CIFAR-10" if campaign.data else "a toy"},
    )  # fmt: skip
    return replace(experiment, precision=quickest(campaign.device))


def distillation_of(campaign: Campaign, splits: Mapping[str, Split], lengths: tuple[int, int]) -> Experiment:
    """Sketch, refine, evaluation."""
    net = read_teacher(campaign.out / "teacher" / "models" / "teacher.safetensors")
    plan = Plan(
        sketch_steps=lengths[0],
        refine_steps=lengths[1],
        batch_size=campaign.batch if campaign.toy else campaign.batch // 2,
        guidance=1.5,
        discriminator="adaptive",
        derivative="forward",
        trajectory_weight=0.02,
        evaluate_samples=40 if campaign.toy else 2000,
        seed=0,
        precision="float32" if campaign.toy else quickest(campaign.device),
        probe_samples=20 if campaign.toy else 200,
        teacher_steps=(),
        sketch=SKETCH,
        refine=REFINE,
    )
    batch_at = batches(splits["train"], batch_size=plan.batch_size, seed=0)
    return distillation(net, plan, batch_at=batch_at, judges=judges_of(campaign, splits))


def length_of(campaign: Campaign, experiment: Experiment, index: int, share: float) -> int:
    """Steps of a stage that fill a share of the part's time, by the speed of its first; the experiment is spoilt."""
    if campaign.toy:
        return 5
    experiment.to(campaign.device)
    stage = experiment.stages[index]
    period = lcm(*(update.every for update in stage.updates.values()))
    made = steps(
        stage, lambda n: on(experiment.batch_at(n), campaign.device), seed=0, precision=experiment.precision
    )  # fmt: skip
    warm, timed = 5 * period, 10 * period
    list(islice(made, warm))
    begin = time.perf_counter()
    done = len(list(islice(made, timed)))
    return max(50, int(60 * campaign.minutes * share * done / (time.perf_counter() - begin)))


def lengths_of(campaign: Campaign, name: str, choose: Callable[[], list[int]]) -> list[int]:
    """Lengths that were chosen once: a run that is taken up again must keep them."""
    kept = Kept(campaign.out / "lengths.json")
    return kept.once(name, choose)


def run_teacher(campaign: Campaign) -> Mapping[str, Rows]:
    """A teacher from nothing."""
    splits = pictures(campaign)
    (length,) = lengths_of(
        campaign, "teacher", lambda: [length_of(campaign, teacher_of(campaign, splits, 1000), 0, 0.8)]
    )
    experiment = teacher_of(campaign, splits, length)
    weights = sum(weight.numel() for weight in experiment.modules["teacher"].parameters())
    seconds = carried_out(campaign, experiment, "teacher", {"steps": length})
    row = {"weights, millions": weights / 1e6, "steps": length, "batch": campaign.batch, "seconds, last call": seconds}
    return {"Teacher": [row]}


def run_distill(campaign: Campaign) -> Mapping[str, Rows]:
    """Both stages, and what they reach."""
    splits = pictures(campaign)

    def choose() -> list[int]:
        return [
            length_of(campaign, distillation_of(campaign, splits, (400, 400)), index, share)
            for index, share in ((0, 0.35), (1, 0.35))
        ]

    first, second = lengths_of(campaign, "distill", choose)
    experiment = distillation_of(campaign, splits, (first, second))
    seconds = carried_out(campaign, experiment, "distill", {"sketch_steps": first, "refine_steps": second})
    table = json.loads((campaign.out / "distill" / "evaluation.json").read_text())
    rows = [
        {"who": row["name"], "passes": row["nfe"] or "-", "seconds an image": row["seconds_per_image"] or "-"}
        | row["metrics"]
        for row in table["rows"]
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    training = {"sketch steps": first, "refine steps": second, "seconds, last call": seconds}
    return {"Distillation": [training], "Judged": [{name: row.get(name, "-") for name in names} for row in rows]}


def carried_out(campaign: Campaign, experiment: Experiment, name: str, arguments: Mapping[str, object]) -> float:
    """Seconds that a run took, from where it stood."""
    begin = time.perf_counter()
    execute(
        experiment, campaign.out / name, recipe=f"campaign.{name}", arguments=arguments,
        checkpoint_every=2 if campaign.toy else 500, device=campaign.device,
    )  # fmt: skip
    return time.perf_counter() - begin


def run_sampling(campaign: Campaign) -> Mapping[str, Rows]:
    """Rates and latency, of the trained student if there is one."""
    shared = ["--device", campaign.device, "--out", str(campaign.out)]
    usual = ["--batches", "1", "--rounds", "1", "--teacher-steps", "2"] if campaign.toy else ["--compile"]
    kept = Kept(campaign.out / "sampling.partial.json")
    networks: dict[str, list[str]] = {} if campaign.toy else {"XL/2": ["--size", "XL/2"]}
    files = {who: campaign.out / run / "models" / f"{who}.safetensors" for who, run in RUNS.items()}
    if all(path.exists() for path in files.values()):
        networks["CIFAR-10"] = [word for who, path in files.items() for word in (f"--{who}", str(path))]
    found: dict[str, Rows] = {}
    for name, words in networks.items():
        tables = kept.once(name, lambda words=words: sampling.measured([*shared, *usual, *words])[0])
        found |= {f"{name}: {title}": rows for title, rows in tables.items()}
    return found


RUNS = {"teacher": "teacher", "student": "distill"}
"""Whose weights are in which run's folder."""
PARTS: Mapping[str, tuple[str, Callable[[Campaign], Mapping[str, Rows]]]] = {
    "steps": (
        "both stages' parts at S/2, B/2 and XL/2 in bfloat16 against two measured ceilings, and peers",
        run_steps,
    ),
    "teacher": ("CIFAR-10: a teacher of 22 million weights from nothing", run_teacher),
    "distill": ("CIFAR-10: sketch, refine, evaluation; needs the teacher", run_distill),
    "sampling": ("images a second and latency at XL/2: compiled, CUDA graph, int8, with a decoder", run_sampling),
}


@contextmanager
def within(minutes: float) -> Iterator[None]:
    """Stop as Ctrl-C would when the time is over."""
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Run the parts that are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--plan", action="store_true", help="say what would run")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--data", type=Path, help="cifar10.npz")
    parser.add_argument("--minutes", type=float, default=9.5, help="of each part")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen, peers = parser.parse_known_args()
    if unknown := [part for part in chosen.parts if part not in PARTS]:
        parser.error(f"unknown parts {', '.join(unknown)}; known are {', '.join(PARTS)}")
    campaign = Campaign(chosen.out, chosen.data, chosen.minutes, chosen.toy, chosen.device, tuple(peers))
    names = chosen.parts or list(PARTS)
    if chosen.plan:
        for name in names:
            done = " (done)" if (campaign.out / f"{name}.json").exists() else ""
            sys.stdout.write(f"{name}: {PARTS[name][0]}; at most {campaign.minutes:g} minutes{done}\n")
        return
    if not campaign.toy and campaign.data is None and {"teacher", "distill"} & set(names):
        parser.error("teacher and distill need --data cifar10.npz; --toy takes the bundled pictures")
    for name in names:
        if (campaign.out / f"{name}.json").exists():
            continue
        campaign.out.mkdir(parents=True, exist_ok=True)
        try:
            with within(campaign.minutes):
                found = PARTS[name][1](campaign)
        except KeyboardInterrupt:
            sys.exit(f"{name} was stopped; the same command goes on with it")
        sys.stdout.write(publish(name, found, campaign.out))


if __name__ == "__main__":
    main()
