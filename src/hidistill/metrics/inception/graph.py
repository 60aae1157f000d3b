"""Constants out of a TensorFlow graph, read as what it is: a protocol buffer of nodes (no TensorFlow, nothing runs)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hidistill.weights import WeightsError

NODE, NODE_NAME, NODE_OP, NODE_ATTR = 1, 1, 2, 5
"""Fields of GraphDef and NodeDef."""
ENTRY_KEY, ENTRY_VALUE, VALUE_TENSOR = 1, 2, 8
"""Of an attribute, which is an entry of a map, and of its value."""
DTYPE, SHAPE, CONTENT, DIM, SIZE, FLOAT = 1, 2, 4, 2, 1, 1
"""Of TensorProto and TensorShapeProto; 1 is the type float32."""
VARINT, LONG, BYTES, SHORT = 0, 1, 2, 5
"""Types on the wire."""

Field = tuple[int, int | memoryview]


def constants(path: Path) -> dict[str, Tensor]:
    """The float32 constants of a graph, by the names of their nodes.

    Raises:
        WeightsError: if the file is no graph, or is cut off.
    """
    try:
        found = {}
        for number, node in fields(memoryview(path.read_bytes())):
            constant = constant_of(message(node)) if number == NODE else None
            if constant is not None:
                found[constant[0]] = constant[1]
    except (IndexError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} is no whole TensorFlow graph ({error}); copy it again") from error
    if not found:
        raise WeightsError(f"{path} is no TensorFlow graph with constants; give the original's file")
    return found


def constant_of(node: memoryview) -> tuple[str, Tensor] | None:
    """Name and value of a node, if it is a float32 constant."""
    name, op, tensor = "", "", None
    for number, value in fields(node):
        if number == NODE_NAME:
            name = str(message(value), "utf-8")
        elif number == NODE_OP:
            op = str(message(value), "utf-8")
        elif number == NODE_ATTR:
            entry = dict(fields(message(value)))
            if bytes(message(entry[ENTRY_KEY])) == b"value":
                tensor = dict(fields(message(entry[ENTRY_VALUE]))).get(VALUE_TENSOR)
    value = value_of(message(tensor)) if op == "Const" and tensor is not None else None
    return None if value is None else (name, value)


def value_of(tensor: memoryview) -> Tensor | None:
    """A constant's value, if it is of float32 and holds its bytes."""
    parts = dict(fields(tensor))
    content = parts.get(CONTENT)
    if parts.get(DTYPE) != FLOAT or not isinstance(content, memoryview):
        return None
    sizes = fields(message(parts.get(SHAPE, memoryview(b""))))
    dims = [dict(fields(message(size))) for number, size in sizes if number == DIM]
    shape = [int(dim[SIZE]) for dim in dims]  # type: ignore[arg-type]
    return torch.from_numpy(np.frombuffer(content, dtype="<f4").reshape(shape).copy())


def message(value: int | memoryview) -> memoryview:
    """A field that must be of bytes."""
    if isinstance(value, int):
        raise ValueError(f"the number {value} where bytes belong")
    return value


def fields(data: memoryview) -> Iterator[Field]:
    """Number and value of each field of a message; a value of bytes may be a message itself."""
    place = 0
    while place < len(data):
        key, place = varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = varint(data, place)
            yield number, value
            continue
        size, place = varint(data, place) if kind == BYTES else ({LONG: 8, SHORT: 4}.get(kind, -1), place)
        if size < 0 or place + size > len(data):
            raise ValueError(f"a field of type {kind} and {size} bytes at {place} of {len(data)}")
        yield number, data[place : place + size]
        place += size


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError(f"a number of more than ten bytes at {place}")
