"""Weights of the network behind FID, from the files that people have of it; anything else is refused."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from hidistill.metrics.inception.graph import constants
from hidistill.metrics.inception.network import EPS, Inception
from hidistill.weights import WeightsError


class Published(NamedTuple):
    """A file that is known to hold the original network.

    Args:
        names: under which people have it.
        size: in bytes.
        sha256: of all of it.
    """

    names: tuple[str, ...]
    size: int
    sha256: str


PUBLISHED = (
    Published(
        ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
        95_628_359,
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    Published(
        ("inception-2015-12-05.pt",), 95_607_719, "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    ),
)
"""Of torch-fidelity, torchmetrics and pytorch-fid; of StyleGAN2-ADA, clean-fid and FastGen."""
GRAPH = "classify_image_graph_def.pb"
"""TensorFlow's own file, which the ADM evaluator uses. Its sum is not known here: what it gives is not called FID."""
ROLES = {
    "weight": ("weight", "gamma"),
    "bias": ("bias", "beta"),
    "running_mean": ("running_mean", "moving_mean", "mean"),
    "running_var": ("running_var", "moving_variance", "var", "variance"),
}
"""What batch norms call their tensors."""


class Read(NamedTuple):
    """A network, and what it may be called.

    Args:
        network: in evaluation mode and frozen.
        name: "inception-2015" for the original weights; with eight digits of the file's sum for others.
        original: whether distances in its features may be called FID.
    """

    network: Inception
    name: str
    original: bool


def read(path: Path, published: tuple[Published, ...] | None = None) -> Read:
    """The network with the weights of a file, whose sum is checked before anything in it is looked at.

    Args:
        path: the file.
        published: the files that are accepted; None is `PUBLISHED`.

    Raises:
        FileNotFoundError: if there is no file.
        WeightsError: if it is another file, or holds another network.
    """
    published = PUBLISHED if published is None else published
    if not path.is_file():
        known = ", ".join(name for each in published for name in each.names)
        raise FileNotFoundError(
            f"there are no Inception weights {path}; give the path of {known} or {GRAPH}: they are not downloaded"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    known = next((each for each in published if each.sha256 == found), None)
    network = Inception()
    if known is None and path.suffix != ".pb":
        raise WeightsError(refusal(path, found, published))
    kind = Path(known.names[0]).suffix if known else path.suffix  # people rename files
    load(network, tensors_of(path, kind), path)
    name = "inception-2015" if known else f"inception-graph-{found[:8]}"
    return Read(network.eval().requires_grad_(False), name, known is not None)


def refusal(path: Path, found: str, published: tuple[Published, ...]) -> str:
    """Why a file is no original, with its keys where it is safe to look at them."""
    known = "; ".join(f"{' or '.join(p.names)} ({p.size:,} bytes, sha256 {p.sha256[:12]}...)" for p in published)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        keys = list(content) if isinstance(content, dict) else [type(content).__name__]
        holds = f" It holds {len(keys)} entries, such as {', '.join(map(str, keys[:3]))}."
    except Exception:  # whatever a stranger's file does, the refusal stands
        holds = ""
    return (
        f"{path} ({path.stat().st_size:,} bytes, sha256 {found[:12]}...) is not the network behind FID.{holds} "
        f"That one is {known}. Other libraries' Inception v3 was trained otherwise and gives other numbers"
    )


def tensors_of(path: Path, kind: str) -> Mapping[str, Tensor]:
    """The tensors of a file: a graph, or one whose sum is known."""
    if kind == ".pb":
        return constants(path)
    if kind == ".pt":
        with catch_warnings():  # the format is deprecated, and the file as it is
            simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu").state_dict()
    return torch.load(path, map_location="cpu", weights_only=True)


def load(network: Inception, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fold each batch norm into its convolution: `s = gamma / sqrt(var + eps)`, weight `s W`, bias `beta - s mean`.

    Raises:
        WeightsError: if a tensor is missing or has another shape; names keys.
    """
    missing: list[str] = []
    for module in network.convolutions():
        parts = parts_of(module.layer.name, module.layer.graph, tensors)
        wanted = {"kernel": tuple(module.weight.shape)} | dict.fromkeys(ROLES, (module.layer.after,))
        wrong = [role for role, shape in wanted.items() if role not in parts or tuple(parts[role].shape) != shape]
        if wrong:
            missing.append(f"{module.layer.name} ({', '.join(wrong)})")
            continue
        part = {role: value.double() for role, value in parts.items()}
        scale = part["weight"] / torch.sqrt(part["running_var"] + EPS)
        module.weight.data.copy_(part["kernel"] * scale[:, None, None, None])
        assert module.bias is not None
        module.bias.data.copy_(part["bias"] - part["running_mean"] * scale)
    for key, own in (("weight", network.head.weight), ("bias", network.head.bias)):
        value = head_of(key, tensors)
        if value is None or value.shape != own.shape:
            missing.append(f"fc.{key}")
        else:
            own.data.copy_(value)
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise WeightsError(
            f"{path} holds another network: of the original's layers it lacks {'; '.join(missing[:4])}{more}, or has "
            f"them in other shapes; it has {', '.join(list(tensors)[:4])}, ...: give the original file"
        )


def parts_of(name: str, graph: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernel and batch norm of a layer, under the names of one of the three formats."""
    if f"{name}.conv.weight" in tensors:
        places, kernel = [f"{name}.bn."], tensors[f"{name}.conv.weight"]
    elif f"{graph}/conv2d_params" in tensors:
        places, kernel = [f"{graph}/batchnorm/"], tensors[f"{graph}/conv2d_params"].permute(3, 2, 0, 1)
    else:
        block, *rest = graph.split("/")
        script = f"layers.{'.'.join((block, *rest))}"
        flat = f"layers.{'.'.join((block, '_'.join(rest)))}"
        place = next((p for p in (script, flat) if f"{p}.weight" in tensors or f"{p}.conv.weight" in tensors), "")
        if not place:
            return {}
        kernel = tensors.get(f"{place}.conv.weight", tensors.get(f"{place}.weight"))
        places = [f"{place}.bn.", f"{place}."]
    assert kernel is not None
    parts = {"kernel": kernel}
    for role, names in ROLES.items():
        found = [tensors[p + n] for p in places for n in names if p + n in tensors and tensors[p + n].ndim == 1]
        if found:
            parts[role] = found[0]
    # The TorchScript file's batch norms have no gain, and the graph does not use the one that it carries.
    if "weight" not in parts or f"{graph}/conv2d_params" in tensors:
        parts["weight"] = torch.ones(kernel.shape[0])
    return parts


def head_of(key: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Weight (1008, 2048) or bias of the last layer."""
    graph = tensors.get({"weight": "softmax/weights", "bias": "softmax/biases"}[key])
    if graph is not None:
        return graph.T if key == "weight" else graph
    return tensors.get(f"fc.{key}", tensors.get(f"output.{key}"))
