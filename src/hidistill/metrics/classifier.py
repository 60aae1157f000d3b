"""A small convolutional classifier: judge of class agreement, and a feature space made for the images at hand."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidistill.seeds import fold_in, shuffled
from hidistill.types import Features, Images, Logits, Split
from hidistill.weights import WeightsError, load_into, read, save

SMALLEST = 8
BUNDLED = Path(__file__).parent / "assets" / "fashion-classifier.safetensors"


class Classifier(nn.Module):
    """Three convolutions, a 3 x 3 grid of their averages, 64 features, and a linear head.

    Batch norm makes short trainings work; a trained classifier belongs in evaluation mode.

    Args:
        classes: number of classes.
        channels: 1 for gray images, 3 for color.
        widths: channels of the convolutions.
        dim: number of features.
    """

    def __init__(self, classes: int, channels: int = 1, widths: Sequence[int] = (32, 48, 64), dim: int = 64) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(
                f"classes={classes}: a classifier needs at least 2; leave it out for images without classes"
            )
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: images have 1 (gray) or 3 (color)")
        self.channels = channels
        self.config = {"classes": classes, "channels": channels, "widths": list(widths), "dim": dim}
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in zip((channels, *widths), widths, strict=False)
        )
        self.project = nn.Linear(9 * widths[-1], dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, images: Images) -> Logits:
        """One logit per class; pixels in [0, 1]."""
        return self.head(self.features(images))

    def features(self, images: Images) -> Features:
        """The (b, 64) inputs of the head."""
        if images.shape[1] != self.channels or min(images.shape[2:]) < SMALLEST:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: this classifier takes (b, {self.channels}, h, w) with h and w "
                f"at least {SMALLEST}; convert or resize them"
            )
        first, second, third = self.stages
        # This layout is several times faster on CPUs, for so few channels.
        x = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(first(x), 2)
        x = third(F.max_pool2d(second(x), 2))
        return F.gelu(self.project(F.adaptive_avg_pool2d(x, 3).flatten(1)))


def train_classifier(
    split: Split,
    *,
    steps: int = 1000,
    seed: int = 0,
    batch_size: int = 128,
    lr: float = 2e-3,
    shift: int = 2,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Classifier:
    """Train a judge on a labelled split: AdamW down a cosine, cross-entropy, pictures moved by a few pixels.

    There are no flips: shoes, digits and letters have a direction.

    Args:
        split: pictures with classes.
        steps: number of updates; 1,000 take one to two minutes on one core at 28 x 28.
        seed: of weights, order and shifts.
        batch_size: pictures per update.
        lr: peak learning rate.
        shift: largest move in pixels, along each side.
        precision: of the convolutions; bfloat16 is twice as fast on CPUs that have it, and far slower on others.

    Returns:
        The classifier, in evaluation mode.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: training a classifier takes at least 1 step")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold_in(seed, "classifier"))
        classifier = Classifier(len(split.classes), channels=split.images.shape[1]).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=0.05)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * s / steps))
    )
    for step in range(steps):
        chosen = shuffled(len(split.images), batch_size=batch_size, step=step, seed=seed)
        moves = torch.Generator().manual_seed(fold_in(seed, "shift", step))
        images = shifted(split.images[chosen], shift, moves).float() / 255
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = classifier(images)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), split.labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each picture (b, c, h, w) moved by up to `most` pixels along each side; what comes in repeats the border."""
    b, _, h, w = images.shape
    down, right = torch.randint(-most, most + 1, (2, b, 1), generator=generator)
    rows = (torch.arange(h) + down).clamp(0, h - 1)
    columns = (torch.arange(w) + right).clamp(0, w - 1)
    return images.movedim(1, -1)[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def accuracy(classifier: Classifier, split: Split, *, batch_size: int = 500) -> float:
    """Share of pictures whose class the classifier names."""
    hits = 0
    with torch.no_grad():
        for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
            hits += int((classifier(images.float() / 255).argmax(1) == labels).sum())
    return hits / len(split.images)


def save_classifier(path: Path, classifier: Classifier, card: Mapping[str, str]) -> None:
    """Write a classifier in float16, and its card once more as JSON beside it."""
    save(path, classifier, family="classifier", config=classifier.config, card=card, dtype=torch.float16)
    path.with_suffix(".json").write_text(json.dumps(dict(card), indent=2) + "\n", encoding="utf-8")


def read_classifier(path: Path = BUNDLED) -> Classifier:
    """A saved classifier in float32 and evaluation mode; by default the bundled judge of Fashion-MNIST.

    Raises:
        WeightsError: if the file is missing, damaged or holds another network.
    """
    weights = read(path)
    if weights.family != "classifier":
        raise WeightsError(f"{path} holds a network of family {weights.family!r}; give one of family 'classifier'")
    classifier = Classifier(**weights.config)
    load_into(classifier, weights.tensors, source=str(path))
    return classifier.eval()


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """What a classifier sees just before it decides, as a feature space.

    Args:
        classifier: in evaluation mode; in training mode an image's features would depend on its batch.
        name: of the space.
        batch_size: images per pass; no result depends on it.
    """

    classifier: Classifier
    name: str = "classifier-64"
    batch_size: int = 500

    def __post_init__(self) -> None:
        """Refuse a classifier that is still being trained."""
        if self.classifier.training:
            raise ValueError("the classifier is in training mode, where features depend on the batch; call its eval()")

    @torch.no_grad()
    def __call__(self, images: Images) -> Features:
        """float32 (b, 64)."""
        return torch.cat([self.classifier.features(chunk) for chunk in images.split(self.batch_size)]).float()


def fashion_features() -> ClassifierFeatures:
    """The feature space of the bundled judge of Fashion-MNIST."""
    return ClassifierFeatures(read_classifier(), name="fashion-classifier-64")
