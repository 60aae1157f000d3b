"""What a run tells while it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

EventKind = Literal["start", "resume", "step", "probe", "stage", "checkpoint", "finish"]


@dataclass(frozen=True)
class Event:
    """What happened, for whoever shows progress.

    Args:
        kind: start and resume come once, before the first step; stage when one has ended; finish at the very end.
        stage: name of the stage.
        step: steps of the stage that are done.
        steps: steps that it has.
        global_step: steps done over all stages.
        total_steps: steps of all stages.
        metrics: scalars of a step or a probe.
        seconds_left: estimate for the steps and probes to come, without the final evaluation; None if unknown.
        message: what a person should know: a damaged checkpoint was passed over, where a file was written.
    """

    kind: EventKind
    stage: str
    step: int
    steps: int
    global_step: int
    total_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds_left: float | None = None
    message: str = ""
