"""Networks of transformers that judge pictures, from folders that the user has."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hidistill.foreign.encoders import without_bars
from hidistill.foreign.folder import library
from hidistill.weights import WeightsError

WEIGHTS = "model.safetensors"
WHOLE = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}


def read_judge(folder: Path, *, kind: str, name: str, example: str) -> tuple[Any, str]:
    """The network of a folder, in evaluation mode, and the first eight digits of its weights' sum.

    Args:
        folder: what `save_pretrained` wrote; nothing is downloaded.
        kind: `model_type` of its configuration, e.g. "clip".
        name: of its class in transformers, e.g. "CLIPModel".
        example: of a folder that would do.

    Raises:
        FileNotFoundError: if the folder has no configuration or no weights.
        WeightsError: if it holds another network, or its weights do not fit.
        ModuleNotFoundError: if transformers is not installed.
    """
    for file in ("config.json", WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{folder} has no {file}; give the folder of a {name} of transformers, such as {example}, with "
                f"config.json and {WEIGHTS}: it is not downloaded"
            )
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if found != kind:
        raise WeightsError(f"{folder} holds a network of type {found!r}; a {kind!r} is needed here")
    network = getattr(library("transformers"), name)
    try:
        with without_bars():
            model, report = network.from_pretrained(folder, **WHOLE)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder} holds no whole {name} ({error}); copy it again") from error
    faults = [str(key) for keys in ("missing_keys", "mismatched_keys") for key in report[keys]]
    if faults:
        raise WeightsError(f"{folder} lacks weights of a {name}: {', '.join(faults[:5])}; copy it again")
    with (folder / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return model.eval().requires_grad_(False), digest[:8]
