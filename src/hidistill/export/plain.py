"""A one-step student as one file of weights, in the keys of its teacher's own architecture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidistill import weights
from hidistill.export.fold import OneStep

ONE_STEP = "one-step"
"""Family of the files: `x_0 = noise z + answer F(scale z)`, the three numbers in the configuration, F the network of
the class and the configuration under "network", with the keys that diffusers gives it."""
OURS = "dit-one-step"
"""Family of the files that hold a `FlowMapDiT` whose times are constants; it is asked for t = 1, r = 0 alone."""


def save(
    path: Path, student: OneStep, *, config: Mapping[str, Any], card: Mapping[str, str], classes: Sequence[str]
) -> None:
    """Write the file; it appears whole or not at all.

    Args:
        path: the file.
        student: what `fold` gave.
        config: of the student that was folded, as its weights file has it.
        card: its model card.
        classes: names of its classes.
    """
    kept = {key: config[key] for key in ("network", "shape", "embedded", "teacher") if key in config}
    numbers = {key: getattr(student, key) for key in ("noise", "answer", "scale", "time")}
    weights.save(path, student.net, family=ONE_STEP, config=kept | numbers, card=card, classes=classes)
