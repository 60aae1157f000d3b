"""`hidistill score`: judges pictures that are there already."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


def score(
    samples: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    reference: Path | None = None,
    prompts: Path | None = None,
    out: Path = Path("scores"),
    inception: Path | None = None,
    dinov2: Path | None = None,
    clip: Path | None = None,
    count: int | None = None,
    groups: int = 0,
    device: str = "cpu",
) -> int:
    """Judge pictures against a reference, or those of prompts by their prompts and these prompts' real pictures.

    Without weights the features are EfficientNet-Lite0's, and distances are not FID. The table goes to OUT as
    evaluation.json, .md and .tex; one of other pictures that lies there is kept in OUT/evaluations. Features are kept
    in OUT/features, by the content of the pictures: the same command goes on where it stopped.

    Args:
        samples: folders of pictures, or .npz batches with arr_0 (and labels arr_1) as the ADM evaluator takes them;
            with --prompts the one folder that `hidistill draw --prompts` filled.
        reference: real pictures as a folder or a batch, or an .npz file of their mu and sigma.
        prompts: in place of a reference, the file or folder of prompts that the pictures were drawn from, one or more
            each; a row for each category. Distances are taken where the list has real pictures, as MJHQ-30K does.
        out: where the table goes.
        inception: weights of the original FID network: FID, sFID, Inception Score, kernel distance, precision, recall;
            with --prompts FID alone.
        dinov2: folder of a DINOv2 of transformers.
        clip: with --prompts, folder of a CLIPModel of transformers, for the CLIP score.
        count: the first so many of each set; by default all, which must then be equally many.
        groups: intervals by leaving out so many groups of pictures, as `hidistill compare` needs them.
        device: where the networks run.
    """
    from hidistill.cli.outcome import say_all
    from hidistill.cli.pace import drawing
    from hidistill.recipes import prompted_scoring, scoring
    from hidistill.report.folder import document

    refuse(samples, reference, prompts, clip, count)
    how = {"out": out, "inception": inception, "dinov2": dinov2, "groups": groups, "device": device}
    with drawing() as tell:
        if prompts is not None:
            prompted_scoring.score_prompts(samples[0], prompts=prompts, clip=clip, on_progress=tell, **how)
        else:
            assert reference is not None
            scoring.score(samples, reference=reference, count=count, on_progress=tell, **how)
    say_all(document(out / "evaluation.json") or {})
    Console().print(f"table: {out / 'evaluation.md'}", markup=False, highlight=False, soft_wrap=True)
    return 0


def refuse(
    samples: Sequence[Path], reference: Path | None, prompts: Path | None, clip: Path | None, count: int | None
) -> None:
    """Refuse options that say nothing to judge by, or that have no effect.

    Raises:
        ValueError: if so.
    """
    if (reference is None) == (prompts is None):
        came = "neither" if reference is None else "both"
        raise ValueError(
            f"{came} of --reference and --prompts came: pictures are judged against --reference REAL, or by the "
            "--prompts LIST that they were drawn from"
        )
    if prompts is None and clip is not None:
        raise ValueError(f"--clip {clip}: a CLIP score compares pictures with their prompts; say --prompts LIST")
    if prompts is not None and count is not None:
        raise ValueError(f"--count {count}: with --prompts the pictures of all prompts are judged; leave --count out")
    if prompts is not None and len(samples) != 1:
        raise ValueError(f"{len(samples)} sets of samples came; with --prompts one folder is judged: give one")


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(score, args=argv, prog="hidistill score")
