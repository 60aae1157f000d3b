"""Images a second and latency of the teacher in many steps and the student in one or two, in every form they can take.

    python benchmarks/sampling.py                              # the demo's networks, about two minutes on one core
    python benchmarks/sampling.py --student STUDENT.safetensors --judge 500        # and what low precision costs
    python benchmarks/sampling.py --size S/2 --teacher-steps 50 --batches 1 4      # latents, with a random decoder

Latency is of a batch of 1, the rate that of the best of the batches. A guided teacher makes two passes a step, batched.
What a form costs in quality is measured with --judge on the demo's pictures: the distance of so many images from the
held-out ones, and the mean difference of a pixel from float32's image of the same noise. Forms that need a GPU, a
compiler or torchao are left out where these are missing, and said to be.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from measuring.problems import SIZES
from measuring.results import options, publish
from measuring.timing import Spread, in_turns
from torch import Tensor, nn

from hidistill.codecs import Autoencoder, Pixels
from hidistill.evaluate import balanced_labels, draw, judged, seeds_of
from hidistill.guidance import Guided
from hidistill.inference import CompiledStudent, Replayed, quantized
from hidistill.recipes.fashion import TEACHER, fashion_jury
from hidistill.recipes.judging import read_student, read_teacher
from hidistill.sampling import euler, grid, jump
from hidistill.teachers.dit import DiT
from hidistill.train.loop import autocast
from hidistill.types import Codec, Gallery, Points, Samples, Student

Sampler = Callable[[Points, Tensor], Points]


def networks(size: str, teacher: Path, student: Path | None, device: str) -> tuple[DiT, nn.Module]:
    """The teacher and a student; from files, or of a size with random weights."""
    if size == "demo":
        net = read_teacher(teacher)
    else:
        torch.manual_seed(0)
        net = DiT(**SIZES[size])
    found = read_student(student) if student else net.student()
    assert isinstance(found, nn.Module)
    return net.to(device).eval().requires_grad_(False), found.to(device).eval().requires_grad_(False)


def decoder(size: str, device: str) -> Codec:
    """Pixels, or for latents a decoder of the usual size (that of Stable Diffusion 1) with random weights."""
    if size in ("demo", "tiny"):
        return Pixels()
    from diffusers import AutoencoderKL

    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device(device):
        module = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, **levels)
    return Autoencoder(module.eval().requires_grad_(False), lambda e: e.latent_dist.mean, factor=8, channels=4)


def steps_of(student: Student, steps: int, precision: str = "float32") -> Sampler:
    """A student in some steps."""

    def sample(noise: Points, cond: Tensor) -> Points:
        with torch.no_grad(), autocast(precision, noise.device.type):
            return jump(student, noise, cond=cond, times=grid(steps)).float()

    return sample


def steps_of_teacher(teacher: DiT, steps: int) -> Sampler:
    """The guided teacher by Euler's method."""
    return lambda noise, cond: euler(Guided(teacher, 1.5), noise, cond=cond, steps=steps)


def forms(student: nn.Module, *, compiling: bool, notes: list[str]) -> Mapping[str, Sampler]:
    """The student in every form that this machine can take."""
    assert isinstance(student, Student)
    found = {"student, 1 step": steps_of(student, 1), "student, 2 steps": steps_of(student, 2)}
    found["student, 1 step, bfloat16"] = steps_of(student, 1, "bfloat16")
    try:
        for weights in ("int8", "float8"):
            lighter = quantized(student, weights)
            assert isinstance(lighter, Student)
            found[f"student, 1 step, {weights} weights"] = steps_of(lighter, 1)
    except ImportError as error:
        notes.append(str(error))
    if compiling:
        found["student, 1 step, compiled"] = steps_of(CompiledStudent(student), 1)
    if torch.cuda.is_available():
        found["student, 1 step, CUDA graph"] = steps_of(Replayed(student), 1)
        found["student, 1 step, CUDA graph, bfloat16"] = steps_of(Replayed(student), 1, "bfloat16")
    else:
        notes.append("no GPU: no CUDA graph")
    return found


def rates(
    samplers: Mapping[str, Sampler],
    net: DiT,
    *,
    batches: Sequence[int],
    rounds: int,
    codec: Codec,
    device: str,
    clock: str,
    warmup: int = 1,
) -> list[dict[str, object]]:
    """Latency and the best rate of each sampler."""
    taken: dict[str, dict[int, Spread]] = {name: {} for name in samplers}
    side = net.grid * net.patch
    for batch in batches:
        noise = torch.randn(batch, net.channels, side, side, device=device)
        cond = torch.zeros(batch, dtype=torch.long, device=device)
        calls = {
            name: (lambda sampler=sampler, noise=noise, cond=cond: codec.decode(sampler(noise, cond)))
            for name, sampler in samplers.items()
        }
        for name, values in in_turns(calls, rounds, warmup, clock).items():
            taken[name][batch] = Spread.of(values)
    rows = []
    for name, found in taken.items():
        best = max(found, key=lambda batch: batch / found[batch].median)
        rate = best / found[best].median
        latency = found[1].text() if 1 in found else "-"
        rows.append({"who": name, "latency of one, s": latency, "images a second": rate, "at a batch of": best})
    return rows


def quality(samplers: Mapping[str, Sampler], n: int, device: str) -> list[dict[str, object]]:
    """Distance from the held-out pictures, and from float32's pictures of the same noise."""
    judges = fashion_jury()
    labels, seeds = balanced_labels(n, len(judges.test.classes)), seeds_of(n, 0)
    real, first, rows = Gallery.of(judges.test), None, []
    for name, sampler in samplers.items():
        images = draw(sampler, seeds=seeds, cond=labels, shape=judges.shape, codec=Pixels(), device=device).images
        first = images if first is None else first
        found = judged(Samples(Gallery(images, labels, judges.test.classes), real), judges.metrics(), name)
        distances = {key: value for key, value in found.items() if key.startswith(("fd/", "agreement"))}
        rows.append({"who": name, "mean difference of a pixel": (images - first).abs().mean().item(), **distances})
    return rows


def measured(words: Sequence[str] | None = None) -> tuple[dict[str, list[dict[str, object]]], list[str], Path]:
    """Tables, notes and the folder they go to, for the words of a command line."""
    parser = options(__doc__, "sampling")
    parser.add_argument("--size", choices=["demo", *SIZES], default="demo")
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="a teacher's weights, in the place of the demo's")
    parser.add_argument("--student", type=Path, help="its student's; without one an untrained one is timed")
    parser.add_argument("--judge", type=int, default=0, help="images that quality is judged by; 0 judges nothing")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--teacher-steps", type=int, nargs="*", default=[50, 250])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="the compiled student too, a minute for each batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(words)
    if chosen.judge and (chosen.size != "demo" or chosen.student is None or chosen.teacher != TEACHER):
        parser.error(
            "--judge needs the demo's student: --student RUN/models/student.safetensors, no other size, teacher"
        )
    notes: list[str] = []
    teacher, student = networks(chosen.size, chosen.teacher, chosen.student, chosen.device)
    students = forms(student, compiling=chosen.compile, notes=notes)
    many = {f"teacher, {n} guided steps": steps_of_teacher(teacher, n) for n in chosen.teacher_steps}
    shared = {"net": teacher, "codec": Pixels(), "device": chosen.device, "clock": chosen.clock}
    rows = rates(students, batches=chosen.batches, rounds=chosen.rounds, **shared)
    best = {1, *(int(row["at a batch of"]) for row in rows if row["who"] == "student, 1 step")}  # type: ignore[call-overload]
    once = {"rounds": 1, "warmup": 0}  # many steps warm up by themselves
    rows += rates(many, batches=sorted(best), **once, **shared) if many else []
    sections = {f"Sampling, {chosen.size}, without a decoder": rows}
    codec = decoder(chosen.size, chosen.device)
    if not isinstance(codec, Pixels):
        shared |= {"codec": codec, "batches": [1]}
        few = {name: students[name] for name in ("student, 1 step", "student, 2 steps")}
        few["the decoder alone"] = lambda noise, _: noise
        sections["With a decoder"] = rates(few, rounds=min(3, chosen.rounds), **shared)
        sections["With a decoder"] += rates(many, **once, **shared) if many else []
    if chosen.judge:
        sections[f"Quality of {chosen.judge} images"] = quality(students, chosen.judge, chosen.device)
    return sections, notes, chosen.out


def main() -> None:
    """Time, judge, write."""
    sections, notes, out = measured()
    sys.stdout.write(publish("sampling", sections, out, notes=notes, packages=("torchao",)))


if __name__ == "__main__":
    main()
