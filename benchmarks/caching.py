"""Pictures a second that `hidistill cache` encodes with one and with two workers, and the ratio of the two.

    python benchmarks/caching.py

JPEG files of 512 x 512 pixels (enlarged pictures of Fashion-MNIST) are decoded, brought to 256 x 256 and encoded by two
autoencoders of diffusers with random weights: a small one beside which decoding weighs much, and one of four levels
beside which it does not. Medians of paired rounds, one worker and two in turn; a worker's start is part of the time.
"Cores at work" are the processors' seconds of all of it, by the seconds that passed: 2 with two workers on two quiet
cores would be both at work all the time. "Waiting" is the share of the encoder's time in which it has no picture yet,
from the second batch on.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from measuring.results import options, publish
from PIL import Image

from hidistill.data.cache.feeding import Stretch, feed
from hidistill.data.cache.gathering import latents
from hidistill.data.fashion import bundled
from hidistill.recipes.caching import reader, write_cache
from hidistill.recipes.originals import parts_at
from hidistill.recipes.teachers import codec_at

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


def pictures(root: Path, count: int) -> Path:
    """A folder of JPEG files in two classes."""
    split = bundled("train")
    for index in range(count):
        place = root / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(split.images[index, 0].numpy()).convert("RGB")
        small.resize((512, 512), Image.Resampling.BICUBIC).save(place / f"{index:04d}.jpg", quality=90)
    return root


def rate(teacher: Path, images: Path, workers: int, count: int) -> tuple[float, float]:
    """Pictures a second, and cores at work."""
    with tempfile.TemporaryDirectory() as out:
        begin, spent = time.perf_counter(), processors()
        write_cache(teacher=teacher, images=str(images), out=Path(out) / "cache", size=256, workers=workers)
        took = time.perf_counter() - begin
        return count / took, (processors() - spent) / took


def waiting(teacher: Path, images: Path, workers: int, count: int) -> float:
    """Percent of the time that the encoder waits for its pictures."""
    codec = codec_at(parts_at(teacher))
    read = reader(str(images), size=256, broken="refuse")
    waits, works = [], []
    with feed(read, Stretch(0, count, 16, count), workers=workers) as batches, torch.no_grad():
        begin = time.perf_counter()
        for batch in batches:
            ready = time.perf_counter()
            latents(codec, torch.stack([record.image for record in batch]))  # type: ignore[misc]
            waits.append(ready - begin)
            begin = time.perf_counter()
            works.append(begin - ready)
    return 100 * sum(waits[1:]) / sum([*waits[1:], *works[1:]])


def processors() -> float:
    """Seconds that this process and those it has waited for had a processor."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def row(name: str, teacher: Path, images: Path, *, rounds: int, count: int) -> dict[str, object]:
    """One worker and two in turn."""
    pairs = [(rate(teacher, images, 1, count), rate(teacher, images, 2, count)) for _ in range(rounds)]
    one, two = zip(*pairs, strict=True)
    found: dict[str, object] = {"autoencoder": name}
    for workers, label, taken in ((1, "1 worker", one), (2, "2 workers", two)):
        found[f"{label}, pictures a second"] = median(rate for rate, _ in taken)
        found[f"{label}, cores at work"] = median(cores for _, cores in taken)
        found[f"{label}, waiting, %"] = waiting(teacher, images, workers, count)
    return found | {"ratio": median(b / a for (a, _), (b, _) in pairs)}


def main() -> None:
    """Measure and write."""
    parser = options(__doc__, "caching", clocks=())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--count", type=int, default=96, help="pictures; starting a worker weighs less among more")
    chosen = parser.parse_args()
    if chosen.count < 32:
        parser.error(f"--count {chosen.count}: give 32 or more, two batches of an encoder")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        images = pictures(root / "pictures", chosen.count)
        shared = {"rounds": chosen.rounds, "count": chosen.count}
        rows = [row(name, teacher, images, **shared) for name, teacher in teachers(root).items()]
    sys.stdout.write(publish("caching", {"Encoding pictures": rows}, chosen.out, packages=("diffusers",)))


if __name__ == "__main__":
    main()
