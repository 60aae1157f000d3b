"""A small text-to-image teacher: a SANA of latents and prompts, trained on pictures with captions such as emoji."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.optim import AdamW

from hidistill.codecs import Autoencoder, Pixels
from hidistill.conventions import Flow
from hidistill.export.diffusers import replaced, write_part
from hidistill.foreign.autoencoder import codec_of
from hidistill.foreign.folder import Folder, library
from hidistill.foreign.network import Network
from hidistill.guidance import Guided
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.recipes.autoencoders import configuration
from hidistill.recipes.prompted import Held, Pairs, captioned, encoder, loaded, pairs, side_of
from hidistill.report.pictures import font, picture, quantized
from hidistill.sampling import euler
from hidistill.seeds import fold_in, normal
from hidistill.teachers import sana
from hidistill.times import Arcsine, LogitNormal
from hidistill.train.ema import Average
from hidistill.train.experiment import Experiment, Product
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Points, TimeLaw

HEAD = 32
"""Channels of an attention head."""
SHOWN = (
    "red apple, 3D render",
    "grinning face with big eyes, flat drawing",
    "red heart, 3D render",
    "octopus, flat drawing",
    "sunflower, 3D render",
    "cat face, 3D render",
    "rocket, flat drawing",
    "purple apple, 3D render",
)
"""Prompts of the picture of samples."""
SCALES = (1.0, 3.0, 5.0)
"""Guidance of its rows."""
SAMPLING_STEPS = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Finish:
    """Writes what a run leaves: the pipeline as a folder of diffusers, and samples.

    Args:
        network: the teacher.
        codec: between its latents and pixels.
        text: folder of the text encoder and the tokenizer.
        vae: folder of the autoencoder.
        shown: the tensors of `SHOWN`.
        seed: of the samples' noise.
    """

    network: Network
    codec: Autoencoder
    text: Path
    vae: Path
    shown: Mapping[str, Tensor]
    seed: int

    def __call__(self, folder: Path) -> None:
        """Write `pipeline` and `samples/prompts.png` into a run's folder."""
        self.network.cpu()
        with replaced(folder / "pipeline") as new:
            write_pipeline(new, self.network.net, text=self.text, vae=self.vae)
        (folder / "samples").mkdir(exist_ok=True)
        sheet(self.network, self.codec, self.shown, seed=self.seed).save(folder / "samples" / "prompts.png")
        logger.info("the teacher is %s, a SanaPipeline", folder / "pipeline")


def teacher(
    *,
    images: Path,
    text: Path,
    vae: Path,
    held_out: Path | None = None,
    width: int = 256,
    layers: int = 6,
    patch: int = 2,
    steps: int = 3400,
    polish_steps: int = 800,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> Experiment:
    """Train a small text-to-image teacher on pictures with captions: a SANA on latents, by flow matching.

    Needs: pictures with captions (scripts/build_emoji.py), a text encoder (scripts/minilm_folder.py) and an
    autoencoder (autoencoders.train); about 40 minutes on one core at 32 pixels.
    Reaches: pictures of captions that it has seen; of others the right color, shape and style at best.

    Args:
        images: folder of pictures with captions.
        text: folder with text_encoder and tokenizer, as pipelines have them.
        vae: folder of an autoencoder of diffusers; a RUN/vae of autoencoders.train.
        held_out: folder of other pictures with captions, on which the loss is measured along the way.
        width: channels of the transformer, a multiple of 32.
        layers: its blocks.
        patch: side of a token in latents.
        steps: length of the training.
        polish_steps: steps behind it at half the rate, at times that are often near noise and near data; 0 is none.
        batch_size: pictures per step.
        lr: learning rate of AdamW.
        seed: of weights, data order, noise and dropped captions.
    """
    refuse(width=width, lr=lr, counts={"layers": layers, "patch": patch, "steps": steps, "batch_size": batch_size})
    if polish_steps < 0:
        raise ValueError(f"polish_steps={polish_steps}: must not be negative; 0 leaves the polish out")
    source = Folder(vae)
    codec, size = codec_of(source), side_of(images)
    if isinstance(codec, Pixels) or size % (codec.factor * patch):
        raise ValueError(
            f"{vae} and pictures of {size} pixels: an autoencoder is needed whose latents of them have sides that are "
            f"multiples of patch={patch}; give its own folder, or another patch"
        )
    records = {folder: captioned(folder, size) for folder in (images, held_out) if folder is not None}
    prompts = encoder(text, [*SHOWN, *(record.caption or "" for found in records.values() for record in found)])
    train = pairs(records[images], codec, prompts)
    torch.manual_seed(fold_in(seed, "weights"))
    net = build(train, width=width, layers=layers, patch=patch)
    null = prompts([""])
    network = Network(net, sana.FAMILY, Flow(), null=null)
    shorter = {"steps": steps, "lr": lr, "times": LogitNormal(0.0, 1.2), "average": 0.999}
    stages = [regression("teacher", network, **shorter)]
    if polish_steps:
        stages.append(regression("polish", network, steps=polish_steps, lr=lr / 2, times=Arcsine(), average=0.99))
    card = {"data": f"{len(train.latents):,} pictures with captions"}
    product = Product("teacher", "teacher.safetensors", "sana", configuration(net), card)
    probe = None
    if held_out is not None:
        averages = {stage.name: stage.averages["teacher"].module for stage in stages}
        networks = {name: Network(module, sana.FAMILY, Flow(), null=null) for name, module in averages.items()}
        probe = Held(pairs(records[held_out], codec, prompts), networks, seed)
    count = sum(parameter.numel() for parameter in net.parameters())
    tokens = (train.latents.shape[-1] // patch) ** 2
    notes = (
        f"{count:,} parameters, {tokens} tokens a picture, {prompts.tokens} a prompt",
        f"{len(train.mirrors) - int(train.mirrors.sum()):,} of {len(train.mirrors):,} pictures are never mirrored",
    )
    return Experiment(
        stages=stages,
        modules={"teacher": net},
        batch_at=lambda step: train.batch(step, batch_size=batch_size, seed=seed),
        seed=seed,
        products={stage.name: product for stage in stages},
        probe=probe,
        probe_every=max(1, (steps + polish_steps) // 12) if probe is not None else 0,
        finish=Finish(network, codec, text, vae, prompts(SHOWN), seed),
        extendable=("steps", "polish_steps"),
        notes=notes,
    )


def refuse(*, width: int, lr: float, counts: Mapping[str, int]) -> None:
    """Refuse numbers of which no teacher can be made, before pictures are read."""
    wrong = ", ".join(f"{name}={count}" for name, count in counts.items() if count < 1)
    if wrong:
        raise ValueError(f"{wrong}: a teacher's training needs at least 1; leave it out for the usual number")
    if width < HEAD or width % HEAD:
        raise ValueError(
            f"width={width}: attention heads have {HEAD} channels; give a multiple of {HEAD}, 256 is usual"
        )
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr={lr}: a learning rate is a positive number; leave it out for the usual one")


def regression(name: str, network: Network, *, steps: int, lr: float, times: TimeLaw, average: float) -> Stage:
    """A stage in which the velocity field learns from data; a tenth of the captions is dropped."""
    optimizer = AdamW(network.net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    objective = FlowMatching(network, times, network.null, drop=0.1)
    warmup = min(200, steps // 4)
    schedule = WarmupDecay(steps, warmup, min(steps - warmup, max(1, 2 * steps // 5)))
    update = Update(objective, optimizer, schedule=schedule)
    return Stage(name, {"teacher": update}, steps, {"teacher": Average(network.net, average)})


def build(train: Pairs, *, width: int, layers: int, patch: int) -> Any:  # noqa: ANN401 -- a class of diffusers
    """A `SanaTransformer2DModel` that starts with a velocity of zero."""
    channels, side = train.latents.shape[1], train.latents.shape[-1]
    heads = width // HEAD
    net = library().SanaTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=heads,
        attention_head_dim=HEAD,
        num_layers=layers,
        num_cross_attention_heads=heads,
        cross_attention_head_dim=HEAD,
        cross_attention_dim=width,
        caption_channels=train.cond["text"].shape[-1],
        mlp_ratio=2.5,
        sample_size=side,
        patch_size=patch,
        interpolation_scale=1,
    )
    nn.init.zeros_(net.proj_out.weight)
    nn.init.zeros_(net.proj_out.bias)
    return net


def write_pipeline(out: Path, net: nn.Module, *, text: Path, vae: Path) -> None:
    """Write the folder of a `SanaPipeline`; its autoencoder and its text encoder are copies."""
    parts = loaded(text)
    write_part(net, out / "transformer")
    write_part(library().FlowMatchEulerDiscreteScheduler(), out / "scheduler")
    for place, name in ((vae, "vae"), (text / "text_encoder", "text_encoder"), (text / "tokenizer", "tokenizer")):
        shutil.copytree(place, out / name)
    index = {"_class_name": "SanaPipeline", "_diffusers_version": library().__version__}
    index |= {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "vae": ["diffusers", class_of(vae)]}
    index |= {"transformer": ["diffusers", type(net).__name__]}
    index |= {name: ["transformers", type(part).__name__] for name, part in parts.items()}
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def class_of(folder: Path) -> str:
    """The class of a network's folder."""
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"])


def sheet(network: Network, codec: Autoencoder, shown: Mapping[str, Tensor], *, seed: int) -> Image.Image:
    """Samples of `SHOWN`: a row per prompt, two columns of other noise for each guidance."""
    rows, shape = len(SHOWN), codec_shape(network)
    noise = normal([fold_in(seed, "shown", i) for i in range(2 * rows)], shape)
    cond = {name: torch.cat([value, value]) for name, value in shown.items()}
    columns: list[Points] = []
    for scale in SCALES:
        drawn = codec.decode(euler(Guided(network, scale), noise, cond=cond, steps=SAMPLING_STEPS))
        columns += [drawn[:rows], drawn[rows:]]
    tiles = quantized(torch.stack(columns, 1).flatten(0, 1))
    zoom = max(1, 64 // tiles.shape[-1])
    tile, left, top, face = tiles.shape[-1] * zoom + 2, 250, 20, font(12)
    canvas = Image.new("RGB", (left + len(columns) * tile, top + rows * tile), "white")
    draw = ImageDraw.Draw(canvas)
    for i, scale in enumerate(SCALES):
        draw.text((left + 2 * i * tile, 3), f"guidance {scale:g}", fill="black", font=face)
    for row, prompt in enumerate(SHOWN):
        draw.text((4, top + row * tile + tile // 2 - 6), prompt, fill="black", font=face)
        for column in range(len(columns)):
            small = picture(tiles[row * len(columns) + column])
            large = small.resize((small.width * zoom, small.height * zoom), Image.Resampling.NEAREST)
            canvas.paste(large, (left + column * tile, top + row * tile))
    return canvas


def codec_shape(network: Network) -> tuple[int, int, int]:
    """Of one sample: channels, height, width."""
    config: Any = network.net.config
    return int(config.in_channels), int(config.sample_size), int(config.sample_size)


RECIPES = (teacher,)
