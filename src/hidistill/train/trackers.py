"""Where a run's scalars may go beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio; on this machine alone.

`metrics.jsonl` is written always and is what everything here reads. The others are optional packages, imported when a
run asks for them; none opens a port, needs a network or an account.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

PROJECT = "hidistill"


@runtime_checkable
class Tracker(Protocol):
    """Takes a run's scalars."""

    def log(self, scalars: Mapping[str, float], *, step: int) -> None:
        """Take the scalars of a step, counted over all stages."""
        ...

    def close(self) -> None:
        """Write down what is left."""
        ...


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder; `tensorboard --logdir RUN` shows them.

    Args:
        folder: the run's folder.
        step: steps that are done; what was logged of later ones is hidden, for the run writes it again.
        about: the run's recipe and arguments.
    """

    def __init__(self, folder: Path, *, step: int, about: Mapping[str, Any]) -> None:
        package("tensorboard", "tensorboard")
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            lines = "\n".join(f"    {name}: {value}" for name, value in about.items())
            self._writer.add_text("run", lines, 0)

    def log(self, scalars: Mapping[str, float], *, step: int) -> None:
        """See `Tracker.log`."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()


class Wandb:
    """Weights & Biases, offline: files in `wandb/` of the run's folder, which `wandb sync` sends where a person wants.

    Only a person who sets WANDB_MODE=online has them sent while the run goes on; and reports of wandb's own errors,
    which it would send in any mode, only where WANDB_ERROR_REPORTING=true says so.

    Args:
        folder: the run's folder.
        step: steps that are done.
        about: the run's recipe and arguments.
    """

    def __init__(self, folder: Path, *, step: int, about: Mapping[str, Any]) -> None:
        wandb = package("wandb", "wandb")
        del step  # a run that is taken up is another run of the same group: offline files cannot be rewound
        # Read when the program that writes the files is started, which the first run of a process does.
        with variable("WANDB_ERROR_REPORTING", os.environ.get("WANDB_ERROR_REPORTING", "false")):
            self._run = wandb.init(
                project=PROJECT,
                group=folder.resolve().name,
                dir=str(folder),
                mode=os.environ.get("WANDB_MODE", "offline"),
                config=dict(about),
                settings=wandb.Settings(console="off", silent=True),
            )

    def log(self, scalars: Mapping[str, float], *, step: int) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()


class Trackio:
    """trackio on this machine: a database in `trackio/` of the run's folder, or in TRACKIO_DIR where a person sets it.

    `TRACKIO_DIR=RUN/trackio trackio show` shows it, on a port that this command opens and the run does not.

    Args:
        folder: the run's folder.
        step: steps that are done.
        about: the run's recipe and arguments.

    Raises:
        ValueError: if this process has logged another folder's run; trackio keeps one folder for each process.
    """

    def __init__(self, folder: Path, *, step: int, about: Mapping[str, Any]) -> None:
        place = Path(os.environ.get("TRACKIO_DIR") or folder / "trackio").resolve()
        with variable("TRACKIO_DIR", str(place)):  # read when it is imported, and never again
            self._trackio = package("trackio", "trackio")
        there = import_module("trackio.utils").TRACKIO_DIR.resolve()
        if there != place:
            raise ValueError(
                f"trackio already keeps its files in {there} in this process, and cannot write to {place}; start the "
                "run in a process of its own, or leave --journal trackio out"
            )
        name = folder.resolve().name
        with redirect_stdout(StringIO()):  # it advertises itself
            self._run = self._trackio.init(
                project=PROJECT,
                group=name,
                name=f"{name} from step {step}" if step else name,
                config={key: str(value) for key, value in about.items()},
                embed=False,
            )

    def log(self, scalars: Mapping[str, float], *, step: int) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        with redirect_stdout(StringIO()):
            self._trackio.finish()


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Within, a variable of the environment has this value."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


TRACKERS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def opened(names: Sequence[str], folder: Path, *, step: int, about: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of these names, for a run that has done so many steps.

    Raises:
        ValueError: if a name is unknown, or its package is missing.
    """
    refuse_unknown(names)
    return [TRACKERS[name](folder, step=step, about=about) for name in dict.fromkeys(names)]


def refuse_unknown(names: Sequence[str]) -> None:
    """Refuse a name that no tracker has.

    Raises:
        ValueError: naming those that there are.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(
                f"journal {name!r} is unknown; there are {', '.join(TRACKERS)}; metrics.jsonl is written always"
            )


def package(name: str, extra: str) -> Any:  # noqa: ANN401 -- a package without types
    """An optional package.

    Raises:
        ValueError: if it is not installed; names the extra.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(
            f"the journal {extra} needs the package {name}: pip install 'hidistill[{extra}]', or leave --journal "
            f"{extra} out; metrics.jsonl is written always"
        ) from error
