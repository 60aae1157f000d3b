"""Small autoencoders, trained on a folder of pictures: what a teacher of latents needs first."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from hidistill.codecs import Pixels
from hidistill.data.captioned import read
from hidistill.export.diffusers import replaced, write_part
from hidistill.foreign.folder import library
from hidistill.path import mean_per_sample
from hidistill.report.pictures import grid, quantized
from hidistill.seeds import fold_in, shuffled
from hidistill.train.experiment import Experiment, Product
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Batch, Images, Loss, Points

HELD_OUT = 20
"""One picture in so many is held out, by its name."""
MOVED = 3
"""Pixels by which a picture is moved at most in training."""
SHOWN = 12
"""Pictures in the image of reconstructions."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder loses: absolute and squared error of the pixels, and the absolute error of their differences.

    Args:
        net: the autoencoder; pixels in [-1, 1].
        noise: standard deviation of the noise on latents, in units of the batch's own: a generator never meets a
            latent exactly.
        penalty: on the square of the latents.
    """

    net: nn.Module
    noise: float = 0.1
    penalty: float = 1e-4

    def __call__(self, batch: Batch) -> Loss:
        """Encode, add noise, decode, compare."""
        latents = self.net.encode(batch.x).latent  # type: ignore[operator]
        noisy = latents + self.noise * latents.detach().std() * torch.randn_like(latents)
        error = self.net.decode(noisy).sample - batch.x  # type: ignore[operator]
        across, down = error.diff(dim=3).abs(), error.diff(dim=2).abs()
        edges = (mean_per_sample(across) + mean_per_sample(down)) / 2
        squared = mean_per_sample(error.square())
        value = mean_per_sample(error.abs()) + edges + squared + self.penalty * mean_per_sample(latents.square())
        return Loss(value, {"squared": squared.mean().detach()})


@dataclass(frozen=True, eq=False)
class Finish:
    """Writes what a run leaves: the autoencoder as a folder of diffusers, and what it does to held-out pictures.

    Args:
        net: the autoencoder.
        train: its pictures, of which the latents' scale is taken.
        held_out: the others.
    """

    net: nn.Module
    train: UInt8[Tensor, "n c h w"]
    held_out: UInt8[Tensor, "m c h w"]

    @torch.no_grad()
    def __call__(self, folder: Path) -> None:
        """Write `vae`, `samples/reconstructions.png` and `reconstructions.json` into a run's folder."""
        self.net.cpu()
        scale = 1 / torch.cat([self.net.encode(x).latent.flatten() for x in portions(self.train[:1000])]).std().item()  # type: ignore[operator]
        self.net.register_to_config(scaling_factor=scale)  # type: ignore[operator]
        with replaced(folder / "vae") as new:
            write_part(self.net, new)
        numbers = {"psnr": psnr(self.net, self.held_out), "pictures": len(self.held_out), "scaling_factor": scale}
        (folder / "reconstructions.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        shown = self.held_out[:SHOWN]
        rows = torch.cat([shown.float() / 255, reconstructed(self.net, shown)])
        (folder / "samples").mkdir(exist_ok=True)
        scaled = max(1, 96 // shown.shape[-1])
        grid(quantized(rows), columns=len(shown), scale=scaled).save(folder / "samples" / "reconstructions.png")
        logger.info("held-out PSNR %.2f dB; the autoencoder is %s", numbers["psnr"], folder / "vae")


def train(
    *,
    images: Path,
    size: int = 32,
    factor: int = 4,
    latent_channels: int = 16,
    width: int = 32,
    steps: int = 900,
    batch_size: int = 32,
    lr: float = 2e-3,
    seed: int = 0,
) -> Experiment:
    """Train a small autoencoder (DC-AE, the kind that SANA has) on a folder of pictures; diffusers reads it.

    Needs: a few thousand pictures; 8 minutes on one core at 32 pixels.
    Reaches: about 29 dB on held-out emoji of 32 pixels, whose latents are 8 x 8 with 16 channels.

    Args:
        images: folder of pictures, with captions, classes or neither.
        size: side in pixels to which they are brought.
        factor: pixels per side of one latent, a power of two of at least 2.
        latent_channels: numbers per latent.
        width: channels at full resolution; each halving of the side doubles them.
        steps: length of the training.
        batch_size: pictures per step.
        lr: learning rate of AdamW.
        seed: of weights, data order and noise.
    """
    counts = {"steps": steps, "batch_size": batch_size}
    refuse(size=size, factor=factor, latent_channels=latent_channels, width=width, lr=lr, counts=counts)
    source = read(images, size=size)
    records = list(source.records(0))
    out = torch.tensor([fold_in(0, record.key) % HELD_OUT == 0 for record in records])
    pixels = torch.stack([record.image for record in records if record.image is not None])
    if out.all() or not out.any():
        raise ValueError(
            f"{images} holds {len(pixels)} pictures, too few to hold one in {HELD_OUT} out; give 100 or more"
        )
    torch.manual_seed(fold_in(seed, "weights"))
    net = build(factor=factor, latent_channels=latent_channels, width=width)
    optimizer = AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    warmup = min(100, steps // 4)
    schedule = WarmupDecay(steps, warmup, min(steps - warmup, 2 * steps // 5))
    stage = Stage("autoencoder", {"autoencoder": Update(Reconstruction(net), optimizer, schedule=schedule)}, steps)
    count = sum(parameter.numel() for parameter in net.parameters())
    notes = (*source.notes, f"{count:,} parameters; {int(out.sum())} of {len(out):,} pictures are held out")
    card = {"data": f"{len(out):,} pictures of {size} x {size}"}
    return Experiment(
        stages=[stage],
        modules={"autoencoder": net},
        batch_at=lambda step: moved(pixels[~out], batch_size=batch_size, step=step, seed=seed),
        seed=seed,
        products={
            "autoencoder": Product("autoencoder", "autoencoder.safetensors", "autoencoder-dc", configuration(net), card)
        },
        probe=lambda _: {"psnr": psnr(net, pixels[out][:200])},
        probe_every=max(1, steps // 10),
        finish=Finish(net, pixels[~out], pixels[out]),
        notes=notes,
    )


def refuse(*, size: int, factor: int, latent_channels: int, width: int, lr: float, counts: Mapping[str, int]) -> None:
    """Refuse numbers of which no autoencoder can be made, before pictures are read."""
    counts = {"latent_channels": latent_channels, "width": width, **counts}
    wrong = ", ".join(f"{name}={count}" for name, count in counts.items() if count < 1)
    if wrong:
        raise ValueError(f"{wrong}: an autoencoder's training needs at least 1; leave it out for the usual number")
    if factor < 2 or factor & (factor - 1):
        raise ValueError(
            f"factor={factor}: each stage halves the sides, so it is 2, 4, 8, ...; 4 is usual for 32 pixels"
        )
    if size < factor or size % factor:
        raise ValueError(f"size={size}: must be a multiple of factor={factor}; give {factor * max(1, size // factor)}")
    if width * factor % latent_channels:
        raise ValueError(
            f"latent_channels={latent_channels}: must divide the {width * factor} channels at the lowest resolution, "
            f"width={width} times factor={factor}; give 16 or another power of two"
        )
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr={lr}: a learning rate is a positive number; leave it out for the usual one")


def build(*, factor: int, latent_channels: int, width: int) -> Any:  # noqa: ANN401 -- a class of diffusers
    """An `AutoencoderDC` of convolutions, without blocks at full resolution, where they would cost the most."""
    halvings = factor.bit_length() - 1
    channels = tuple(width * 2**i for i in range(halvings + 1))
    layers: dict[str, Any] = {
        "encoder_layers_per_block": (0, *[1] * halvings),
        "decoder_layers_per_block": (0, *[1] * (halvings - 1), 2),
    }
    for side in ("encoder", "decoder"):
        layers |= {f"{side}_block_types": "ResBlock", f"{side}_block_out_channels": channels}
        layers |= {f"{side}_qkv_multiscales": ((),) * len(channels)}
    return library().AutoencoderDC(
        in_channels=3,
        latent_channels=latent_channels,
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        **layers,
    )


def configuration(net: Any) -> dict[str, Any]:  # noqa: ANN401 -- a class of diffusers
    """What rebuilds a network of diffusers."""
    return {"_class_name": type(net).__name__} | {key: net.config[key] for key in net.config if key[0] != "_"}


def moved(pictures: UInt8[Tensor, "n c h w"], *, batch_size: int, step: int, seed: int) -> Batch:
    """The batch of a step: pictures in [-1, 1], half of them mirrored, all moved by the same few pixels.

    What comes in at a side is the pixels that were there.
    """
    rows = shuffled(len(pictures), batch_size=batch_size, step=step, seed=seed)
    chance = torch.Generator().manual_seed(fold_in(seed, "moved", step))
    x = Pixels().encode(pictures[rows].float() / 255)
    mirrored = torch.rand(len(x), generator=chance) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    down, right = torch.randint(2 * MOVED + 1, (2,), generator=chance).tolist()
    height, width = x.shape[2:]
    x = functional.pad(x, (MOVED, MOVED, MOVED, MOVED), mode="replicate")[
        :, :, down : down + height, right : right + width
    ]
    return Batch(x, torch.zeros(len(x), dtype=torch.long))


def portions(pictures: UInt8[Tensor, "n c h w"], size: int = 64) -> Sequence[Points]:
    """Pictures in [-1, 1], a few at a time."""
    return [Pixels().encode(part.float() / 255) for part in pictures.split(size)]


@torch.no_grad()
def reconstructed(net: Any, pictures: UInt8[Tensor, "n c h w"]) -> Images:  # noqa: ANN401 -- a class of diffusers
    """What comes back, in [0, 1]."""
    found = [net.decode(net.encode(x.to(net.device)).latent).sample.cpu() for x in portions(pictures)]
    return Pixels().decode(torch.cat(found))


def psnr(net: Any, pictures: UInt8[Tensor, "n c h w"]) -> float:  # noqa: ANN401 -- a class of diffusers
    """Peak signal-to-noise ratio over all pixels, in decibels."""
    error = (reconstructed(net, pictures) - pictures.float() / 255).square().mean()
    return float(-10 * error.clamp(min=1e-10).log10())


RECIPES = (train,)
