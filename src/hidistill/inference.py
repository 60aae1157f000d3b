"""Networks that do not learn, in quicker or smaller forms: low precision, compiled, replayed, of 8 bits."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from hidistill.types import Cond, Points, Probe, Student, Teacher, Times, Tokens, VelocityField

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Whose products autocast takes in low precision; weights of others, such as embeddings of time, keep theirs."""


@dataclass(frozen=True)
class LowPrecisionField:
    """A velocity field whose passes run in bfloat16 products, and answer in the precision of their points.

    It holds the field itself, not a copy: for a fake score that goes on learning in float32.

    Args:
        field: what answers.
    """

    field: VelocityField

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """See `VelocityField.velocity`."""
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return self.field.velocity(x_t, t=t, cond=cond).to(x_t.dtype)


@dataclass(frozen=True)
class LowPrecision:
    """A teacher whose passes run in bfloat16 products; its features carry gradients as before.

    Args:
        teacher: what answers; `lowered` halves the memory of its weights and spares their conversion in each pass.
    """

    teacher: Teacher

    @property
    def feature_channels(self) -> Sequence[int]:
        """See `Teacher.feature_channels`."""
        return self.teacher.feature_channels

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """See `VelocityField.velocity`."""
        return LowPrecisionField(self.teacher).velocity(x_t, t=t, cond=cond)

    def features(self, x_t: Points, *, t: Times, cond: Cond) -> Sequence[Tokens]:
        """See `Teacher.features`."""
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return [layer.to(x_t.dtype) for layer in self.teacher.features(x_t, t=t, cond=cond)]

    def probe(self, x_t: Points, *, t: Times, cond: Cond) -> Probe:
        """See `Teacher.probe`."""
        with torch.autocast(x_t.device.type, torch.bfloat16):
            velocity, features = self.teacher.probe(x_t, t=t, cond=cond)
        return Probe(velocity.to(x_t.dtype), [layer.to(x_t.dtype) for layer in features])

    def null(self, cond: Cond) -> Cond:
        """See `Teacher.null`."""
        return self.teacher.null(cond)


def lowered(module: nn.Module) -> nn.Module:
    """A frozen copy whose linear and convolutional layers hold bfloat16, for `LowPrecision`.

    All else keeps its precision: frequencies of a time's embedding, rounded to bfloat16, would be other frequencies.
    """
    copy = deepcopy(module).requires_grad_(False)
    for part in copy.modules():
        if isinstance(part, LAYERS):
            part.to(torch.bfloat16)
    return copy


@dataclass(frozen=True)
class CompiledStudent:
    """A student whose pass is one graph of torch.compile; without gradient.

    The first call takes a minute or so, and so does the first of each further shape.

    Args:
        student: what answers.
    """

    student: Student

    @cached_property
    def graph(self) -> Callable[..., Points]:
        """What is compiled."""
        return torch.compile(self.student.mean_velocity, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def mean_velocity(self, x_t: Points, *, t: Times, r: Times, cond: Cond) -> Points:
        """See `Student.mean_velocity`."""
        return self.graph(x_t, t=t, r=r, cond=cond)


@dataclass(frozen=True)
class Replayed:
    """A student whose pass is recorded as a CUDA graph once for each shape and precision, and replayed; no gradient.

    At small batches a GPU waits for the CPU that launches its kernels; a graph is one launch. Weights must stay where
    they are: a student that was moved or loaded anew must be wrapped anew.

    Args:
        student: what answers.

    Raises:
        ValueError: when called, if the points are not on a CUDA device, or the condition is not one tensor.
    """

    student: Student
    recorded: dict = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def mean_velocity(self, x_t: Points, *, t: Times, r: Times, cond: Cond) -> Points:
        """See `Student.mean_velocity`."""
        if x_t.device.type != "cuda":
            raise ValueError(
                f"points on {x_t.device} came to a CUDA graph; move them to a GPU, or take the student as is"
            )
        if not isinstance(cond, Tensor):
            raise ValueError(f"a condition of type {type(cond).__name__} came; a recorded student takes one tensor")
        given = (x_t, t, r, cond)
        key = signature(given)
        if key not in self.recorded:
            self.recorded[key] = self.record(given)
        graph, places, answer = self.recorded[key]
        for place, value in zip(places, given, strict=True):
            place.copy_(value)
        graph.replay()
        return answer.clone()

    def record(self, given: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        """Record one pass, after some on a stream of their own, as torch asks for."""
        places = [each.clone() for each in given]
        x_t, t, r, cond = places
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), casting_anew(x_t.device.type):
            for _ in range(3):
                self.student.mean_velocity(x_t, t=t, r=r, cond=cond)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), casting_anew(x_t.device.type):
            answer = self.student.mean_velocity(x_t, t=t, r=r, cond=cond)
        return graph, places, answer


def signature(given: Sequence[Tensor]) -> Hashable:
    """What a recorded pass holds for: shapes, types and devices, and autocast's precision."""
    device = given[0].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return autocast, tuple((each.shape, each.dtype, each.device) for each in given)


def casting_anew(device: str) -> AbstractContextManager:
    """Autocast as it is, on a kind of device, but for its memory of weights that were cast.

    It keeps those that require a gradient, also where none is taken. A graph recorded with one would read it after it
    is freed, and after the weight has moved.
    """
    enabled, precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return torch.autocast(device, precision, enabled=enabled, cache_enabled=False)


def quantized(module: nn.Module, weights: str) -> nn.Module:
    """A frozen copy whose linear layers hold weights of 8 bits with a scale per row (torchao).

    A quarter of the memory of float32 for a little noise; quicker only where memory is what is waited for. Activations
    stay as they were, and so do layers with a row of zeros, for which float8 has no scale.

    Args:
        module: a teacher or a student.
        weights: int8, or float8 (e4m3).

    Raises:
        ImportError: if torchao is not installed.
        ValueError: if there are no such weights.
    """
    if weights not in ("int8", "float8"):
        raise ValueError(f"weights={weights!r}: those of 8 bits are 'int8' and 'float8'")
    try:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Float8WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError as error:
        raise ImportError(
            "weights of 8 bits need torchao, which is missing or does not fit this torch: pip install "
            "'hidistill[quantized]'"
        ) from error
    copy = deepcopy(module).eval()
    config = Int8WeightOnlyConfig() if weights == "int8" else Float8WeightOnlyConfig()

    def plain(layer: nn.Module, name: str) -> bool:
        """Whether a layer is one that torchao takes as it is, and has a scale for each row."""
        del name
        return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and bool(layer.weight.any(1).all())

    quantize_(copy, config, filter_fn=plain)
    return copy.requires_grad_(False)
