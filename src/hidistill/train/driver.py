"""Carries out an experiment in a run folder, and takes it up again where it stopped."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from hidistill import __version__, weights
from hidistill.path import on
from hidistill.train import checkpoint
from hidistill.train.checkpoint import CheckpointError, DamagedCheckpoint, Position
from hidistill.train.compiling import compile_passes
from hidistill.train.experiment import Experiment
from hidistill.train.folder import FINISHED, agree, locked, record_environment, renew, write_json
from hidistill.train.journal import Journal
from hidistill.train.loop import NonFinite, StepReport, steps
from hidistill.train.meter import Loads, Meter, remembered
from hidistill.train.pace import Clock
from hidistill.train.patience import Patience, patience
from hidistill.train.precision import set_products
from hidistill.train.rates import peak
from hidistill.train.stage import Stage
from hidistill.train.trackers import Tracker, opened, refuse_unknown

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


def execute(
    experiment: Experiment,
    folder: Path,
    *,
    recipe: str,
    arguments: Mapping[str, object],
    checkpoint_every: int = 100,
    keep: int = 2,
    device: str = "cpu",
    on_event: Callable[[Event], None] | None = None,
    journals: Sequence[str] = (),
    tf32: bool = False,
    compiled: bool = False,
) -> None:
    """Run an experiment to its end in a folder; the same call again goes on where the last one stopped.

    A run that was stopped anywhere, by Ctrl-C, by a kill or by a power cut, and taken up again has the weights of
    the run that was not, to the last bit, on the same machine with the same number of threads.

    Args:
        experiment: freshly built by its recipe.
        folder: the run's folder; made if need be.
        recipe: name of the recipe.
        arguments: its arguments, all of them.
        checkpoint_every: steps between two checkpoints; there is one more at each stage's end.
        keep: number of checkpoints that are kept.
        device: where the networks run, e.g. cuda; a run may be taken up on another one.
        on_event: told about everything that happens.
        journals: where scalars go beside metrics.jsonl: names of `trackers.TRACKERS`.
        tf32: whether a GPU may make products of float32 in TF32; see `precision.set_products`.
        compiled: whether the frozen networks and the fake score are compiled; see `compiling.compile_passes`.

    Raises:
        ValueError: if the folder is in use, or holds another run, or its checkpoints cannot be used; if there is no
            such device; or if a journal is unknown or its package missing.
        NonFinite: if a loss or gradient is not finite; names the last good checkpoint.
        OSError: if a checkpoint cannot be written; the one before it is intact.
    """
    if checkpoint_every < 1 or keep < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every} and keep={keep}: both must be at least 1")
    refuse_device(device)
    refuse_unknown(journals)
    refuse_paper(experiment)
    set_products(tf32=tf32)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        agree(folder, recipe=recipe, arguments=arguments, extendable=experiment.extendable)
        tell = on_event or (lambda _: None)
        run = Run(
            experiment, folder, recipe=recipe, checkpoint_every=checkpoint_every, keep=keep, device=device,
            on_event=tell,
        )  # fmt: skip
        if (folder / FINISHED).exists():
            run.position = Position(len(experiment.stages), 0, experiment.total_steps)
            run.tell("finish", message=f"{folder} holds this run, finished")
            return
        run.take_up()
        try:
            renew(folder, arguments)
            about = {"recipe": recipe, **arguments}
            if compiled:
                compile_passes(experiment)
            run.trackers += opened(journals, folder, step=run.position.global_step, about=about)
            while run.position.stage < len(experiment.stages):
                run.carry_on()
            if experiment.finish is not None:
                experiment.finish(folder)
            write_json(folder / FINISHED, {"global_step": run.position.global_step})
            run.tell("finish", message=str(folder))
        finally:
            for tracker in run.trackers:
                tracker.close()
            run.journal.close()


def refuse_paper(experiment: Experiment) -> None:
    """Refuse networks that have shapes and no numbers.

    Raises:
        ValueError: naming the role.
    """
    for role, module in {**experiment.modules, **experiment.frozen}.items():
        if any(parameter.is_meta for parameter in module.parameters()):
            raise ValueError(
                f"the {role} has shapes and no numbers: it is there to be planned (`hidistill doctor RECIPE`), not "
                "to be trained; give a recipe that reads or makes a teacher"
            )


def refuse_device(device: str) -> None:
    """Refuse a device that this machine has not.

    Raises:
        ValueError: naming what is wrong with it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without the device
        first = str(error).splitlines()[0]
        raise ValueError(
            f"device={device!r}: {first}; `hidistill doctor` says what this machine has: use cpu, or cuda with a build "
            "of torch for it"
        ) from error


class Run:
    """A run under way: where it stands, and what it does at each point of its way."""

    journal: Journal

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        *,
        recipe: str,
        checkpoint_every: int,
        keep: int,
        device: str,
        on_event: Callable[[Event], None],
    ) -> None:
        self.experiment, self.folder, self.recipe = experiment, folder, recipe
        self.checkpoint_every, self.keep, self.device, self.on_event = checkpoint_every, keep, device, on_event
        self.position, self.saved = Position(), None
        self.whole = False  # whether memory holds the state at `position`, rather than one within a step
        self.clock = Clock(experiment.stages, experiment.probe_every if experiment.probe else 0)
        self.trackers: list[Tracker] = []
        self.loads: Loads = {}

    def take_up(self) -> None:
        """Load the newest checkpoint that can be used, if there is any, and open the journal at its step."""
        for module in self.experiment.modules.values():
            module.requires_grad_(False)
        self.experiment.to(self.device)
        self.loads, uncounted = remembered(self.experiment, self.folder / "work.json")
        notes = [*self.experiment.notes, record_environment(self.folder, self.device), uncounted]
        root = self.folder / "checkpoints"
        checkpoint.recover(root)
        candidates, passed_over = checkpoint.newest_first(root), []
        for candidate in candidates:
            try:
                self.position = checkpoint.load(candidate, self.experiment, recipe=self.recipe)
            except DamagedCheckpoint as error:
                passed_over.append(str(error))
            else:
                self.saved = candidate
                break
        if candidates and self.saved is None:
            raise CheckpointError(
                f"no checkpoint in {root} can be used: {'; '.join(passed_over)}. Remove {root} to begin this run again "
                "at its first step, or use another --out"
            )
        notes += [f"passed over: {error}" for error in passed_over]
        self.journal = Journal(self.folder / "metrics.jsonl", upto=self.position.global_step)
        message = ". ".join(note for note in notes if note)
        if self.saved is None:
            self.tell("start", message=message)
            return
        self.note("event", {"event": "resume", "checkpoint": self.saved.name, "message": message})
        self.tell("resume", message=message)

    def carry_on(self) -> None:
        """Run the stage at the position to its end.

        Ctrl-C waits for the end of a step, then leaves a checkpoint of it.
        """
        index = self.position.stage
        stage, offset = self.experiment.stages[index], self.experiment.offset(index)
        meter = Meter(
            self.loads.get(stage.name, {}), peak=peak(self.experiment.precision, self.device), device=self.device
        )
        reports = steps(
            stage,
            meter.timed(lambda step: on(self.experiment.batch_at(offset + step), self.device)),
            seed=self.experiment.seed,
            start=self.position.step,
            precision=self.experiment.precision,
        )
        try:
            with patience() as noted:
                self.advance(stage, reports, noted, meter)
                self.whole = False
                self.end(stage)
                if noted.asked:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if self.whole:
                self.save()
            raise
        except NonFinite as error:
            raise NonFinite(
                f"{error}; the last good checkpoint is {self.saved or 'none: there was none yet'}"
            ) from error

    def advance(self, stage: Stage, reports: Iterator[StepReport], noted: Patience, meter: Meter) -> None:
        """Take the steps that are left of a stage."""
        index, offset, began = self.position.stage, self.experiment.offset(self.position.stage), time.perf_counter()
        for report in reports:
            done = report.step + 1
            self.position, self.whole = Position(index, done, offset + done), True
            seconds = time.perf_counter() - began
            self.clock.paces[index].add(seconds)
            self.note("step", report.metrics, seconds, pace=meter.read(done, seconds))
            self.tell("step", report.metrics)
            if done < stage.steps:
                if self.experiment.probe_every and done % self.experiment.probe_every == 0:
                    self.probe()
                if noted.asked:
                    raise KeyboardInterrupt
                if done % self.checkpoint_every == 0:
                    self.save()
            self.whole, began = False, time.perf_counter()

    def end(self, stage: Stage) -> None:
        """Averages become weights, the product is written, and a checkpoint stands at the border."""
        for average in stage.averages.values():
            average.install()
        product, message = self.experiment.products.get(stage.name), ""
        if product is not None:
            card = {"recipe": self.recipe, "stage": stage.name, "steps": str(stage.steps)}
            card |= {"seed": str(self.experiment.seed), "version": __version__} | dict(product.card)
            path = self.folder / "models" / product.file
            module = self.experiment.modules[product.role]
            about = {"family": product.family, "config": product.config, "classes": product.classes}
            weights.save(path, module, **about, card=card)
            message = str(path)
        if self.experiment.probe_every:
            self.probe()
        self.note("event", {"event": "stage"})
        self.tell("stage", message=message)
        self.position = Position(self.position.stage + 1, 0, self.position.global_step)
        if stage.steps:  # without a step there is nothing that the checkpoint before does not hold
            self.save()

    def probe(self) -> None:
        """Evaluate briefly."""
        if self.experiment.probe is None:
            return
        began = time.perf_counter()
        scalars = self.experiment.probe(self.stage_name)
        seconds = time.perf_counter() - began
        self.clock.probes.append(seconds)
        self.note("probe", {name: float(value) for name, value in scalars.items()}, seconds)
        self.tell("probe", {name: float(value) for name, value in scalars.items()})

    def save(self) -> None:
        """Leave a checkpoint."""
        self.journal.synchronize()
        root = self.folder / "checkpoints"
        self.saved = checkpoint.save(root, self.experiment, self.position, recipe=self.recipe, keep=self.keep)
        self.tell("checkpoint", message=str(self.saved))

    @property
    def stage_name(self) -> str:
        """Name of the stage at the position; behind the last stage its name."""
        return self.experiment.stages[min(self.position.stage, len(self.experiment.stages) - 1)].name

    def note(
        self,
        kind: str,
        scalars: Mapping[str, object],
        seconds: float = 0.0,
        pace: Mapping[str, float] | None = None,
    ) -> None:
        """Write a line into the journal, and its numbers into the others."""
        at = self.position
        written = dict(scalars) | ({"pace": pace} if pace else {})
        self.journal.write(
            kind, stage=self.stage_name, step=at.step, global_step=at.global_step, seconds=seconds, scalars=written
        )
        numbers = {f"{self.stage_name}/{k}": v for k, v in scalars.items() if isinstance(v, float)}
        numbers |= {f"pace/{name}": value for name, value in (pace or {}).items()}
        for tracker in self.trackers if numbers else ():
            tracker.log(numbers, step=at.global_step)

    def tell(self, kind: EventKind, metrics: Mapping[str, float] | None = None, message: str = "") -> None:
        """Pass an event on."""
        stages, at = self.experiment.stages, self.position
        steps_here = stages[at.stage].steps if at.stage < len(stages) else stages[-1].steps
        step = at.step if at.stage < len(stages) else stages[-1].steps
        self.on_event(
            Event(
                kind=kind,
                stage=self.stage_name,
                step=step,
                steps=steps_here,
                global_step=at.global_step,
                total_steps=self.experiment.total_steps,
                metrics=dict(metrics or {}),
                seconds_left=self.clock.seconds_left(at.stage, at.step),
                message=message,
            )
        )
