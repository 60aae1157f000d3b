"""Pictures and their captions, as latents and tensors in memory: what a small text-to-image teacher learns from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from hidistill.codecs import Autoencoder
from hidistill.data.captioned import read
from hidistill.foreign.encoders import without_bars
from hidistill.foreign.folder import library
from hidistill.foreign.network import Network
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.path import on, rows_of
from hidistill.seeds import fold_in, normal, shuffled
from hidistill.types import Batch, Record

STOCK = 32
"""The stock pipeline makes pictures whose sides are multiples of this."""
HANDED = re.compile(
    r"\b(left|right|arrow|button|keycap|input|circled|.*clock|thirty|.*letter|mark|question|flag|sign|symbol|note|score"
    r"|hundred|dollar|euro|pound|yen|currency|copyright|globe|map|registered|trade|facing|facepalm)",
    re.IGNORECASE,
)
"""Captions of pictures that would be others if they were mirrored: they name a side, or what is written there."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Turns prompts into tensors by the stock pipeline; no prompt is the empty one.

    Masks say which tokens count: a pipeline that fills prompts up to more has the same result.

    Args:
        pipeline: with text encoder and tokenizer.
        tokens: that a prompt is filled up to.
    """

    pipeline: Any
    tokens: int

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of prompts, one row each."""
        options = {"do_classifier_free_guidance": False, "device": "cpu", "complex_human_instruction": None}
        found = self.pipeline.encode_prompt(list(prompts), max_sequence_length=self.tokens, **options)
        return {"text": found[0], "mask": found[1]}


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures as latents, and their captions as tensors, in memory.

    Args:
        latents: of the pictures.
        mirrored: of the mirrored pictures.
        mirrors: whether a picture may be mirrored.
        cond: tensors of the captions, one row per picture.
    """

    latents: Float[Tensor, "n c h w"]
    mirrored: Float[Tensor, "n c h w"]
    mirrors: Bool[Tensor, " n"]
    cond: Mapping[str, Tensor]

    def batch(self, step: int, *, batch_size: int, seed: int) -> Batch:
        """The batch of a step; half of the pictures that may be mirrored are."""
        rows = shuffled(len(self.latents), batch_size=batch_size, step=step, seed=seed)
        chance = torch.Generator().manual_seed(fold_in(seed, "mirrored", step))
        other = self.mirrors[rows] & (torch.rand(len(rows), generator=chance) < 0.5)
        x = torch.where(other[:, None, None, None], self.mirrored[rows], self.latents[rows])
        return Batch(x, rows_of(self.cond, rows))


@dataclass(frozen=True, eq=False)
class Held:
    """The loss on pictures that are not trained on, at fixed times and noise, with their captions and with others.

    What the captions are worth is the difference of the two.

    Args:
        pairs: the pictures.
        networks: by stage, whose loss it is.
        seed: of the noise.
    """

    pairs: Pairs
    networks: Mapping[str, Network]
    seed: int

    @torch.no_grad()
    def __call__(self, stage: str) -> dict[str, float]:
        """Both losses, by the network of a stage."""
        x = self.pairs.latents[:128]
        noise = normal([fold_in(self.seed, "held out", i) for i in range(len(x))], x.shape[1:])
        t = (torch.arange(len(x)) + 0.5) / len(x)
        captions = rows_of(self.pairs.cond, slice(0, len(x)))
        network = self.networks[stage]
        objective, device = FlowMatching(network), next(network.parameters()).device
        others = {name: value.roll(len(x) // 2, 0) for name, value in captions.items()}  # type: ignore[union-attr]
        losses = {"held_out": captions, "held_out_other_captions": others}
        return {
            name: float(objective.at(on(Batch(x, cond), device), t=t.to(device), noise=noise.to(device)).value.mean())
            for name, cond in losses.items()
        }


def side_of(images: Path) -> int:
    """The side of a folder's pictures, which are all of one size.

    Raises:
        ValueError: if they are not, or are not square, or no `SanaPipeline` makes such.
    """
    sizes = set()
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            with Image.open(path) as opened:
                sizes.add(opened.size)
    if len(sizes) != 1 or len(set(next(iter(sizes)))) != 1 or next(iter(sizes))[0] % STOCK:
        raise ValueError(
            f"{images} holds pictures of the sizes {sorted(sizes)[:5]}; this recipe takes squares of one size, whose "
            f"sides are multiples of {STOCK}, as a SanaPipeline demands: resize them first"
        )
    return next(iter(sizes))[0]


def captioned(folder: Path, size: int) -> list[Record]:
    """The pictures of a folder with their captions.

    Raises:
        ValueError: if there are no captions.
    """
    records = list(read(folder, size=size).records(0))
    if any(record.caption is None for record in records):
        raise ValueError(
            f"{folder} holds pictures without captions; a text-to-image teacher learns from both: add a metadata.jsonl "
            "with file_name and text"
        )
    return records


def encoder(text: Path, captions: Sequence[str]) -> Prompts:
    """What turns prompts into tensors, with as many tokens as the longest of some captions needs.

    Raises:
        ValueError: if the folder has no text encoder or no tokenizer.
    """
    parts = loaded(text)
    tokens = max(len(row) for row in parts["tokenizer"](list(captions), verbose=False)["input_ids"])
    return Prompts(library().SanaPipeline(vae=None, transformer=None, scheduler=None, **parts), tokens)


def loaded(text: Path) -> dict[str, Any]:
    """The text encoder and the tokenizer of a folder."""
    transformers = library("transformers")
    missing = [name for name in ("text_encoder", "tokenizer") if not (text / name).is_dir()]
    if missing:
        raise ValueError(
            f"{text} has no {' and no '.join(missing)}; scripts/minilm_folder.py writes such a folder, and the folders "
            "of diffusers' pipelines are such folders"
        )
    with without_bars():
        # Neither code nor a pickle of the folder's is run.
        given = {"local_files_only": True, "trust_remote_code": False}
        model = transformers.AutoModel.from_pretrained(text / "text_encoder", use_safetensors=True, **given)
        tokenizer = transformers.AutoTokenizer.from_pretrained(text / "tokenizer", **given)
    return {"text_encoder": model.float().eval().requires_grad_(False), "tokenizer": tokenizer}


@torch.no_grad()
def pairs(records: Sequence[Record], codec: Autoencoder, prompts: Prompts) -> Pairs:
    """Latents and conditions of pictures with captions, computed once."""
    pictures = torch.stack([record.image for record in records if record.image is not None]).split(64)
    captions = [record.caption or "" for record in records]
    found = [prompts(captions[start : start + 64]) for start in range(0, len(captions), 64)]
    return Pairs(
        torch.cat([codec.encode(part.float() / 255) for part in pictures]),
        torch.cat([codec.encode(part.flip(3).float() / 255) for part in pictures]),
        torch.tensor([HANDED.search(caption) is None for caption in captions]),
        {name: torch.cat([part[name] for part in found]) for name in found[0]},
    )
