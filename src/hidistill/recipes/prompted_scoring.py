"""Judges pictures of prompts: CLIP score, and distances to the prompts' real pictures, overall and per category."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro

from hidistill.data.judged import BLOCK, opened, same
from hidistill.data.prompt_lists import Asked
from hidistill.evaluate import judged, left_out
from hidistill.metrics.cached import Cached
from hidistill.metrics.clip import CLIP, ClipScore
from hidistill.metrics.dinov2 import DINOv2
from hidistill.metrics.efficientnet import EfficientNetLite0
from hidistill.metrics.frechet import FrechetDistance, too_few
from hidistill.metrics.inception import Pooled, Spaces
from hidistill.metrics.neighbors import Neighbors
from hidistill.pictures import endings
from hidistill.recipes import tables
from hidistill.recipes.asking import prompts_at
from hidistill.recipes.opinions import LITE, NEAREST, NOT_ORIGINAL, ORIGINAL, REFERENCES, TOKEN
from hidistill.scores import Evaluation, Row
from hidistill.types import FeatureSpace, Gallery, Images, Metric, Samples

CONTENT = "content"
"""Under which a gallery remembers the sum of its pixels."""
LEAST = 10
"""Prompts of a category that is given a row of its own."""
Progress = Callable[[str, int, int], object]


def score_prompts(
    samples: Path,
    *,
    prompts: Path,
    out: Path = Path("scores"),
    clip: Path | None = None,
    inception: Path | None = None,
    dinov2: Path | None = None,
    groups: int = 0,
    device: str = "cpu",
    on_progress: Annotated[Progress | None, tyro.conf.Suppress] = None,
) -> Evaluation:
    """Judge the pictures that `hidistill draw --prompts` left in a folder, overall and per category.

    Where the list has real pictures, as MJHQ-30K does, distances to these are taken: FID with the original network's
    weights, else in EfficientNet-Lite0's features, which are not FID. Features are kept in OUT/features.

    Args:
        samples: the folder of pictures.
        prompts: the same file or folder of prompts that they were drawn from.
        out: where the table goes, as evaluation.json, .md and .tex.
        clip: folder of a CLIPModel of transformers, for the CLIP score.
        inception: weights of the original FID network.
        dinov2: folder of a DINOv2 of transformers.
        groups: intervals by leaving out so many groups of pictures.
        device: where the networks run.
        on_progress: is told what is looked at, pictures done and pictures in all.
    """
    asked = prompts_at(prompts)
    found, tell = places(samples, asked.items), on_progress or (lambda *_: None)
    real, several = [item.real for item in asked.items if item.real], several_of(found, samples)
    if real and several > 1:
        raise ValueError(
            f"{samples} has {several} pictures a prompt, the list one real picture each; a distance needs equally "
            "many: leave one of each prompt"
        )
    items = [item for item in asked.items for _ in range(several)]
    drawn = [path for paths in found for path in paths]
    spaces, metrics, clips = judges(clip, inception, dinov2, real=bool(real), device=device)
    if not metrics and clips is None:
        raise ValueError(f"{prompts} has no real pictures, and no --clip DIR came: there is nothing to judge by")
    kept: list[FeatureSpace] = [Cached(space, out / "features") for space in spaces]
    generated = looked_at(drawn, kept, spaces, tell, samples.name)
    shown = looked_at(real, kept, spaces, tell, prompts.name) if real else blank()
    texts = None if clips is None else clips.prompts([item.prompt for item in items])
    groups_of = {"all": torch.arange(len(items))}
    for category in sorted({item.category for item in items} - {""}):
        index = torch.tensor([i for i, item in enumerate(items) if item.category == category])
        if len(index) >= LEAST:
            groups_of[category] = index
    rows = []
    for name, index in groups_of.items():
        part = Samples(generated.rows(index), shown.rows(index) if real else shown)
        all_metrics = metrics if clips is None or texts is None else [*metrics, ClipScore(clips, texts[index])]
        left = left_out(part, all_metrics, groups if len(index) >= 2 * groups else 0, name)
        rows.append(Row(name, "samples", len(index), metrics=judged(part, all_metrics, name), left_out=left))
    notes = [*asked.notes]
    if several > 1:
        notes.append(f"{several} pictures a prompt, which count as if they were of different ones")
    least = min(rows, key=lambda row: row.n)
    all_and_least = [rows[0], *([least] if least.n < rows[0].n else [])]
    for space in spaces:
        if isinstance(space, CLIP):
            continue
        dim = generated.features(space).shape[1]
        notes += [f"{row.name}: {note}" for row in all_and_least if (note := too_few(row.n, dim, space.name))]
    names = [metric.name for metric in metrics] + ([] if clips is None else [f"clip score/{clips.name}"])
    whole = hashlib.sha256(f"{asked.digest} {shown.memory.get(CONTENT)}".encode()).hexdigest()  # prompts and pictures
    about = {"n": len(real), "classes": len(groups_of) - 1, "shape": None, "digest": whole[:12]}
    words = {space.name: in_words(space) for space in spaces}
    evaluation = Evaluation(len(items), None, about, names, words, tuple(rows), "prompts", tuple(notes))
    tables.replace_by(evaluation, out)
    return evaluation


def judges(
    clip: Path | None, inception: Path | None, dinov2: Path | None, *, real: bool, device: str
) -> tuple[list[FeatureSpace], list[Metric], CLIP | None]:
    """Feature spaces, judges against real pictures, and CLIP."""
    spaces: list[FeatureSpace] = []
    metrics: list[Metric] = []
    if real and inception is not None:
        found = Spaces.of(inception, device=device)
        spaces.append(Pooled(found))
        metrics.append(FrechetDistance(spaces[-1], "fid" if found.original else "fd"))
    elif real:
        spaces.append(EfficientNetLite0())
        metrics += [FrechetDistance(spaces[-1]), Neighbors(spaces[-1], NEAREST, REFERENCES)]
    if real and dinov2 is not None:
        spaces.append(DINOv2(dinov2, device=device))
        metrics.append(FrechetDistance(spaces[-1]))
    clips = None if clip is None else CLIP(clip, device=device)
    return [*spaces, *([clips] if clips else [])], metrics, clips


def in_words(space: FeatureSpace) -> str:
    """What a feature space is."""
    if isinstance(space, Pooled):
        return ORIGINAL if space.spaces.original else NOT_ORIGINAL
    if isinstance(space, DINOv2):
        return TOKEN
    return "pictures and prompts, CLIP's own" if isinstance(space, CLIP) else LITE


def places(folder: Path, items: Sequence[Asked]) -> list[list[Path]]:
    """The pictures of every prompt: its name is theirs, or that of the folder that they lie in.

    Where a folder has its pictures in `samples`, no others in it count.

    Raises:
        ValueError: if some are missing.
    """
    readable = endings()
    found: dict[str, list[Path]] = {item.key: [] for item in items}
    drawn = {path.parent for path in folder.rglob("samples") if path.is_dir()}  # GenEval's, who adds a sheet of all
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in readable and not any(
            part.startswith(".") for part in path.parts[len(folder.parts) :]
        ):
            if path.parent in drawn:
                continue
            of = path.parent.parent if path.parent.name == "samples" else path.parent
            found.get(of.name if of != folder and of.name in found else path.stem, []).append(path)
    missing = [item.key for item in items if not found[item.key]]
    if missing:
        raise ValueError(
            f"{folder} lacks the pictures of {len(missing):,} of {len(items):,} prompts, {', '.join(missing[:3])} "
            "first; `hidistill draw` with the same options draws what is missing"
        )
    return [found[item.key] for item in items]


def several_of(found: Sequence[Sequence[Path]], folder: Path) -> int:
    """How many pictures each prompt has.

    Raises:
        ValueError: if some have more than others.
    """
    counts = {len(paths) for paths in found}
    if len(counts) > 1:
        raise ValueError(
            f"{folder} has {min(counts)} pictures of some prompts and {max(counts)} of others; `hidistill draw` with "
            "the same options draws what is missing"
        )
    return counts.pop()


def looked_at(
    paths: Sequence[Path], kept: Sequence[FeatureSpace], spaces: Sequence[FeatureSpace], tell: Progress, name: str
) -> Gallery:
    """Features of pictures of one size and mode, block by block; the pixels are not held."""
    first = opened(paths[0])
    features: dict[FeatureSpace, list[torch.Tensor]] = {space: [] for space in spaces}
    content = hashlib.sha256()
    for start in range(0, len(paths), BLOCK):
        images = pixels(paths[start : start + BLOCK], first.size, paths[0].name)
        for space, memory in zip(spaces, kept, strict=True):
            features[space].append(memory(images))
        content.update((255 * images).round().byte().numpy().tobytes())
        tell(name, start + len(images), len(paths))
    gallery = Gallery(torch.zeros(len(paths), 3, 0, 0), torch.zeros(len(paths), dtype=torch.long))
    for space, parts in features.items():
        gallery.memory["features", space] = torch.cat(parts)
    gallery.memory[CONTENT] = content.hexdigest()
    return gallery


def pixels(paths: Sequence[Path], size: tuple[int, int], first: str) -> Images:
    """Color pictures in [0, 1]."""
    arrays = [torch.from_numpy(same(path, size, ("RGB",), first).copy()).movedim(-1, 0) for path in paths]
    return torch.stack(arrays).float() / 255


def blank() -> Gallery:
    """No pictures."""
    return Gallery(torch.zeros(0, 3, 0, 0), torch.zeros(0, dtype=torch.long))
