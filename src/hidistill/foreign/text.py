"""Prompts as the tensors that a pipeline's network is conditioned by, made by the stock pipeline's own `encode_prompt`.

The pipeline is built from its folder without network and autoencoder. Every prompt is filled up to the same length, as
pipelines do, so that rows of any two batches fit together.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from hidistill.foreign.encoders import Encoder, digest_of, loaded
from hidistill.foreign.folder import Folder, FolderError, build, library

Longer = Literal["refuse", "cut"]
"""What to do with a prompt that no encoder takes whole: raise, or use its beginning."""
CLEANERS = ("bs4", "ftfy")
"""Packages without which pipelines do not clean captions; pip knows the first as beautifulsoup4."""


@dataclass(frozen=True)
class Settings:
    """What decides, beside the encoders' files, what a prompt becomes.

    Args:
        pipeline: class name.
        length: tokens that a prompt is filled up to, by encoders that have no length of their own.
        instruction: lines put before each prompt (SANA); not before the empty one.
        clean: whether markup, addresses and the like are taken out of prompts (PixArt).
        dtype: in which the encoders run.
    """

    pipeline: str
    length: int
    instruction: tuple[str, ...]
    clean: bool
    dtype: str


@dataclass(frozen=True)
class Way:
    """How a pipeline turns prompts into tensors.

    Args:
        encode: the tensors of prompts: (pipeline, prompts, settings).
        encoders: which it has.
        texts: prompts as they reach the tokenizers.
    """

    encode: Callable[[Any, list[str], Settings], dict[str, Tensor]]
    encoders: tuple[Encoder, ...]
    texts: Callable[[Any, list[str], Settings], list[str]]


def masked(pipeline: Any, prompts: list[str], settings: Settings) -> dict[str, Tensor]:  # noqa: ANN401
    """PixArt: tokens, and a mask of those that count."""
    options = {"max_sequence_length": settings.length, "clean_caption": settings.clean}
    found = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, device=pipeline.device, **options)
    return {"text": found[0], "mask": found[1]}


def instructed(pipeline: Any, prompts: list[str], settings: Settings) -> dict[str, Tensor]:  # noqa: ANN401
    """SANA: tokens and a mask; what stands for the instruction's tokens is not among them."""
    options: dict[str, Any] = {"max_sequence_length": settings.length, "clean_caption": settings.clean}
    if settings.pipeline == "SanaPipeline":
        options["do_classifier_free_guidance"] = False
    instruction = list(settings.instruction) or None
    found = pipeline.encode_prompt(prompts, device=pipeline.device, complex_human_instruction=instruction, **options)
    return {"text": found[0], "mask": found[1]}


def plain(pipeline: Any, prompts: list[str], settings: Settings) -> dict[str, Tensor]:  # noqa: ANN401
    """Stable Diffusion: tokens alone."""
    del settings
    return {"text": pipeline.encode_prompt(prompts, pipeline.device, 1, False)[0]}


def large(pipeline: Any, prompts: list[str], settings: Settings) -> dict[str, Tensor]:  # noqa: ANN401
    """Stable Diffusion XL: the tokens of both encoders side by side, and a pooled vector."""
    del settings
    text, _, pooled, _ = pipeline.encode_prompt(prompts, device=pipeline.device, do_classifier_free_guidance=False)
    return {"text": text, "pooled": pooled}


def third(pipeline: Any, prompts: list[str], settings: Settings) -> dict[str, Tensor]:  # noqa: ANN401
    """Stable Diffusion 3: the tokens of all encoders in one row, and a pooled vector."""
    options = {"max_sequence_length": settings.length, "do_classifier_free_guidance": False}
    text, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, device=pipeline.device, **options)
    return {"text": text, "pooled": pooled}


def flux(pipeline: Any, prompts: list[str], settings: Settings) -> dict[str, Tensor]:  # noqa: ANN401
    """FLUX: tokens of one encoder, a pooled vector of the other."""
    options = {"max_sequence_length": settings.length, "device": pipeline.device}
    text, pooled, _ = pipeline.encode_prompt(prompts, **options)
    return {"text": text, "pooled": pooled}


def as_given(pipeline: Any, prompts: list[str], settings: Settings) -> list[str]:  # noqa: ANN401
    """Most pipelines hand prompts to the tokenizer as they are."""
    del pipeline, settings
    return prompts


def prepared(pipeline: Any, prompts: list[str], settings: Settings) -> list[str]:  # noqa: ANN401
    """PixArt and SANA make them lower case, or clean them."""
    return pipeline._text_preprocessing(prompts, clean_caption=settings.clean)


CLIP = Encoder("tokenizer", "text_encoder", own=True)
CLIP_2 = Encoder("tokenizer_2", "text_encoder_2", own=True)
WAYS: Mapping[str, Way] = {
    "SanaPipeline": Way(instructed, (Encoder("tokenizer", "text_encoder"),), prepared),
    "SanaSprintPipeline": Way(instructed, (Encoder("tokenizer", "text_encoder"),), prepared),
    "PixArtAlphaPipeline": Way(masked, (Encoder("tokenizer", "text_encoder"),), prepared),
    "PixArtSigmaPipeline": Way(masked, (Encoder("tokenizer", "text_encoder"),), prepared),
    "StableDiffusionPipeline": Way(plain, (CLIP,), as_given),
    "StableDiffusionXLPipeline": Way(
        large, (Encoder("tokenizer", "text_encoder", own=True, optional=True), CLIP_2), as_given
    ),
    "StableDiffusion3Pipeline": Way(
        third, (CLIP, CLIP_2, Encoder("tokenizer_3", "text_encoder_3", optional=True)), as_given
    ),
    "FluxPipeline": Way(flux, (CLIP, Encoder("tokenizer_2", "text_encoder_2")), as_given),
}


@dataclass(frozen=True, eq=False)
class Prompts:
    """Turns prompts into what a pipeline's network is conditioned by: `text` (b, n, d), and `mask`, `pooled` or both.

    Args:
        pipeline: the stock pipeline, without network and autoencoder.
        way: how it is asked.
        settings: what is asked of it.
        digest: tells the encoders' files from others.
        longer: what becomes of prompts that no encoder takes whole.
        notes: what a person should know.
    """

    pipeline: Any
    way: Way
    settings: Settings
    digest: str
    longer: Longer = "refuse"
    notes: Sequence[str] = ()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of prompts, one row each, on the CPU.

        Raises:
            ValueError: if a prompt is too long and `longer` is "refuse"; names it, its tokens and the limit.
        """
        self.cut(prompts)
        return self.encoded(list(prompts), self.settings)

    @torch.no_grad()
    def null(self) -> dict[str, Tensor]:
        """The tensors of no prompt, of one row: the default negative prompt of the pipeline.

        That is the empty prompt; SANA puts no instruction before it, and Stable Diffusion XL uses zeros instead where
        its folder says so (`force_zeros_for_empty_prompt`).
        """
        found = self.encoded([""], replace(self.settings, instruction=()))
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):
            found |= {key: torch.zeros_like(found[key]) for key in ("text", "pooled")}
        return found

    def encoded(self, prompts: list[str], settings: Settings) -> dict[str, Tensor]:
        """The pipeline's answer for prompts of any length."""
        with quiet(self.pipeline):
            found = self.way.encode(self.pipeline, prompts, settings)
        return {key: value.cpu() for key, value in found.items()}

    def cut(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """For each prompt the encoders that take only its beginning, as pipelines do; mostly none.

        Raises:
            ValueError: if that is so of all encoders for some prompt and `longer` is "refuse".
        """
        texts = self.way.texts(self.pipeline, list(prompts), self.settings)
        by: list[dict[str, tuple[int, int]]] = [{} for _ in texts]
        encoders = [encoder for encoder in self.way.encoders if getattr(self.pipeline, encoder.model) is not None]
        for encoder in encoders:
            counts, limit = tokens_of(self.pipeline, encoder, texts, self.settings)
            for found, count in zip(by, counts, strict=True):
                if count > limit:
                    found[encoder.model] = (count, limit)
        too_long = [i for i, found in enumerate(by) if len(found) == len(encoders)]
        if too_long and self.longer == "refuse":
            tokens, limit = min(by[too_long[0]].values(), key=lambda pair: pair[0] - pair[1])
            raise ValueError(
                f"the prompt {prompts[too_long[0]][:60]!r}... has {tokens} tokens, and a {self.settings.pipeline} "
                f"takes {limit} ({len(too_long)} of these {len(by)} prompts have more): shorten it, or say "
                "longer='cut' (--longer cut) to use its beginning"
            )
        return [tuple(found) for found in by]


def tokens_of(pipeline: Any, encoder: Encoder, texts: list[str], settings: Settings) -> tuple[list[int], int]:  # noqa: ANN401
    """How many tokens each text has, and how many the encoder takes."""
    if not texts:
        return [], 0
    tokenizer = getattr(pipeline, encoder.tokenizer)
    before = "\n".join(settings.instruction)
    # Two tokens of the instruction's are special ones, which the prompt has itself (see SanaPipeline).
    more = len(tokenizer.encode(before)) - 2 if before else 0
    rows = tokenizer([before + text for text in texts], verbose=False)["input_ids"]
    return [len(row) - more for row in rows], int(tokenizer.model_max_length) if encoder.own else settings.length


def prompt_encoder(
    folder: Folder,
    *,
    length: int | None = None,
    instruction: tuple[str, ...] | None = None,
    clean: bool | None = None,
    longer: Longer = "refuse",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Prompts:
    """The text encoders of a pipeline's folder; by default prompts become what a plain call of the pipeline makes them.

    Args:
        folder: of the pipeline.
        length: tokens that a prompt is filled up to; None is the pipeline's default, e.g. 300 for SANA.
        instruction: lines put before each prompt (SANA); None is the pipeline's default, () is none.
        clean: whether captions are cleaned (PixArt); None is the pipeline's default if the packages for it are there.
        longer: what becomes of prompts that no encoder takes whole.
        device: where the encoders run.
        dtype: in which they run.

    Raises:
        FolderError: if the pipeline is not known or was saved without its text encoders, or their weights do not fit.
        ModuleNotFoundError: if a package is missing.
        ValueError: if the pipeline has no such option.
    """
    way = way_of(folder)
    kind = getattr(library(), folder.pipeline)
    stock = inspect.signature(kind.__call__).parameters
    sana = "complex_human_instruction" in stock
    if instruction is not None and instruction and not sana:
        raise ValueError(f"a {folder.pipeline} puts no instruction before prompts; leave it out, SanaPipeline has one")
    asked = (
        instruction if instruction is not None else tuple(stock["complex_human_instruction"].default) if sana else ()
    )
    cleaned, notes = cleaning(folder, stock, clean)
    given = "max_sequence_length" in stock
    if length is not None and not given:
        raise ValueError(f"a {folder.pipeline} takes as many tokens as its tokenizers say; leave the length out")
    tokens = length if length is not None else int(stock["max_sequence_length"].default) if given else 0
    settings = Settings(folder.pipeline, tokens, asked, cleaned, str(dtype).removeprefix("torch."))
    pipeline = assembled(folder, kind, way, device=device, dtype=dtype)
    return Prompts(pipeline, way, settings, digest_of(folder, way.encoders), longer, notes)


def way_of(folder: Folder) -> Way:
    """How the folder's pipeline turns prompts into tensors.

    Raises:
        FolderError: if it is not known.
    """
    if folder.pipeline not in WAYS:
        raise FolderError(
            f"{folder.root} is a {folder.pipeline or 'network alone'}, whose prompts are not known here; known are "
            f"{', '.join(WAYS)}: give the folder of such a pipeline"
        )
    return WAYS[folder.pipeline]


def text_digest(folder: Folder) -> str:
    """What tells a pipeline's text encoders from others, without loading them.

    Raises:
        FolderError: if the pipeline is not known.
    """
    return digest_of(folder, way_of(folder).encoders)


def cleaning(
    folder: Folder, stock: Mapping[str, inspect.Parameter], clean: bool | None
) -> tuple[bool, tuple[str, ...]]:
    """Whether captions are cleaned, and what to know about it."""
    if "clean_caption" not in stock:
        if clean:
            raise ValueError(f"a {folder.pipeline} does not clean captions; leave it out")
        return False, ()
    missing = [name for name in CLEANERS if find_spec(name) is None]
    advice = "pip install beautifulsoup4 ftfy"
    if clean and missing:
        raise ModuleNotFoundError(f"captions are cleaned by {' and '.join(CLEANERS)}, which are missing; {advice}")
    wanted = bool(stock["clean_caption"].default) if clean is None else clean
    if wanted and missing:
        return False, (
            f"captions are not cleaned, as {folder.pipeline} does without {' and '.join(missing)}: {advice}",
        )
    return wanted, ()


def assembled(folder: Folder, kind: Any, way: Way, *, device: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The pipeline with its text encoders and nothing else."""
    parts: dict[str, Any] = loaded(folder, way.encoders, device=device, dtype=dtype)
    if way.encode is third and "text_encoder_3" not in parts:
        # The pipeline asks its network how wide the zeros are that stand for the missing encoder.
        with torch.device("meta"):
            parts["transformer"] = build(folder.config("transformer"), where=str(folder.place("transformer")))
    arguments = inspect.signature(kind.__init__).parameters
    settings = {"requires_safety_checker": False, "add_watermarker": False}
    if "force_zeros_for_empty_prompt" in folder.index:
        settings["force_zeros_for_empty_prompt"] = bool(folder.index["force_zeros_for_empty_prompt"])
    parts |= {name: value for name, value in settings.items() if name in arguments}
    needed = [name for name, argument in arguments.items() if argument.default is inspect.Parameter.empty]
    return kind(**{name: None for name in needed if name != "self"} | parts)


@contextmanager
def quiet(pipeline: Any) -> Iterator[None]:  # noqa: ANN401
    """Within, the pipeline does not log which part of a prompt it cuts off: `Prompts.cut` tells."""
    logger = logging.getLogger(type(pipeline).__module__)

    def other(record: logging.LogRecord) -> bool:
        return "was truncated" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
