"""Reading a cache: batches as a function of the step, and the held-out parts for evaluation."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from safetensors import safe_open
from torch import Tensor

from hidistill.data.cache import manifest
from hidistill.data.cache.manifest import NULL, PARTS, CacheError, lines_of
from hidistill.files import damage
from hidistill.seeds import shuffled
from hidistill.share import Drawn
from hidistill.types import Batch, Cond, Points, Split


@dataclass(frozen=True, eq=False)
class Shard:
    """One file of a part, mapped into memory: what is not asked for is not read.

    Args:
        count: of its rows.
        tensors: by name, with rows in front.
        lines: the file with the keys and captions.
    """

    count: int
    tensors: Mapping[str, Tensor]
    lines: Path


@dataclass(frozen=True)
class Part:
    """A held-out part, in memory.

    Args:
        split: the pictures themselves and their labels; labels are all 0 where there are no classes.
        x: their latents.
        cond: their conditions.
        captions: what people say of them; empty strings where nobody did.
        keys: their names in the source.
    """

    split: Split
    x: Points
    cond: Cond
    captions: Sequence[str]
    keys: Sequence[str]

    @property
    def images(self) -> Tensor:
        """The pictures themselves, uint8."""
        return self.split.images


@dataclass(frozen=True, eq=False)
class Cache:
    """A cache whose files are those that were written.

    Args:
        root: its folder.
        content: its manifest.
        shards: by part.
        null: the tensors of the empty prompt, one row; empty where conditions are labels.
    """

    root: Path
    content: Mapping[str, Any]
    shards: Mapping[str, Sequence[Shard]]
    null: Mapping[str, Tensor]

    @classmethod
    def open(cls, root: Path) -> "Cache":
        """Compare every file with what was written, and map the shards into memory.

        Raises:
            CacheError: if there is none, it is not finished, or a file is missing, cut off or changed.
        """
        content = manifest.read(root)
        segments = content["segments"]
        if not content["complete"]:
            done = sum(segment["records"] for segment in segments)
            raise CacheError(f"{root} is not finished ({done:,} records so far); run the command that began it again")
        files = {name: facts for segment in segments for name, facts in segment["files"].items()} | content["null"]
        for name, expected in files.items():
            if what := damage(root / name, expected):
                raise CacheError(f"{what}; run the command that made the cache again, which writes this file anew")
        shards = {
            part: [
                mapped(root / f"{part}-{index:05d}.safetensors", segment["rows"][part])
                for index, segment in enumerate(segments)
                if segment["rows"][part]
            ]
            for part in PARTS
        }
        null = mapped(root / NULL, 1).tensors if content["null"] else {}
        return cls(root, content, shards, {key: widened(value) for key, value in null.items()})

    @property
    def has_latents(self) -> bool:
        """Whether there are latents; a cache of prompts alone holds conditions only."""
        return self.content["made_from"]["codec"] is not None

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes; empty if there are none."""
        return self.content["classes"]

    @property
    def condition(self) -> Literal["label", "text"]:
        """What conditions are: labels, or the tensors of prompts."""
        return self.content["condition"]

    @property
    def made_from(self) -> Mapping[str, Any]:
        """What it was made from: digests of source, codec and text encoders, names of the teacher, size, settings."""
        return self.content["made_from"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row's latents: channels, height, width."""
        self.refuse_without_latents()
        return tuple(self.shards["train"][0].tensors["x"].shape[1:])

    def count(self, part: str) -> int:
        """Rows of a part."""
        return sum(shard.count for shard in self.shards[part])

    @cached_property
    def ends(self) -> Mapping[str, Sequence[int]]:
        """The row after the last of each shard, by part."""
        return {part: list(accumulate(shard.count for shard in shards)) for part, shards in self.shards.items()}

    def check(self, *, codec_digest: str | None = None, text_digest: str | None = None) -> None:
        """Make sure that a cache fits an autoencoder and text encoders; None asks for none.

        Raises:
            CacheError: if it was made with others.
        """
        here = {"codec": codec_digest, "text": text_digest}
        there = {name: self.made_from[name] for name in here}
        asked = {name: value for name, value in here.items() if value is not None}
        differing = manifest.differences({name: there[name] for name in asked}, asked)
        if differing:
            raise CacheError(
                f"{self.root} was made with other parts than this teacher's: {'; '.join(differing)}. Make a cache for "
                "this teacher, or give the teacher that it was made for"
            )

    def batch_at(self, step: int, *, batch_size: int, seed: int) -> Batch:
        """The batch of a step: latents in float32 and their conditions.

        Raises:
            CacheError: if there are no latents.
        """
        return self.drawn(batch_size=batch_size, seed=seed)(step)

    def drawn(self, *, batch_size: int, seed: int) -> Drawn:
        """The batches of all steps, of which a process reads its own rows alone.

        Raises:
            CacheError: if there are no latents.
        """
        self.refuse_without_latents()

        def take(rows: Int[Tensor, " n"], step: int) -> Batch:
            return Batch(widened(self.gathered("train", "x", rows)), self.conditions("train", rows), step)

        return Drawn(lambda step: shuffled(self.count("train"), batch_size=batch_size, step=step, seed=seed), take)

    def cond_at(self, step: int, *, batch_size: int, seed: int) -> Cond:
        """The conditions of a step's batch, which a cache of prompts alone has, too."""
        rows = shuffled(self.count("train"), batch_size=batch_size, step=step, seed=seed)
        return self.conditions("train", rows)

    def split(self, part: str, count: int | None = None) -> Part:
        """A held-out part, "valid" or "test", or its first rows.

        Raises:
            CacheError: if the part is empty or has no pictures.
        """
        if part not in ("valid", "test"):
            raise CacheError(f"part {part!r}: pictures are kept of valid and test; ask for one of them")
        self.refuse_without_latents()
        whole = self.count(part)
        if not whole:
            raise CacheError(f"{self.root} has no rows in {part}; make it from a source with more pictures or captions")
        rows = torch.arange(whole if count is None else min(count, whole))
        lines = [line for shard in self.shards[part] for line in lines_of(shard.lines)][: len(rows)]
        labels = torch.tensor([line.get("label", 0) for line in lines])
        return Part(
            split=Split(self.gathered(part, "image", rows), labels, self.classes),
            x=widened(self.gathered(part, "x", rows)),
            cond=self.conditions(part, rows),
            captions=[line.get("caption", "") for line in lines],
            keys=[line["key"] for line in lines],
        )

    def conditions(self, part: str, rows: Int[Tensor, " n"]) -> Cond:
        """Conditions of some rows: labels, or a mapping with the names that the teacher's family has."""
        if self.condition == "label":
            return self.gathered(part, "label", rows)
        names = [name for name in self.shards[part][0].tensors if name.startswith("cond.")]
        return {name.removeprefix("cond."): widened(self.gathered(part, name, rows)) for name in names}

    def gathered(self, part: str, name: str, rows: Int[Tensor, " n"]) -> Tensor:
        """Some rows of one of the tensors, in the order asked for."""
        ends, shards = self.ends[part], self.shards[part]
        found = []
        for row in rows.tolist():
            index = bisect_right(ends, row)
            found.append(shards[index].tensors[name][row - ends[index]])  # counted from the shard's end
        return torch.stack(found)

    def refuse_without_latents(self) -> None:
        """Raise if there are conditions only."""
        if not self.has_latents:
            raise CacheError(
                f"{self.root} was made from prompts alone: it holds conditions and no latents; use `cond_at`, or make "
                "a cache from pictures with captions"
            )


def mapped(path: Path, count: int) -> Shard:
    """A shard whose tensors lie in the file until they are read."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping
    return Shard(count, tensors, path.with_suffix(".jsonl"))


def widened(value: Tensor) -> Tensor:
    """Numbers in float32, whatever they are stored in; masks as they are."""
    return value.float() if value.is_floating_point() else value
