"""Whether a teacher answers as its folder says: `hidistill inspect`, and the start of each run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hidistill.codecs import Autoencoder
from hidistill.foreign.inspection import LEAST, Finding, inspect, inspect_samples
from hidistill.foreign.questions import Space
from hidistill.path import cond_on, rows_of
from hidistill.recipes.describing import Rows
from hidistill.recipes.originals import Where
from hidistill.recipes.subjects import shown, subject_of
from hidistill.seeds import refuse_seed
from hidistill.teachers.original import Kind
from hidistill.types import Codec, Cond, Points, Teacher

MOST = 32
"""Samples of the self-test at the start of a run: more tell little more, and cost."""


class WrongTeacherError(ValueError, RuntimeError):
    """A teacher that does not answer as its convention says; no student of it would be any good."""


@dataclass(frozen=True)
class Inspected:
    """What is known of a teacher.

    Args:
        rows: its description, by what is described.
        test: which self-test was made.
        findings: its outcome.
    """

    rows: Rows
    test: str
    findings: Sequence[Finding]

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(one.verdict == "fail" for one in self.findings)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"rows": dict(self.rows), "test": self.test, "findings": [asdict(one) for one in self.findings]}


def inspect_teacher(
    *,
    teacher: Path,
    images: Path | None = None,
    cache: Path | None = None,
    samples: int = 64,
    size: int | None = None,
    kind: Kind | None = None,
    autoencoder: Where | None = None,
    allow_pickle: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> Inspected:
    """Describe a teacher, and test whether it answers as its folder says.

    Args:
        teacher: folder of a diffusers pipeline, a checkpoint of DiT or SiT, or a weights file or run folder of ours.
        images: pictures of the kind that it was trained on, with captions or a sub-folder per class.
        cache: latents of such pictures, from `hidistill cache`; without either, the teacher's own samples are tested.
        samples: pictures of the test.
        size: side of the pictures in pixels; None is what the teacher was made for.
        kind: which repository's a checkpoint is, dit or sit.
        autoencoder: of a checkpoint: its folder, or pixels if there is none; pictures cannot be shown to it without.
        allow_pickle: whether weights in a pickle may be read, tensors alone.
        device: where the teacher runs.
        seed: of the test's noise.

    Raises:
        ValueError: if the teacher is not known, or pictures and cache do not fit it.
    """
    if images is not None and cache is not None:
        raise ValueError("both pictures and a cache came; give one of them")
    if samples < LEAST:
        raise ValueError(f"samples={samples}: a self-test needs at least {LEAST}, and 64 are good")
    refuse_seed(seed)
    subject = subject_of(teacher, kind=kind, autoencoder=autoencoder, allow_pickle=allow_pickle, size=size)
    given = shown(subject, images=images, cache=cache, samples=samples)
    if given.cond is None:
        missing = Finding("self-test", given.words, "warn", "give pictures, or a cache")
        return Inspected(subject.rows, "not made", [missing])
    tested, cond = subject.teacher.to(device), cond_on(given.cond, device)
    if given.x_0 is None:
        assert subject.shape is not None
        findings = inspect_samples(tested, subject.shape, cond, seed=seed)
    else:
        findings = inspect(tested, given.x_0.to(device), cond, seed=seed, spaces=spaces_of(subject.codec))
    return Inspected(subject.rows, given.words, findings)


def self_test(teacher: Teacher, x_0: Points, cond: Cond, *, seed: int, codec: Codec | None = None) -> Sequence[Finding]:
    """The self-test at the start of a run: at most 30 passes of at most 32 samples through the network.

    Args:
        teacher: the teacher.
        x_0: a batch as training has it; a small one is repeated with other noise, which tells less.
        cond: its conditions.
        seed: of the noise.
        codec: what made the samples, whose numbers may be wrong.
    """
    count = len(x_0)
    rows = torch.arange(min(MOST, max(count, LEAST))) % count
    return inspect(teacher, x_0[rows], rows_of(cond, rows), seed=seed, spaces=spaces_of(codec))


def refuse_wrong(findings: Sequence[Finding]) -> None:
    """Refuse a teacher whose self-test failed.

    Raises:
        WrongTeacherError: if a check failed; names each, and its cure.
    """
    failed = [
        f"{one.check}: {one.found}" + (f" ({one.cure})" if one.cure else "")
        for one in findings
        if one.verdict == "fail"
    ]
    if failed:
        raise WrongTeacherError(
            f"the teacher fails its self-test, and no student of it would be any good. {'; '.join(failed)}. "
            "`hidistill inspect` makes the test by itself, on more pictures"
        )


def spaces_of(codec: Codec | None) -> list[Space]:
    """Latents as they would be with the codec's numbers used otherwise."""
    if not isinstance(codec, Autoencoder):
        return []
    scale, shift = codec.scale, codec.shift
    wide = max(len(scale), len(shift))
    scales, shifts = (values * (wide // len(values)) for values in (scale, shift))
    back, offset = tuple(1 / s for s in scales), tuple(s * m for s, m in zip(scales, shifts, strict=True))
    number, place = f"scaling_factor {scale[0]:g}" if len(scale) == 1 else "latents_std", "a copy of vae/config.json"
    found = []
    if any(abs(s - 1) > 1e-6 for s in scale):
        found += [
            Space("not scaled", f"the network was trained without {number}: set it to 1 in {place}", back),
            Space(
                "scaled twice", f"the network was trained on latents times {number} squared: say so in {place}", scales
            ),
            Space(
                "divided by the scale",
                f"the network was trained on latents divided by {number}: set its inverse in {place}",
                tuple(b * b for b in back),
            ),
        ]
    if any(offset):
        cure = f"the network was trained without shift_factor or latents_mean: set it to 0 in {place}"
        found.append(Space("without the shift", cure, offset=offset))
    return found
