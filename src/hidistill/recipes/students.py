"""Students of other libraries' networks: their weights files, which say all that rebuilds them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hidistill import weights
from hidistill.foreign.folder import build
from hidistill.foreign.lora import low_rank, merged
from hidistill.foreign.network import FlowMap, Network
from hidistill.foreign.scheduler import convention_of
from hidistill.recipes.teachers import Loaded, family_of, load, part_of

FLOW_MAP = "flow-map"
"""Family of the weights files that hold a `FlowMap`."""


def student_config(loaded: Loaded, student: FlowMap, shape: Sequence[int]) -> dict[str, Any]:
    """What rebuilds a student from its weights file alone, and finds what belongs to its teacher."""
    network = loaded.network
    part, _ = part_of(loaded.folder)
    return {
        "network": {key: value for key, value in loaded.folder.config(part).items() if key != "_name_or_path"},
        "scheduler": dict(loaded.scheduler),
        "taps": list(network.taps),
        "shape": list(shape),
        "embedded": loaded.embedded,
        "degree": None if student.curve is None else student.curve.degree,
        "teacher": str(loaded.folder.root.resolve()),
    }


def student_from(stored: weights.Weights, *, source: str) -> FlowMap:
    """A flow map from its weights file, in evaluation mode and frozen.

    Adapters alone need the folder of the teacher that they were trained on; they come back merged into its weights.

    Raises:
        ValueError: if that folder is not where it was.
    """
    config = stored.config
    embedded = config.get("embedded")
    family = family_of(config["network"], where=source, embedded=embedded)
    rank = int(config.get("lora_rank", 0))
    if rank:
        root = Path(config["teacher"])
        if not root.exists():
            raise ValueError(
                f"{source} holds adapters of rank {rank} for the teacher in {root}, where nothing lies now; put the "
                "teacher back there"
            )
        student = FlowMap(
            low_rank(load(root, taps=config["taps"], embedded=embedded).network, rank=rank), degree=config["degree"]
        )
        weights.load_into(student, stored.tensors, source=source)
        return merged(student).eval().requires_grad_(False)
    net = build(config["network"], where=source)
    network = Network(net, family, convention_of(config["scheduler"]), taps=config["taps"])
    student = FlowMap(network, degree=config["degree"])
    kind = next(iter(stored.tensors.values())).dtype
    weights.load_into(student.to(kind), stored.tensors, source=source)
    return student.eval().requires_grad_(False)
