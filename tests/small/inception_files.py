"""Random weights of the network behind FID, written as the files that people have of the true ones."""

import hashlib
import warnings
from pathlib import Path

import torch
from torch import nn

from hidistill.metrics.inception import Inception, Published


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Under the names of torch-fidelity's and pytorch-fid's file; gains of batch norms are 1, as in the original."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for module in Inception().convolutions():
        layer = module.layer
        fan = layer.before * layer.kernel[0] * layer.kernel[1]
        shape = (layer.after, layer.before, *layer.kernel)
        state[f"{layer.name}.conv.weight"] = torch.randn(shape, generator=g) * (2 / fan) ** 0.5
        state[f"{layer.name}.bn.weight"] = torch.ones(layer.after)
        state[f"{layer.name}.bn.bias"] = 0.1 * torch.randn(layer.after, generator=g)
        state[f"{layer.name}.bn.running_mean"] = 0.1 * torch.randn(layer.after, generator=g)
        state[f"{layer.name}.bn.running_var"] = 0.5 + torch.rand(layer.after, generator=g)
        state[f"{layer.name}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"] = torch.randn(1008, 2048, generator=g) / 30
    state["fc.bias"] = torch.randn(1008, generator=g)
    return state


def state_file(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A state of tensors, as torch-fidelity's."""
    torch.save(state, path)
    return path


class Leaf(nn.Module):
    """A module of tensors that does nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def script_file(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A TorchScript archive, as StyleGAN2-ADA's: towers are modules, in the last two blocks their names are flat."""
    root = Leaf()
    root.layers, root.output = Leaf(), nn.Linear(2048, 1008)
    root.output.load_state_dict({key: state[f"fc.{key}"] for key in ("weight", "bias")})
    for module in Inception().convolutions():
        block, *rest = module.layer.graph.split("/")
        names = [block, "_".join(rest)] if block in ("mixed_9", "mixed_10") else [block, *rest]
        place = root.layers
        for name in names:
            if not hasattr(place, name):
                setattr(place, name, Leaf())
            place = getattr(place, name)
        name = module.layer.name
        place.weight = nn.Parameter(state[f"{name}.conv.weight"])
        for ours, theirs in (("bias", "beta"), ("running_mean", "mean"), ("running_var", "var")):
            place.register_buffer(theirs, state[f"{name}.bn.{ours}"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(root), path)
    return path


def graph_file(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A TensorFlow graph: a protocol buffer of constants, with a node that is none between them."""
    nodes = {}
    for module in Inception().convolutions():
        name, graph = module.layer.name, module.layer.graph
        nodes[f"{graph}/conv2d_params"] = state[f"{name}.conv.weight"].permute(2, 3, 1, 0)
        norm = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        nodes |= {f"{graph}/batchnorm/{theirs}": state[f"{name}.bn.{ours}"] for theirs, ours in norm.items()}
    nodes |= {"softmax/weights": state["fc.weight"].T, "softmax/biases": state["fc.bias"]}
    relu = message((1, b"conv"), (2, b"Relu"), (3, b"conv/batchnorm"))
    path.write_bytes(message((1, relu), *((1, node(name, value)) for name, value in nodes.items()), (3, 21)))
    return path


def node(name: str, value: torch.Tensor) -> bytes:
    shape = message(*((2, message((1, side))) for side in value.shape))
    tensor = message((1, 1), (2, shape), (4, value.contiguous().numpy().astype("<f4").tobytes()))
    kind = message((1, b"dtype"), (2, message((6, 1))))
    return message((1, name.encode()), (2, b"Const"), (5, kind), (5, message((1, b"value"), (2, message((8, tensor))))))


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Fields of a protocol buffer: numbers as varints, bytes with their length."""
    parts = []
    for number, value in fields:
        kind = 0 if isinstance(value, int) else 2
        parts.append(
            varint(number << 3 | kind) + (varint(value) if isinstance(value, int) else varint(len(value)) + value)
        )
    return b"".join(parts)


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def as_published(path: Path) -> Published:
    """The file as if it were a known one."""
    return Published((path.name,), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
