"""Students of other libraries' networks: their weights files, which say all that rebuilds them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidistill import weights
from hidistill.foreign.folder import Folder
from hidistill.foreign.lora import low_rank, merged
from hidistill.foreign.network import FlowMap, Network
from hidistill.recipes.originals import Checkpoint, Where, parts_at, where_of
from hidistill.recipes.teachers import Loaded, built, convention_for, family_of, load_parts, part_of

FLOW_MAP = "flow-map"
"""Family of the weights files that hold a `FlowMap`."""


def student_config(loaded: Loaded, student: FlowMap, shape: Sequence[int]) -> dict[str, Any]:
    """What rebuilds a student from its weights file alone, and finds what belongs to its teacher."""
    network, folder = loaded.network, loaded.folder
    part, _ = part_of(folder)
    checkpoint: dict[str, Any] = {}
    if isinstance(folder, Checkpoint):
        checkpoint = {"kind": folder.kind, "autoencoder": resolved(folder.autoencoder)}
    return {
        "network": {key: value for key, value in folder.config(part).items() if key != "_name_or_path"},
        "scheduler": dict(loaded.scheduler),
        "taps": list(network.taps),
        "shape": list(shape),
        "embedded": loaded.embedded,
        "degree": None if student.curve is None else student.curve.degree,
        "teacher": str(folder.root.resolve()),
        "allow_pickle": folder.allow_pickle,
        **checkpoint,
    }


def resolved(autoencoder: Where | None) -> str | None:
    """Where an autoencoder lies, from anywhere."""
    return str(autoencoder.resolve()) if isinstance(autoencoder, Path) else autoencoder


def teacher_parts(config: Mapping[str, Any], *, variant: str | None = None) -> Folder | Checkpoint:
    """What a student's teacher was made of.

    Args:
        config: of the student's weights file.
        variant: of the weights in the teacher's folder, or in its autoencoder's.

    Raises:
        ValueError: if nothing lies at one of its places now.
    """
    root, where = Path(config["teacher"]), where_of(config.get("autoencoder"))
    if not root.exists():
        raise ValueError(
            f"the student was distilled from the teacher in {root}, where nothing lies now, and whose parts are needed "
            "yet: put it back there, or say where it is (--teacher of hidistill export)"
        )
    if isinstance(where, Path) and not where.exists():
        raise ValueError(
            f"the student lives on latents of the autoencoder in {where}, where nothing lies now: put it back there, "
            "or say where it is (--autoencoder of hidistill export)"
        )
    allowed = bool(config.get("allow_pickle"))
    return parts_at(root, kind=config.get("kind"), autoencoder=where, variant=variant, allow_pickle=allowed)


def student_from(stored: weights.Weights, *, source: str) -> FlowMap:
    """A flow map from its weights file, in evaluation mode and frozen.

    Adapters alone need the folder of the teacher that they were trained on; they come back merged into its weights.

    Raises:
        ValueError: if that folder is not where it was.
    """
    config = stored.config
    embedded, kind = config.get("embedded"), config.get("kind")
    family = family_of(config["network"], where=source, embedded=embedded)
    rank = int(config.get("lora_rank", 0))
    if rank:
        teacher = load_parts(teacher_parts(config), taps=config["taps"], embedded=embedded).network
        student = FlowMap(low_rank(teacher, rank=rank), degree=config["degree"])
        weights.load_into(student, stored.tensors, source=source)
        return merged(student).eval().requires_grad_(False)
    net = built(config["network"], kind, where=source)
    network = Network(net, family, convention_for(config["scheduler"], kind), taps=config["taps"])
    student = FlowMap(network, degree=config["degree"])
    own = next(iter(stored.tensors.values())).dtype
    weights.load_into(student.to(own), stored.tensors, source=source)
    return student.eval().requires_grad_(False)
