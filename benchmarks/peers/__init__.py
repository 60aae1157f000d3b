"""Adapters to other implementations of the same steps. They import an installed peer; none of its code lies here."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import Tensor

Losses = dict[str, Tensor]
"""Losses by name; `total` is what is descended."""


class MissingPeerError(ImportError):
    """A peer, or something that it needs, is not installed."""


@dataclass(frozen=True)
class Pair:
    """One step by a peer and by us, at the same weights, data, times and noise.

    Args:
        name: of the step.
        ours: our losses.
        theirs: the peer's, under the same names.
        parameters: what both go back to.
        gradients: whether both should give the same gradients: ours scale that of the adversarial term, theirs do not.
        then: the update behind it, where a step has two.
    """

    name: str
    ours: Callable[[], Losses]
    theirs: Callable[[], Losses]
    parameters: Sequence[Tensor]
    gradients: bool = True
    then: "Pair | None" = None

    @property
    def updates(self) -> Sequence["Pair"]:
        """This one and those behind it."""
        return (self,) if self.then is None else (self, *self.then.updates)


def load(peer: str, module: str, folder: Path | None, needs: str) -> ModuleType:
    """Import a peer's module, from a folder if one is given.

    Args:
        peer: its name.
        module: to import.
        folder: put before the import path: a checkout, or what `pip install --target` filled.
        needs: how it is installed.

    Raises:
        MissingPeerError: if it cannot be imported.
    """
    if folder is not None:
        if not folder.is_dir():
            raise MissingPeerError(f"{peer}: there is no folder {folder}; give its checkout, or leave the option out")
        sys.path.insert(0, str(folder))
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPeerError(f"{peer} is left out: importing {module} says '{error}'; {needs}") from error
