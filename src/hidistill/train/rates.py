"""How long an operation takes: measured on this machine, or read off a datasheet.

One model for both: an operation takes the larger of the time for its products and the time for its bytes. On a measured
machine each is a curve over the operation's size, taken in a few seconds; off a datasheet it is a rate and the time of
a launch, which no kernel beats.
"""

import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidistill.attention import attend
from hidistill.train.counting import Kind, Op, Work
from hidistill.train.loop import Precision

Clock = Callable[[], float]
SECONDS = 0.03
"""That one point of a curve is measured for."""
SIZES = (2**8, 2**12, 2**16, 2**20, 2**22)
"""Numbers in a tensor of which operations that move bytes are measured: in a core's own memory, and beyond it."""
COLD_BYTES = 2**26
"""Over which operands and answers of what is measured are spread: more than a processor's caches hold. In a step an
operation finds its weights and most activations where the last step, or the forward pass, has left them."""
COLD_SETS = 256
"""As many sets of small operands at the most: what small operations take is not the moving of bytes."""
NUMBERS_MOVED = 13
"""Of four bytes each, that an optimizer's step reads or writes for one weight where every pass over memory counts: Adam
4 and 3, the gradient's norm 1, its clipping 2, the average 3. (The zeroing of a gradient sets a pointer.)"""


@dataclass(frozen=True)
class Curve:
    """Seconds over a size: straight between measured points on logarithmic axes, in proportion beyond the last."""

    points: Sequence[tuple[float, float]]

    def __call__(self, size: float) -> float:
        """Seconds for a size."""
        sizes = [point[0] for point in self.points]
        (first, least), (last, most) = self.points[0], self.points[-1]
        if size <= first:
            return least
        if size >= last:
            return most * size / last
        i = bisect_right(sizes, size)
        (a, x), (b, y) = self.points[i - 1], self.points[i]
        return math.exp(math.log(x) + math.log(y / x) * math.log(size / a) / math.log(b / a))


@dataclass(frozen=True)
class Line:
    """Seconds over a size at a rate, and at least one launch."""

    rate: float
    launch: float

    def __call__(self, size: float) -> float:
        """Seconds for a size."""
        return self.launch + size / self.rate


@dataclass(frozen=True)
class Stopwatch:
    """Tells a call's seconds: the lower quartile of five or more, for what others take only adds.

    Args:
        clock: by which seconds are told.
        wait: until a device has done what it was given.
    """

    clock: Clock
    wait: Callable[[], None]

    def __call__(self, run: Callable[[], object]) -> float:
        """Call, and call again."""
        run()
        taken: list[float] = []
        while sum(taken) < SECONDS or len(taken) < 5:
            self.wait()
            began = self.clock()
            run()
            self.wait()
            taken.append(self.clock() - began)
        return sorted(taken)[len(taken) // 4]


def nothing() -> None:
    """Wait for nobody."""


@dataclass(frozen=True)
class Rates:
    """What a machine takes for operations.

    Args:
        machine: its name, and where the numbers are from.
        products: seconds for so many products of float32, by kind.
        half: likewise in bfloat16.
        heavy: seconds for so many bytes of operations that also calculate: activations, norms, random numbers.
        light: seconds for so many bytes that are read and written in order.
        strided: likewise out of order, or added up.
        update: seconds for an optimizer's step, over the numbers that move.
        memory: bytes that there are, for one process; 0 if nobody knows.
        link: bytes a second that a process sends to its neighbors; 0 if nobody knows.
        between: likewise between machines.
    """

    machine: str
    products: Mapping[Kind, Curve | Line]
    half: Mapping[Kind, Curve | Line]
    heavy: Curve | Line
    light: Curve | Line
    strided: Curve | Line
    update: Curve | Line
    memory: float = 0.0
    link: float = 0.0
    between: float = 0.0

    def seconds(self, op: Op) -> float:
        """Of one operation."""
        if op.kind == "heavy":
            return self.heavy(float(op.bytes))
        if op.kind == "light":
            return self.light(float(op.bytes))
        if op.kind == "strided":
            return self.strided(float(op.bytes))
        table = self.half if op.half else self.products
        return max(table[op.kind](float(op.flops)), self.light(float(op.bytes)) if op.kind == "product" else 0.0)

    def seconds_of(self, work: Work) -> float:
        """Of one update, its optimizer's step included."""
        return sum(count * self.seconds(op) for op, count in work.ops.items()) + self.update(float(work.moving))


def measured(
    work: Sequence[Work] = (),
    *,
    precision: Precision = "float32",
    device: str = "cpu",
    clock: Clock = time.perf_counter,
) -> Rates:
    """Measure this machine, as it is loaded now; takes a few seconds.

    Args:
        work: what will be asked about; convolutions and attention are measured where it has some.
        precision: of the run; bfloat16 is measured where it is asked for.
        device: what is measured.
        clock: by which seconds are told; `time.process_time` for those of a processor's one thread.
    """
    wait = torch.cuda.synchronize if device.startswith("cuda") else nothing
    take = Stopwatch(clock, wait)
    kinds: set[Kind] = {op.kind for each in work for op in each.ops}
    with torch.random.fork_rng(devices=[]):
        single = table_of(device, "float32", kinds, take)
        half = table_of(device, precision, kinds, take) if precision != "float32" else single
        calculated = Curve([heavy(n, device, take) for n in SIZES])
        moved = Curve([light(n, device, take) for n in SIZES])
        scattered = Curve([strided(n, device, take) for n in SIZES])
        update = Curve([step_of(n, device, take) for n in (2**13, 2**17, 2**20)])
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    return Rates(f"measured here ({name})", single, half, calculated, moved, scattered, update)


def peak(precision: Precision, device: str) -> float:
    """Products a second of one large matrix product, measured: what a step's are compared with."""
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    take = Stopwatch(time.perf_counter, torch.cuda.synchronize if device.startswith("cuda") else nothing)
    with torch.random.fork_rng(devices=[]):
        flops, seconds = product(512 if device == "cpu" else 8192, device, kind, take)
    return flops / seconds


def datasheet(name: str, *, share: float = 1.0) -> Rates:
    """A machine as its maker describes it.

    Args:
        name: one of `DATASHEETS`.
        share: of the products a second that its maker gives, which a run is taken to reach; 1 is what nothing beats.

    Raises:
        ValueError: if the name is unknown, or the share is not in (0, 1].
    """
    if name not in DATASHEETS:
        raise ValueError(f"accelerator {name!r} is unknown; there are {', '.join(DATASHEETS)}")
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: of the maker's products a second; it must be in (0, 1]")
    sheet = DATASHEETS[name]
    kinds: tuple[Kind, ...] = ("product", "convolution", "attention")
    single: dict[Kind, Curve | Line] = dict.fromkeys(kinds, Line(share * sheet.single, sheet.launch))
    half: dict[Kind, Curve | Line] = dict.fromkeys(kinds, Line(share * sheet.half, sheet.launch))
    memory = Line(sheet.bandwidth, sheet.launch)
    update = Line(sheet.bandwidth / (4 * NUMBERS_MOVED), 8 * sheet.launch)
    at = f" at {share:.0%} of its products a second" if share < 1 else ""
    return Rates(
        f"{name}, its datasheet{at}", single, half, memory, memory, memory, update, sheet.memory, sheet.link,
        sheet.between,
    )  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """Products a second in float32 and in bfloat16, bytes a second of memory and links, bytes of memory."""

    single: float
    half: float
    bandwidth: float
    memory: float
    link: float
    between: float
    launch: float = 3e-6


DATASHEETS = {
    "H100": Sheet(67e12, 989e12, 3.35e12, 80e9, 450e9, 50e9),
    "H200": Sheet(67e12, 989e12, 4.8e12, 141e9, 450e9, 50e9),
    "A100": Sheet(19.5e12, 312e12, 2.04e12, 80e9, 300e9, 25e9),
}
"""NVIDIA's data sheets of the SXM cards, without sparsity: float32 outside tensor cores, bfloat16 within them; NVLink
in one direction; between machines a network card of 400 (A100: 200) Gbit/s for each GPU. A launch of 3 microseconds is
not on any sheet; it is the order of what kernels that do nothing take."""


def table_of(device: str, precision: Precision, kinds: set[Kind], take: Stopwatch) -> dict[Kind, Curve | Line]:
    """Curves of the kinds that consist of products."""
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    widths = (16, 32, 64, 128, 256) if device == "cpu" else (64, 256, 1024, 4096)
    products = Curve([layer(n, device, kind, take) for n in widths])
    found: dict[Kind, Curve | Line] = dict.fromkeys(("product", "convolution", "attention"), products)
    if "convolution" in kinds:
        found["convolution"] = Curve([convolution(n, device, kind, take) for n in (1, 8, 32)])
    if "attention" in kinds:
        found["attention"] = Curve([attention(n, device, kind, take) for n in (16, 64, 256)])
    return found


def cold(run: Callable[..., object], *operands: Tensor) -> Callable[[], object]:
    """A call whose operands were not touched lately, as in a step, and whose answer lies where none lay lately.

    Args:
        run: what is called with copies of the operands, other ones each time.
        operands: what it is called with; those that require a gradient get none from one call to another.
    """
    size = 2 * sum(each.numel() * each.element_size() for each in operands)
    count = min(max(2, COLD_BYTES // size), COLD_SETS)
    sets = cycle(
        [[each.detach().clone().requires_grad_(each.requires_grad) for each in operands] for _ in range(count)]
    )
    answers: deque[object] = deque(maxlen=count)

    def call() -> None:
        answers.append(run(*next(sets)))

    for _ in range(count):  # memory that is asked for the first time takes longer; a step reuses what the last one had
        call()
    return call


def product(side: int, device: str, kind: torch.dtype, take: Stopwatch) -> tuple[float, float]:
    """Products of a matrix product, and its seconds."""
    a, b = torch.randn(2, side, side, device=device, dtype=kind)
    return 2.0 * side**3, take(lambda: a @ b)


def layer(width: int, device: str, kind: torch.dtype, take: Stopwatch) -> tuple[float, float]:
    """Products of a linear layer on 16 times as many tokens as it is wide, and its seconds."""
    x, weight = (torch.randn(n, width, device=device, dtype=kind) for n in (16 * width, width))
    return 2.0 * 16 * width**3, take(cold(F.linear, x, weight))


def convolution(rows: int, device: str, kind: torch.dtype, take: Stopwatch) -> tuple[float, float]:
    """Products of a convolution of 3 x 3 over 16 channels of 28 x 28, and its seconds, forward and back."""
    kernel = nn.Conv2d(16, 16, 3, padding=1).to(device, kind)
    x = torch.randn(rows, 16, 28, 28, device=device, dtype=kind, requires_grad=True)
    back = take(cold(lambda x: torch.autograd.grad(kernel(x).sum(), [x, *kernel.parameters()]), x))
    return 2.0 * rows * 16 * 16 * 9 * 28 * 28, back / 3


def attention(tokens: int, device: str, kind: torch.dtype, take: Stopwatch) -> tuple[float, float]:
    """Products of the two halves of attention, 16 rows of 4 heads of 32, and their seconds: 2 forward, 5 back."""
    q, k, v = (torch.randn(16, 4, tokens, 32, device=device, dtype=kind, requires_grad=True) for _ in range(3))
    both = cold(lambda *qkv: torch.autograd.grad(attend(*qkv).sum(), qkv), q, k, v)
    return 7.0 * 2 * 16 * 4 * 32 * tokens**2 / 2, take(both) / 2


def heavy(size: int, device: str, take: Stopwatch) -> tuple[float, float]:
    """Bytes of an activation and of a layer norm, and their seconds, on the mean."""
    both = cold(lambda x: (F.silu(x), F.layer_norm(x, (64,))), torch.randn(size // 64, 64, device=device))
    return 8.0 * size, take(both) / 2


def light(size: int, device: str, take: Stopwatch) -> tuple[float, float]:
    """Bytes of a sum and of a product with one row for all, and their seconds, on the mean."""
    x, y = torch.randn(2, size // 64, 64, device=device)
    return 10.0 * size, take(cold(lambda x, y: (x + y, x * y[:1]), x, y)) / 2


def strided(size: int, device: str, take: Stopwatch) -> tuple[float, float]:
    """Bytes of a copy that exchanges tokens and heads of 32, and of a sum over tokens; their seconds, on the mean."""
    x = torch.randn(16, max(1, size // 2**11), 4, 32, device=device)
    both = cold(lambda x: (x.transpose(1, 2).contiguous(), x.flatten(0, 1).flatten(1).sum(0)), x)
    return 6.0 * x.numel(), take(both) / 2


def step_of(size: int, device: str, take: Stopwatch) -> tuple[float, float]:
    """Numbers of weights in tensors of 2^13, and the seconds of an Adam step with clipping and an average."""
    weights = [torch.zeros(2**13, device=device) for _ in range(max(1, size // 2**13))]
    followers: list[Tensor] = [torch.zeros_like(weight) for weight in weights]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.Adam(weights)

    def run() -> None:
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(weights, 1.0, norm)
        optimizer.step()
        torch._foreach_lerp_(followers, weights, 0.1)

    return float(sum(weight.numel() for weight in weights)), take(run)
