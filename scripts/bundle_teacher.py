"""Write the Fashion-MNIST teacher of a run into the package, in float16, with its card.

    hidistill train fashion.teacher --out runs/teacher
    python scripts/bundle_teacher.py runs/teacher
    hidistill demo
    python scripts/bundle_teacher.py runs/teacher --evaluation runs/demo/evaluation.json

The second call adds what an evaluation of the bundled weights measured to the card.
"""

import json
import sys
from pathlib import Path

import torch
import tyro

from hidistill import weights
from hidistill.data.fashion import CLASSES
from hidistill.recipes.fashion import GUIDANCE, TEACHER
from hidistill.recipes.judging import read_teacher
from hidistill.scores import Evaluation
from hidistill.train.loop import quickest


def main(run: tyro.conf.Positional[Path], *, evaluation: Path | None = None) -> None:
    """Convert, and write the card.

    Args:
        run: folder of a finished run of fashion.teacher.
        evaluation: evaluation.json of a run that distilled the bundled teacher.
    """
    source = run / "models" / "teacher.safetensors"
    stored = weights.read(source)
    recipe = json.loads((run / "recipe.json").read_text())
    arguments = {name: value for name, value in recipe["arguments"].items() if name != "data"}
    card = {
        "model": "class-conditional DiT, velocity on the linear path, 28 x 28 gray pixels in [-1, 1]",
        "recipe": "fashion.teacher",
        "arguments": json.dumps(arguments),
        "data": "Fashion-MNIST, 60,000 training images; MIT, copyright 2017 Zalando SE",
        "precision": f"trained in float32, products in {quickest()}; average of the weights stored in float16",
        "guidance": f"{GUIDANCE:g} is distilled",
        "license": "Apache-2.0",
    }
    if evaluation is not None:
        measured = Evaluation.load(evaluation)
        for row in measured.rows:
            if row.kind == "teacher":
                numbers = {name: round(value, 4) for name, value in row.metrics.items()}
                card[f"measured: {row.name}, {row.n} images against the test images"] = json.dumps(numbers)
    about = {"family": "dit", "config": stored.config, "card": card, "classes": CLASSES}
    weights.save(TEACHER, read_teacher(source), **about, dtype=torch.float16)
    TEACHER.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    sys.stdout.write(f"{TEACHER}: {TEACHER.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    tyro.cli(main)
