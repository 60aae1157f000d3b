"""A one-step generator as one ONNX file, checked against torch before it is left behind.

The file is written by torch's exporter of traces. Its successor (torch.export) refuses several of these networks, and
takes minutes where this one takes seconds.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hidistill.codecs import Autoencoder
from hidistill.export.parts import refuse_file
from hidistill.foreign.folder import library
from hidistill.types import Codec, Cond, Points

OPSET = 18
"""Version of ONNX's set of operators that files are written in; onnxruntime reads it since 1.14."""
TOLERANCE = 1e-4
"""Largest difference between ONNX and torch that is let pass, in units of the largest sample."""
ROWS = 5
"""Rows of the traced pass: a number that seldom is the size of anything else."""
LARGE = 2**31 - 2**24
"""Bytes of weights above which they lie in a file of their own, for one message of protobuf holds 2^31."""


class Written(NamedTuple):
    """A file that was written and checked.

    Args:
        path: the file.
        inputs: names of its inputs.
        output: name of its output.
        difference: largest difference to torch, in units of the largest sample.
    """

    path: Path
    inputs: tuple[str, ...]
    output: str
    difference: float


class Generator(nn.Module):
    """Samples from noise and a condition that is given as tensors in a row, for formats that know nothing else.

    Args:
        step: samples from noise and a condition.
        texts: names of the condition's tensors; none if it is a label.
        codec: carries samples to pixels; None leaves them as they are.
    """

    def __init__(
        self,
        step: Callable[[Points, Cond], Points],
        *,
        texts: Sequence[str] = (),
        codec: Codec | None = None,
    ) -> None:
        super().__init__()
        self.step, self.texts, self.codec = step, tuple(texts), codec
        # Whose weights are the file's, too.
        self.decoder = codec.module if isinstance(codec, Autoencoder) else None

    def forward(self, noise: Points, *cond: Tensor) -> Tensor:
        """Samples (or pixels) from noise, under labels or the tensors named by `texts`."""
        samples = self.step(noise, dict(zip(self.texts, cond, strict=True)) if self.texts else cond[0])
        return samples if self.codec is None else self.codec.decode(samples)


class Traceable(TorchFunctionMode):
    """Within, what a trace would not follow is replaced by what gives the same and is followed.

    - The count of rows, where Python's `len` made it a plain number, is taken from the noise again. Plain numbers say
      nothing of where they come from: a first size that happens to be `ROWS` is taken for it, which the check of the
      file with another count finds out.
    - Root mean squares, which the set of operators lacks, are taken in plain operations; norms of layers are told their
      size in plain numbers.
    - What is no single entry is not squeezed, and dimensions are parted by a reshape with traced sizes.
    """

    rows: Any = None

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """See the class."""
        del types
        kwargs = kwargs or {}
        if func is torch.nn.functional.rms_norm or func is torch.rms_norm:
            return rms_norm(*args, **kwargs)
        if func is torch.nn.functional.layer_norm:
            return func(args[0], [int(size) for size in args[1]], *args[2:], **kwargs)
        if func is Tensor.squeeze and len(args) == 2 and isinstance(args[1], int) and int(args[0].shape[args[1]]) != 1:
            return args[0]
        if func is Tensor.unflatten and len(args) == 3:
            x, dim, sizes = args
            place = dim % x.ndim
            return x.reshape(*x.shape[:place], *sizes, *x.shape[place + 1 :])
        if func in SIZED:
            args = self.counted(args, first=SIZED[func])
        return func(*args, **kwargs)

    def counted(self, args: tuple, first: int) -> tuple:
        """Arguments in which a first size of `ROWS` is the noise's."""
        if len(args) <= first or self.rows is None:
            return args
        whole = args[first] if isinstance(args[first], list | tuple) else None
        sizes = args[first:] if whole is None else tuple(whole)
        if not sizes or type(sizes[0]) is not int or sizes[0] != ROWS:
            return args
        sizes = (self.rows, *sizes[1:])
        return (*args[:first], *sizes) if whole is None else (*args[:first], sizes, *args[first + 1 :])


SIZED: Mapping[Callable, int] = {
    torch.full: 0,
    torch.zeros: 0,
    torch.ones: 0,
    Tensor.expand: 1,
    Tensor.reshape: 1,
    Tensor.view: 1,
}
"""Functions that are given sizes, and at which place these begin."""


class Counted(nn.Module):
    """A generator whose first input says how many rows there are.

    Args:
        generator: the generator.
        mode: learns the count.
    """

    def __init__(self, generator: nn.Module, mode: Traceable) -> None:
        super().__init__()
        self.generator, self.mode = generator, mode

    def forward(self, noise: Tensor, *cond: Tensor) -> Tensor:
        """What the generator gives."""
        self.mode.rows = noise.shape[0]
        return self.generator(noise, *cond)


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """`x / rms(x)` over the last dimensions, times a weight."""
    last = tuple(range(-len(shape), 0))
    x = x * (x.square().mean(last, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return x if weight is None else x * weight


def export_onnx(
    generator: nn.Module,
    example: Mapping[str, Tensor],
    out: Path,
    *,
    output: str = "samples",
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    card: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
) -> Written:
    """Write a generator as ONNX, run it with onnxruntime, and leave it only if it gives what torch gives.

    Args:
        generator: takes the example's tensors in their order; on the CPU, in float32.
        example: inputs by name, of any count of rows but `ROWS`, which are traced.
        out: the file.
        output: name of the output.
        dynamic: further dimensions that may vary beside the rows, by input: index -> name.
        card: what the file's metadata says.
        tolerance: largest difference, in units of the largest sample.
        force: whether a file may be replaced.

    Raises:
        ValueError: if the place is taken, or the file does not give what torch gives.
        ModuleNotFoundError: if onnx or onnxruntime is not installed.
    """
    refuse_file(out, ".onnx", force=force)
    onnx, runtime = library("onnx", extra="onnx"), library("onnxruntime", extra="onnx")
    rows = len(next(iter(example.values())))
    if rows == ROWS:
        raise ValueError(f"an example of {rows} rows came, which is what is traced; give another count, to be checked")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        axes = {name: {0: "batch", **(dynamic or {}).get(name, {})} for name in example} | {output: {0: "batch"}}
        trace(generator.eval(), example, Path(scratch) / "traced.onnx", output=output, axes=axes)
        model = onnx.load(Path(scratch) / "traced.onnx")
        onnx.helper.set_model_props(model, {"producer": "hidistill", **(card or {})})
        whole = Path(scratch) / "whole"
        whole.mkdir()
        size = sum(parameter.nbytes for parameter in generator.parameters())
        # Sidecar files are found by their names, so that the model has its own from here on.
        onnx.save_model(
            model, whole / out.name, save_as_external_data=size > LARGE, all_tensors_to_one_file=True,
            location=f"{out.name}.data",
        )  # fmt: skip
        session = runtime.InferenceSession(str(whole / out.name), providers=["CPUExecutionProvider"])
        difference = differ(session, generator, example)
        if not difference <= tolerance:
            raise ValueError(
                f"the ONNX file differs by {difference:.2g} of the largest sample, more than {tolerance:.2g}; "
                "it is not written; keep the weights file (--to safetensors), and please report the network"
            )
        for path in whole.iterdir():
            path.chmod(0o644)
            shutil.move(path, out.with_name(path.name))
    return Written(out, tuple(given.name for given in session.get_inputs()), output, difference)


def trace(
    generator: nn.Module,
    example: Mapping[str, Tensor],
    path: Path,
    *,
    output: str,
    axes: Mapping[str, Mapping[int, str]],
) -> None:
    """Write the file, from a pass over the example's rows in turn."""
    mode = Traceable()
    rows = torch.arange(ROWS) % len(next(iter(example.values())))
    with torch.no_grad(), quiet(), mode:
        torch.onnx.export(
            Counted(generator, mode).eval(),  # the exporter leaves it, and all within, in the mode that it came in
            tuple(value[rows] for value in example.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(example),
            output_names=[output],
            dynamic_axes=axes,
        )


@torch.no_grad()
def differ(session: Any, generator: nn.Module, example: Mapping[str, Tensor]) -> float:  # noqa: ANN401
    """Largest difference between a session of onnxruntime and torch, in units of the largest sample.

    Raises:
        ValueError: if onnxruntime cannot run the file with another count of rows.
    """
    known = {given.name for given in session.get_inputs()}  # an input that nothing depends on is left out
    expected = generator(*example.values())
    try:
        found = session.run(None, {name: value.numpy() for name, value in example.items() if name in known})[0]
    except Exception as error:  # its errors are of many classes of its own, all direct children of Exception
        raise ValueError(
            f"onnxruntime cannot run the file with {len(expected)} rows: {str(error).splitlines()[0]}; the network "
            "fixes the count of rows when it is traced: keep the weights file (--to safetensors), and please report it"
        ) from error
    return float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@contextmanager
def quiet() -> Iterator[None]:
    """Within, the exporter does not say what is known: see the module's first lines, and the check of the file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # sizes of pictures become constants
        warnings.filterwarnings(
            "ignore", message="You are using the legacy TorchScript-based", category=DeprecationWarning
        )
        warnings.filterwarnings("ignore", message="The feature will be removed", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding - Only steps=1", category=UserWarning)
        warnings.filterwarnings("ignore", module="torch.onnx", category=UserWarning)
        yield
