"""Pictures a second that `hidistill cache` encodes with one and with two workers, and the ratio of the two.

    python benchmarks/caching.py

JPEG files of 512 x 512 pixels (enlarged pictures of Fashion-MNIST) are decoded, brought to 256 x 256 and encoded by two
autoencoders of diffusers with random weights: a small one beside which decoding weighs much, and one of four levels
beside which it does not. Medians of paired rounds, one worker and two in turn; a worker's start is part of the time.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image

from hidistill.data.fashion import bundled
from hidistill.recipes.caching import write_cache
from hidistill.scores import markdown

COUNT, ROUNDS = 192, 5
LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def teachers(root: Path) -> dict[str, Path]:
    """Pipelines that differ in their autoencoder; of the network only the configuration is looked at."""
    autoencoders = {
        "AutoencoderTiny, 16 channels": AutoencoderTiny(
            encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4
        ),
        "AutoencoderKL, 16 to 64 channels": AutoencoderKL(
            block_out_channels=(16, 32, 64, 64), latent_channels=4, norm_num_groups=8, **LEVELS
        ),
    }
    found = {}
    for name, vae in autoencoders.items():
        net = DiTTransformer2DModel(
            num_attention_heads=1, attention_head_dim=8, num_layers=1, sample_size=32, num_embeds_ada_norm=1000
        )
        found[name] = root / f"teacher{len(found)}"
        DiTPipeline(net, vae, DDIMScheduler()).save_pretrained(found[name])
    return found


def pictures(root: Path) -> Path:
    """A folder of JPEG files in two classes."""
    split = bundled("train")
    for index in range(COUNT):
        place = root / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(split.images[index, 0].numpy()).convert("RGB")
        small.resize((512, 512), Image.Resampling.BICUBIC).save(place / f"{index:04d}.jpg", quality=90)
    return root


def rate(teacher: Path, images: Path, workers: int) -> float:
    """Pictures a second."""
    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        write_cache(teacher=teacher, images=str(images), out=Path(out) / "cache", size=256, workers=workers)
        return COUNT / (time.perf_counter() - begin)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = [["autoencoder", "1 worker, pictures a second", "2 workers", "ratio"]]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        images = pictures(root / "pictures")
        for name, teacher in teachers(root).items():
            pairs = [(rate(teacher, images, 1), rate(teacher, images, 2)) for _ in range(ROUNDS)]
            one, two = (median(column) for column in zip(*pairs, strict=True))
            ratio = median(b / a for a, b in pairs)
            rows.append([name, f"{one:.1f}", f"{two:.1f}", f"{ratio:.2f}"])
    sys.stdout.write(markdown(rows) + f"{os.cpu_count()} cores, one thread a process, torch {torch.__version__}\n")


if __name__ == "__main__":
    main()
