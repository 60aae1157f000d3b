"""`hidistill cache`: encodes pictures and captions once, as a teacher sees them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

    from hidistill.data.cache import Progress
    from hidistill.recipes.caching import Made


def cache(
    *,
    teacher: Path,
    images: str,
    out: Path,
    size: int | None = None,
    workers: int = 1,
    broken: Literal["refuse", "skip"] = "refuse",
    longer: Literal["refuse", "cut"] = "refuse",
    length: int | None = None,
    instruction: bool = True,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    batch_size: int = 16,
    device: str = "cpu",
    kind: Literal["dit", "sit"] | None = None,
    autoencoder: Literal["pixels"] | Path | None = None,
    allow_pickle: bool = False,
) -> int:
    """Encode pictures and captions as a teacher sees them; the same command again goes on where it stopped.

    Args:
        teacher: folder of a diffusers pipeline, or a checkpoint of DiT or SiT; nothing is written into it.
        images: a folder of pictures, perhaps of parts train, valid and test; datasets:NAME or datasets:NAME:SPLIT; tar
            files such as 'data/{000..012}.tar'; prompts alone in a .txt or .jsonl file; or fashion-mnist, the bundled
            pictures.
        out: folder of the cache.
        size: side of the pictures in pixels; by default the teacher's.
        workers: 1, whose thread decodes a batch ahead, or 2 to decode pictures in a second process.
        broken: whether broken pictures end the run, or are left out and listed.
        longer: whether captions that are longer than the text encoders take end the run, or are cut.
        length: tokens that a prompt is filled up to; by default the pipeline's. Where the network is given a mask,
            fewer change nothing but what the cache weighs.
        instruction: whether SANA's lines stand before each prompt, as its pipeline does by default.
        dtype: in which latents and conditions are stored.
        batch_size: pictures that are encoded at a time; another one may change last bits.
        device: where encoders run, e.g. cuda.
        kind: which repository's a checkpoint is.
        autoencoder: of a checkpoint: its folder, or pixels if there is none.
        allow_pickle: whether weights in a pickle may be read, tensors alone.
    """
    from hidistill.recipes.caching import write_cache

    console = Console()
    with resumable(), shown(console) as tell:
        made = write_cache(
            teacher=teacher,
            images=images,
            out=out,
            size=size,
            workers=workers,
            broken=broken,
            longer=longer,
            length=length,
            instruction=instruction,
            dtype=dtype,
            batch_size=batch_size,
            device=device,
            kind=kind,
            autoencoder=autoencoder,
            allow_pickle=allow_pickle,
            tell=tell,
        )
    for line in told(made, out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


@contextmanager
def resumable() -> Iterator[None]:
    """Within, Ctrl-C says what becomes of what is written."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("the same command goes on after the shards that are written", highlight=False)
        raise


@contextmanager
def shown(console: Console) -> "Iterator[Callable[[Progress], None]]":
    """Within, progress is one line that is renewed on a terminal, and elsewhere a line every ten seconds."""
    from hidistill.cli.progress import SECONDS_BETWEEN_LINES

    last = time.monotonic()
    status = console.status("reads the source and the encoders") if console.is_terminal else None

    def tell(progress: "Progress") -> None:
        nonlocal last
        line = pace(progress)
        if status is not None:
            status.update(line)
        elif time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    if status is None:
        yield tell
        return
    with status:
        yield tell


def pace(progress: "Progress") -> str:
    """How far, how fast, and how long it takes yet."""
    from hidistill.cli.progress import duration

    rate = progress.encoded / max(progress.seconds, 1e-9)
    whole = f" of {progress.count:,}" if progress.count is not None else ""
    left = f", {duration((progress.count - progress.records) / rate)} left" if progress.count is not None else ""
    return f"{progress.records:,}{whole} records, {rate:.1f} a second{left}"


def told(made: "Made", out: Path) -> list[str]:
    """The closing summary, line by line."""
    summary = made.summary
    rows = ", ".join(f"{count:,} {part}" for part, count in summary.rows.items())
    size = f", {made.size} pixels a side" if made.size else ", no pictures"
    lines = [f"{out}: {made.words}", f"rows: {rows}{size}; {summary.bytes / 1e6:,.1f} MB"]
    if empty := [part for part, count in summary.rows.items() if not count]:
        lines.append(f"nothing in {' and '.join(empty)}: too few different captions or pictures to evaluate on")
    if summary.captions:
        lines.append(f"captions: {summary.captions:,} different ones, each in one part alone")
    if summary.broken:
        shown = ", ".join(summary.broken[:5]) + (", ..." if len(summary.broken) > 5 else "")
        lines.append(f"left out: {len(summary.broken):,} broken pictures: {shown}")
    lines += [f"cut: {count:,} captions for {encoder}, which takes no more" for encoder, count in summary.cut.items()]
    if summary.encoded:
        rate = summary.encoded / max(summary.seconds, 1e-9)
        lines.append(f"{summary.encoded:,} records in {summary.seconds:.1f} s, {rate:.1f} a second")
    else:
        lines.append("everything was there already, and is what was written")
    return lines


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(cache, args=argv, prog="hidistill cache")
