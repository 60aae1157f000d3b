"""CLIP as a judge of prompts: cosines between pictures and what was asked for (arXiv 2104.08718).

The network is a folder of transformers that the user has. Scores of two backbones do not compare, so the backbone and
the first digits of its weights' sum are part of the name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hidistill.foreign.folder import library
from hidistill.foreign.judges import read_judge
from hidistill.types import Features, Images, Samples
from hidistill.weights import WeightsError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on."""
Rows = Float[Tensor, "_n d"]


def read_model(folder: Path) -> tuple[Any, Any, str]:
    """Network, tokenizer, and the first eight digits of the weights' sum.

    Raises:
        FileNotFoundError, WeightsError: as `read_judge`; also if the tokenizer is missing or damaged.
    """
    model, digest = read_judge(folder, kind="clip", name="CLIPModel", example="clip-vit-base-patch32")
    try:
        tokenizer = library("transformers").AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for one thing
        raise WeightsError(f"{folder} holds no tokenizer of its CLIPModel ({error}); copy it again") from error
    return model, tokenizer, digest


class CLIP:
    """Embeddings of pictures, a feature space, and of prompts; both of length 1.

    Args:
        folder: of the network.
        batch_size: pictures or prompts per pass.
        device: where it runs.
    """

    def __init__(self, folder: Path, *, batch_size: int = 32, device: str = "cpu") -> None:
        model, self.tokenizer, digest = read_model(folder)
        self.model, self.batch_size, self.device = model.to(device), batch_size, device
        vision = model.config.vision_config
        self.side = vision.image_size
        self.name = f"clip-{vision.hidden_size}-patch{vision.patch_size}-{vision.image_size}px-{digest}"

    @torch.no_grad()
    def __call__(self, images: Images) -> Features:
        """float32 (b, d): the shorter side resized (bicubic, antialiased), the center cropped."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images of shape {tuple(images.shape)}: give (b, 1, h, w) or (b, 3, h, w)")
        parts = []
        for chunk in images.split(self.batch_size):
            hidden = self.model.vision_model(pixel_values=self.prepared(chunk).to(self.device)).pooler_output
            parts.append(F.normalize(self.model.visual_projection(hidden).float().cpu(), dim=1))
        return torch.cat(parts)

    def prepared(self, images: Images) -> Float[Tensor, "b 3 side side"]:
        """Square and normalized color images."""
        h, w = images.shape[-2:]
        scale = self.side / min(h, w)
        size = (max(self.side, round(h * scale)), max(self.side, round(w * scale)))
        x = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        x = x[..., top : top + self.side, left : left + self.side].expand(-1, 3, -1, -1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return (x - mean) / std

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Rows:
        """float32 (n, d); what is beyond CLIP's 77 tokens is cut."""
        parts = []
        for start in range(0, len(texts), self.batch_size):
            tokens = self.tokenizer(
                list(texts[start : start + self.batch_size]), padding=True, truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings, return_tensors="pt",
            ).to(self.device)  # fmt: skip
            hidden = self.model.text_model(**tokens).pooler_output
            parts.append(F.normalize(self.model.text_projection(hidden).float().cpu(), dim=1))
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class ClipScore:
    """Mean over pictures of `100 max(0, cos)` with the picture's own prompt.

    The paper's own score has 2.5 in the place of 100; tools report it times 100, as here.

    Args:
        space: the network.
        texts: embeddings of the prompts, one per picture.
    """

    space: CLIP
    texts: Rows

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"clip score/{self.space.name}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The number `clip_score/BACKBONE`, and that of the real pictures where they are as many.

        Raises:
            ValueError: if there are not as many prompts as pictures.
        """
        features = samples.generated.features(self.space)  # type: ignore[arg-type]
        index = torch.arange(len(features)) if samples.index is None else samples.index
        if int(index.max()) >= len(self.texts) or (samples.index is None and len(features) != len(self.texts)):
            raise ValueError(f"{len(features)} pictures for {len(self.texts)} prompts; give one prompt per picture")
        found = {f"clip_score/{self.space.name}": score(features, self.texts[index])}
        key = ("features", self.space)
        if key in samples.real.memory and len(samples.real.memory[key]) == len(self.texts):
            found[f"clip_score_real/{self.space.name}"] = score(samples.real.memory[key][index], self.texts[index])
        return found


def score(pictures: Features, prompts: Rows) -> float:
    """Mean of `100 max(0, cos)` over rows of length 1."""
    return 100 * (pictures.double() * prompts.double()).sum(1).clamp_min(0).mean().item()
