"""A stage says who moves, down which objective, how often."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from hidistill.train.ema import Average
from hidistill.train.spikes import Spikes
from hidistill.types import Objective


def constant(step: int) -> float:
    """The schedule that changes nothing."""
    del step
    return 1.0


@dataclass(frozen=True)
class WarmupDecay:
    """Factor on the learning rate: up linearly, flat, then down linearly to zero.

    Args:
        steps: length of the stage.
        warmup: steps of the way up.
        decay: steps of the way down, the last of the stage.
    """

    steps: int
    warmup: int = 0
    decay: int = 0

    def __post_init__(self) -> None:
        """Refuse a negative length, and ramps that do not fit."""
        if self.steps < 0:
            raise ValueError(f"steps={self.steps}: the length of a stage must not be negative; give 1 or more")
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > self.steps:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} steps do not fit into {self.steps} steps")

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        up = (step + 1) / self.warmup if step < self.warmup else 1.0
        down = (self.steps - step) / self.decay if step >= self.steps - self.decay else 1.0
        return min(up, down)


@dataclass(frozen=True)
class Update:
    """One optimizer's step down one objective. What the optimizer holds is all that moves.

    Args:
        objective: gives the loss per sample; its mean is what is descended.
        optimizer: holds the parameters that move; the learning rates it is built with are multiplied by `schedule`.
        every: the update runs on each `every`-th step, the `every`-th first.
        max_norm: limit of the gradient's norm, for each parameter group by itself.
        schedule: factor on the learning rates at a step of the stage.
        spikes: which steps are skipped for their gradient; None is none.
    """

    objective: Objective
    optimizer: Optimizer
    every: int = 1
    max_norm: float = 1.0
    schedule: Callable[[int], float] = constant
    spikes: Spikes | None = None

    def __post_init__(self) -> None:
        """Refuse a period or a norm that is not positive, and keep the learning rates that the schedule multiplies."""
        if self.every < 1:
            raise ValueError(f"every={self.every}: an update runs on every step (1) or each k-th (k)")
        if self.max_norm <= 0:
            raise ValueError(f"max_norm={self.max_norm}: must be positive; use float('inf') for no limit")
        for group in self.optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])

    def parameters(self) -> list[Tensor]:
        """Everything that moves."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True)
class Stage:
    """Who moves, down which objective, how often.

    Args:
        name: the stage's name in the journal and the checkpoints.
        updates: run in this order within each step.
        steps: length of the stage.
        averages: moving averages by role; each becomes its module's weights when the stage ends.
    """

    name: str
    updates: Mapping[str, Update]
    steps: int
    averages: Mapping[str, Average] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an empty stage and updates that share a parameter."""
        if self.steps < 0:
            raise ValueError(f"stage {self.name!r}: steps={self.steps} must not be negative")
        owner: dict[int, str] = {}
        for name, update in self.updates.items():
            for parameter in update.parameters():
                if id(parameter) in owner:
                    raise ValueError(
                        f"stage {self.name!r}: updates {owner[id(parameter)]!r} and {name!r} share a parameter of "
                        f"shape {tuple(parameter.shape)}; give it to one optimizer only"
                    )
                owner[id(parameter)] = name
