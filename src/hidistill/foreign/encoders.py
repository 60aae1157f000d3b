"""Text encoders and tokenizers out of a pipeline's folder, whole or not at all."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from hidistill.foreign.folder import Folder, FolderError, library


@dataclass(frozen=True)
class Encoder:
    """One of a pipeline's text encoders.

    Args:
        tokenizer: name of the part that splits prompts.
        model: name of the part that embeds them.
        own: whether the tokenizer's own length is the limit, as for CLIP; `Settings.length` is otherwise.
        optional: whether pipelines do without it.
    """

    tokenizer: str
    model: str
    own: bool = False
    optional: bool = False


def digest_of(folder: Folder, encoders: Sequence[Encoder]) -> str:
    """What tells text encoders from others: a hash of their files and of the pipeline's name."""
    total = hashlib.sha256(json.dumps([folder.pipeline, folder.index.get("force_zeros_for_empty_prompt")]).encode())
    for encoder in encoders:
        for part in (encoder.tokenizer, encoder.model):
            place = folder.place(part)
            for path in sorted(place.rglob("*")) if folder.has(part) else ():
                if path.is_file():
                    total.update(f"{part}/{path.relative_to(place).as_posix()}".encode())
                    with path.open("rb") as file:
                        total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def loaded(folder: Folder, encoders: Sequence[Encoder], *, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """The tokenizers and models by the names of their parts, without optional ones that the folder lacks.

    Raises:
        FolderError: if another is missing, or damaged.
    """
    parts: dict[str, Any] = {}
    for encoder in encoders:
        absent = [part for part in (encoder.tokenizer, encoder.model) if not folder.has(part)]
        if absent and not encoder.optional:
            raise FolderError(
                f"{folder.root} has no {' and no '.join(absent)}, which a {folder.pipeline} turns prompts into tensors "
                "with; copy them from where the pipeline came from, and name them in model_index.json"
            )
        if not absent:
            parts[encoder.tokenizer] = tokenizer(folder, encoder.tokenizer)
            parts[encoder.model] = model(folder, encoder.model, dtype).to(device)
    return parts


def part_kind(folder: Folder, part: str) -> Any:  # noqa: ANN401 -- a class of transformers
    """The class of a part that transformers made."""
    origin, name = folder.index[part]
    kind = getattr(library("transformers"), name, None) if origin == "transformers" else None
    if kind is None:
        raise FolderError(
            f"{folder.root} says that {part} is a {name} of {origin}; text encoders and tokenizers are classes of the "
            "installed transformers: install the version that wrote the folder"
        )
    return kind


def tokenizer(folder: Folder, part: str) -> Any:  # noqa: ANN401 -- a class of transformers
    """A part that splits prompts."""
    try:
        return part_kind(folder, part).from_pretrained(
            folder.place(part), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError) as error:
        raise FolderError(f"{folder.place(part)} holds no tokenizer ({error}); copy the folder again") from error


def model(folder: Folder, part: str, dtype: torch.dtype) -> Any:  # noqa: ANN401 -- a class of transformers
    """A part that embeds prompts, in evaluation mode and frozen; its weights lack nothing.

    Raises:
        FolderError: if they do, which the library itself would fill in at random.
    """
    options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True, "dtype": dtype}
    options["use_safetensors"] = None if folder.allow_pickle else True
    kind = part_kind(folder, part)
    try:
        with without_bars():
            found, report = kind.from_pretrained(folder.place(part), variant=folder.variant, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise FolderError(f"{folder.place(part)}: {error}; copy the folder again") from error
    faults = [str(key) for name in ("missing_keys", "mismatched_keys") for key in report[name]]
    if faults:
        raise FolderError(
            f"{folder.place(part)} lacks {len(faults)} of the weights of a {kind.__name__}, or has other shapes: "
            f"{', '.join(faults[:5])}; copy the folder again"
        )
    return found.eval().requires_grad_(False)


@contextmanager
def without_bars() -> Iterator[None]:
    """Within, transformers shows no progress bar."""
    log = library("transformers").utils.logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()
