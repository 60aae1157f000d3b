"""An experiment: what a recipe returns and the driver carries out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hidistill.seeds import refuse_seed
from hidistill.train.loop import Precision, autocast
from hidistill.train.spikes import Spikes
from hidistill.train.stage import Stage
from hidistill.types import Batch


@dataclass(frozen=True)
class Product:
    """The weights that a stage leaves in `models/`.

    Args:
        role: which of the experiment's modules is written.
        file: name of the file, e.g. "student.safetensors".
        family: see `hidistill.weights.save`.
        config: see `hidistill.weights.save`.
        card: lines for the model card beside those that the driver knows (recipe, stage, steps, seed, version).
        classes: names of the classes by label, so that samples can be asked for by name; empty if there are none.
    """

    role: str
    file: str
    family: str
    config: Mapping[str, Any]
    card: Mapping[str, str] = field(default_factory=dict)
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Experiment:
    """Stages in their order, what moves in them, and what is measured and written on the way.

    A run of an experiment is a function of its arguments and its seed: everything that changes while it runs must be
    in `modules`, in an optimizer or in an average, for that is what a checkpoint holds.

    Args:
        stages: run one after the other; their names differ.
        modules: everything that moves, by role (student, fake, discriminator, ...).
        batch_at: the batch of a step, counted over all stages.
        seed: from which each step's randomness is derived.
        precision: 'float32' or 'bfloat16' (autocast).
        products: by the name of the stage that leaves them.
        probe: a short evaluation along the way: name of the stage -> numbers.
        probe_every: steps between two probes, and one more at each stage's end; 0 is never.
        finish: runs once after the last stage, with the run's folder.
        extendable: arguments of the recipe that may differ when a run is taken up again, e.g. ("steps",); the length of
            a stage only while it runs, for its averages and its learning rate end with it.
        notes: what the recipe chose by itself, and why; shown at the start.
        frozen: networks that take part and never move, by role (teacher, codec); they go to the run's device, and no
            checkpoint holds them.
    """

    stages: Sequence[Stage]
    modules: Mapping[str, nn.Module]
    batch_at: Callable[[int], Batch]
    seed: int
    precision: Precision = "float32"
    products: Mapping[str, Product] = field(default_factory=dict)
    probe: Callable[[str], Mapping[str, float]] | None = None
    probe_every: int = 0
    finish: Callable[[Path], None] | None = None
    extendable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what could not be run, or not be taken up again."""
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"stages {names}: an experiment needs at least one, and no name twice; rename one")
        if self.probe_every < 0:
            raise ValueError(f"probe_every={self.probe_every}: steps between two probes; use 0 for none")
        refuse_seed(self.seed)
        autocast(self.precision, "cpu")
        for name, product in self.products.items():
            if name not in names or product.role not in self.modules:
                raise ValueError(
                    f"the product of stage {name!r} is role {product.role!r}; stages are {names}, roles are "
                    f"{list(self.modules)}: name one of each"
                )
        self._refuse_unsaved()

    def _refuse_unsaved(self) -> None:
        """Refuse parameters that move without being in `modules`: no checkpoint would hold them."""
        saved = {id(parameter) for module in self.modules.values() for parameter in module.parameters()}
        for stage in self.stages:
            owners = {f"update {name!r}": update.parameters() for name, update in stage.updates.items()}
            owners |= {
                f"average {name!r}": list(average.source.parameters()) for name, average in stage.averages.items()
            }
            for owner, parameters in owners.items():
                lost = [tuple(parameter.shape) for parameter in parameters if id(parameter) not in saved]
                if lost:
                    raise ValueError(
                        f"stage {stage.name!r}, {owner}: {len(lost)} parameters (the first of shape {lost[0]}) are in "
                        f"none of the modules {list(self.modules)}; add the module that holds them"
                    )

    def to(self, device: str) -> None:
        """Bring every network of the experiment, and every average, to a device."""
        averages = [average.module for stage in self.stages for average in stage.averages.values()]
        swap = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay those that the optimizers hold
        try:
            for module in (*self.modules.values(), *self.frozen.values(), *averages):
                module.to(device)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swap)

    def skipping(self, factor: float) -> "Experiment":
        """The experiment with updates that skip steps whose gradient is `factor` times the usual one; see `Spikes`."""
        stages = [
            replace(
                stage,
                updates={
                    name: replace(each, spikes=each.spikes or Spikes(factor)) for name, each in stage.updates.items()
                },
            )
            for stage in self.stages
        ]
        return replace(self, stages=stages)

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def offset(self, stage: int) -> int:
        """Steps before the stage of this index."""
        return sum(before.steps for before in self.stages[:stage])
