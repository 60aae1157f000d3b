"""`hidistill sample`: images from a finished run or a weights file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


def sample(
    source: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path = Path("samples.png"),
    count: int = 64,
    steps: int | None = None,
    sampler: Literal["jump", "renoise", "euler", "heun"] | None = None,
    label: str | None = None,
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    scale: float | None = None,
    seed: int = 0,
    npz: Path | None = None,
    device: str = "cpu",
    kind: Literal["dit", "sit"] | None = None,
    autoencoder: Literal["pixels"] | Path | None = None,
    allow_pickle: bool = False,
) -> int:
    """Draw images and save them as a picture.

    Args:
        source: a run's folder, a weights file (.safetensors), the folder of a diffusers pipeline such as `hidistill
            export` writes, or a checkpoint of DiT or SiT; --student SOURCE is the same.
        out: the picture, a .png file.
        count: number of images.
        steps: steps of the sampler; by default 1 for a student and 50 for a teacher.
        sampler: jump or renoise for a student, euler or heun for a teacher.
        label: class of all images, by its name or by its number from 0; by default the classes in turn, one per column.
        prompt: what is asked for, where the network draws from prompts; given several times, they take turns.
        scale: guidance scale of a teacher, 1 is no guidance; a student has its teacher's built in.
        seed: image i depends on the seed and i alone.
        npz: file for the images as an array (count, channels, height, width) of uint8, with their labels.
        device: where the networks run, e.g. cuda.
        kind: which repository's a checkpoint is.
        autoencoder: of a checkpoint: its folder, or pixels if there is none.
        allow_pickle: whether a checkpoint in a pickle may be read, its tensors alone.
    """
    from hidistill.cli import drawing

    drawing.refuse(out, count=count, steps=steps, scale=scale, seed=seed, device=device)
    if (source / "model_index.json").is_file() and kind is None and autoencoder is None:
        from hidistill.cli import stock

        if sampler is not None:
            raise ValueError(
                f"--sampler {sampler}: the pipeline in {source} samples with its own scheduler; leave it out"
            )
        plan = stock.Plan(steps or 1, 1.0 if scale is None else scale, label, tuple(prompt), seed, device)
        drawing.save(stock.draw(source, plan, count), out=out, npz=npz)
        said = f"{count} images in {plan.steps} step{'s' if plan.steps > 1 else ''} of the pipeline in {source}: {out}"
        Console().print(said, markup=False, highlight=False, soft_wrap=True)
        return 0
    network = (
        drawing.load(drawing.weights_file(source))
        if kind is None and autoencoder is None
        else drawing.checkpoint(source, kind=kind, autoencoder=autoencoder, allow_pickle=allow_pickle)
    )
    chosen = drawing.label_of(label, network)
    labels = drawing.labels_of(chosen, count, network.classes)
    plan = drawing.plan(network, steps=steps, sampler=sampler, scale=scale)
    cond = drawing.conditions(network, labels, prompt)
    pictures = drawing.images(network, plan, cond, count=count, seed=seed, device=device)
    drawing.write(pictures, labels, one_class=chosen is not None, out=out, npz=npz)
    known = chosen is not None and chosen < len(network.names)
    of_class = "" if chosen is None else f" of class {chosen}" + (f", {network.names[chosen]}," if known else "")
    words = f"{count} images{of_class} in {plan.steps} step{'s' if plan.steps > 1 else ''} of {plan.sampler}: {out}"
    Console().print(words, markup=False, highlight=False, soft_wrap=True)
    return 0


def command(argv: Sequence[str]) -> int:
    """Run the command; `--student SOURCE` is another way to write its argument."""
    argv = [word.removeprefix("--student=") for word in argv if word != "--student"]
    return tyro.cli(sample, args=argv, prog="hidistill sample")
