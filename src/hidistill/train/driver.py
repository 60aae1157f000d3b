"""Carries out an experiment in a run folder, and takes it up again where it stopped."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from hidistill import __version__, weights
from hidistill.train import checkpoint
from hidistill.train.checkpoint import Best, CheckpointError, DamagedCheckpoint
from hidistill.train.compiling import compile_passes
from hidistill.train.distributed.feed import Feed, own_rows
from hidistill.train.distributed.ranks import LostRank, is_loss, likeness, refuse_unshared
from hidistill.train.distributed.watch import Watch
from hidistill.train.distributed.work import Sharding, Work
from hidistill.train.events import Event, EventKind
from hidistill.train.experiment import Experiment
from hidistill.train.folder import FINISHED, agree, locked, plainly, record_environment, renew, write_json
from hidistill.train.journal import Journal
from hidistill.train.loop import WHOLE, NonFinite, StepReport, steps
from hidistill.train.meter import Loads, Meter, remembered
from hidistill.train.offload import offload_all
from hidistill.train.pace import Clock
from hidistill.train.patience import Patience, interruption, patience
from hidistill.train.precision import set_products
from hidistill.train.preparing import divide, refuse_device, refuse_paper, refuse_parts, scratch
from hidistill.train.rates import peak
from hidistill.train.saving import Keeping, Saver
from hidistill.train.snapshot import Position
from hidistill.train.stage import Stage
from hidistill.train.trackers import Tracker, opened, refuse_unknown
from hidistill.types import Batch


def execute(
    experiment: Experiment,
    folder: Path,
    *,
    recipe: str,
    arguments: Mapping[str, object],
    checkpoint_every: int = 100,
    keep: int = 2,
    device: str = "cpu",
    work: Work = WHOLE,
    sharding: Sharding | None = None,
    best: Best | None = None,
    background: bool = False,
    on_event: Callable[[Event], None] | None = None,
    journals: Sequence[str] = (),
    tf32: bool = False,
    compiled: bool = False,
    offload_optimizer: bool = False,
) -> None:
    """Run an experiment to its end in a folder; the same call again goes on where the last one stopped.

    A run that was stopped anywhere, by Ctrl-C or SIGTERM, by a kill or by a power cut, and taken up again has the
    weights of the run that was not, to the last bit, on the same machine with the same number of threads.

    Args:
        experiment: freshly built by its recipe.
        folder: the run's folder; made if need be.
        recipe: name of the recipe.
        arguments: its arguments, all of them.
        checkpoint_every: steps between two checkpoints; there is one more at each stage's end.
        keep: number of checkpoints that are kept.
        device: where the networks run, e.g. cuda; a run may be taken up on another one.
        work: the processes that run this, all of which call `execute`, and how they share out batches. The first one
            writes; a run may be taken up by another number of processes.
        sharding: how each process holds its part of every network; None if each holds them whole. A run may be taken
            up either way.
        best: a checkpoint that stays beside the newest ones.
        background: whether a thread writes checkpoints while training goes on.
        on_event: told about everything that happens.
        journals: where scalars go beside metrics.jsonl: names of `trackers.TRACKERS`.
        tf32: whether a GPU may make products of float32 in TF32; see `precision.set_products`.
        compiled: whether the networks' passes are compiled; see `compiling.compile_passes`.
        offload_optimizer: whether optimizers' moments lie in the CPU's memory but for the time of a step, where
            networks are held whole; on a CPU they lie there anyway.

    Raises:
        ValueError: if the folder is in use, or holds another run, or its checkpoints cannot be used; if there is no
            such device; or if a journal is unknown or its package missing.
        NonFinite: if a loss or gradient is not finite; names the last good checkpoint.
        OSError: if a checkpoint cannot be written; the one before it is intact.
    """
    keeping = Keeping(checkpoint_every, keep, best, background)
    refuse_device(device)
    refuse_unknown(journals)
    refuse_paper(experiment)
    set_products(tf32=tf32)
    ranks = work.ranks
    refuse_parts(sharding, ranks, offload_optimizer=offload_optimizer)
    ranks.agree(likeness({"recipe": recipe, "arguments": plainly(arguments), "passes": work.passes}))
    folder.mkdir(parents=True, exist_ok=True)
    refuse_unshared(folder, ranks)
    own_rows(experiment.batch_at, 0, ranks, passes=work.passes)  # refuses before anything is written what cannot be

    def enter() -> bool:
        lock.enter_context(locked(folder))
        agree(folder, recipe=recipe, arguments=arguments, extendable=experiment.extendable)
        return (folder / FINISHED).exists()

    with ExitStack() as lock:
        finished = ranks.from_first("enter", enter)
        tell = on_event or (lambda _: None)
        run = Run(
            experiment, folder, recipe=recipe, keeping=keeping, device=device, work=work, sharding=sharding,
            on_event=tell,
        )  # fmt: skip
        if finished:
            run.position = Position(len(experiment.stages), 0, experiment.total_steps)
            run.tell("finish", message=f"{folder} holds this run, finished")
            return
        run.take_up()
        if offload_optimizer:
            offload_all(experiment)
        try:
            ranks.from_first("renew", lambda: renew(folder, arguments))
            about = {"recipe": recipe, **arguments}
            if compiled:
                compile_passes(experiment)
            if ranks.first:
                run.trackers += opened(journals, folder, step=run.position.global_step, about=about)
            while run.position.stage < len(experiment.stages):
                run.carry_on()
            run.finish()
            run.tell("finish", message=str(folder))
        finally:
            run.watch.close()
            run.saver.close()
            run.feed.close()
            for tracker in run.trackers:
                tracker.close()
            if ranks.first:
                run.journal.close()


class Run:
    """A run under way: where it stands, and what it does at each point of its way."""

    journal: Journal
    saver: Saver

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        *,
        recipe: str,
        keeping: Keeping,
        device: str,
        work: Work,
        sharding: Sharding | None,
        on_event: Callable[[Event], None],
    ) -> None:
        self.experiment, self.folder, self.recipe, self.work = experiment, folder, recipe, work
        self.keeping, self.device, self.sharding, self.on_event = keeping, device, sharding, on_event
        self.position, self.saved = Position(), None
        self.score: Mapping[str, float] = {}  # of the state in memory
        self.whole = False  # whether memory holds the state at `position`, rather than one within a step
        self.feed = Feed(experiment.batch_at, work.ranks, passes=work.passes, device=device, workers=work.workers)
        self.watch = Watch(work.ranks, work.ranks.timeout_seconds)
        self.clock = Clock(experiment.stages, experiment.probe_every if experiment.probe else 0)
        self.trackers: list[Tracker] = []
        self.loads: Loads = {}

    def take_up(self) -> None:
        """Load the newest checkpoint that can be used, if there is any, and open the journal at its step."""
        for module in self.experiment.modules.values():
            module.requires_grad_(False)
        self.experiment.to(self.device)
        ranks, root = self.work.ranks, self.folder / "checkpoints"
        for module in self.experiment.modules.values():
            ranks.same_weights(module)
        uncounted = ranks.from_first("loads", self.remember)
        self.work = replace(self.work, averaging=divide(self.experiment, self.sharding, ranks))
        self.saver = Saver(root, self.experiment, self.recipe, self.keeping, ranks)
        there = ranks.from_first("environment", lambda: record_environment(self.folder, self.device, self.work))
        ranks.from_first("recover", lambda: checkpoint.recover(root))
        notes = [*self.experiment.notes, there, uncounted]
        candidates, passed_over = checkpoint.newest_first(root), []
        for candidate in candidates:
            try:
                self.position = checkpoint.load(candidate, self.experiment, recipe=self.recipe, ranks=ranks)
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
        ranks.agree({"checkpoint": self.saved and self.saved.name})
        if ranks.first:
            self.journal = Journal(self.folder / "metrics.jsonl", upto=self.position.global_step)
        message = ". ".join(note for note in notes if note)
        if self.saved is None:
            self.tell("start", message=message)
            return
        self.note("event", {"event": "resume", "checkpoint": self.saved.name, "message": message})
        self.tell("resume", message=message)

    def carry_on(self) -> None:
        """Run the stage at the position to its end.

        Ctrl-C or SIGTERM waits for the end of a step, then leaves a checkpoint of it.
        """
        index = self.position.stage
        stage, offset = self.experiment.stages[index], self.experiment.offset(index)
        meter = Meter(
            self.loads.get(stage.name, {}), peak=peak(self.experiment.precision, self.device), device=self.device,
            processes=self.work.ranks.count,
        )  # fmt: skip
        reports = steps(
            stage,
            meter.timed(lambda step: self.batch(stage, step, offset)),
            seed=self.experiment.seed,
            start=self.position.step,
            precision=self.experiment.precision,
            work=self.work,
        )
        try:
            with patience() as noted:
                self.advance(stage, reports, noted, meter)
                self.whole = False
                self.end(stage)
                if asked := self.work.ranks.most(noted.asked):
                    raise interruption(asked)
        except KeyboardInterrupt:
            if self.whole:
                self.save()
                self.saver.wait(self.told)
            raise
        except NonFinite as error:
            raise NonFinite(
                f"{error}; the last good checkpoint is {self.saved or 'none: there was none yet'}"
            ) from error
        except LostRank as error:
            raise LostRank(f"{error}. {self.watch.verdict()}") from error
        except RuntimeError as error:
            if self.work.ranks.count == 1 or not is_loss(error):
                raise
            raise LostRank(f"{self.work.ranks.lost(error)}. {self.watch.verdict()}") from error

    def batch(self, stage: Stage, step: int, offset: int) -> Batch:
        """The batch of a step, which begins."""
        self.watch.step(f"step {step} of stage {stage.name!r}")
        return self.feed(offset + step)

    def advance(self, stage: Stage, reports: Iterator[StepReport], noted: Patience, meter: Meter) -> None:
        """Take the steps that are left of a stage."""
        index, offset, began = self.position.stage, self.experiment.offset(self.position.stage), time.perf_counter()
        for report in reports:
            done = report.step + 1
            self.position, self.whole = Position(index, done, offset + done), True
            self.watch.pause()
            self.score = {}
            self.saver.look(self.told)
            seconds = time.perf_counter() - began
            self.clock.paces[index].add(seconds)
            self.note("step", report.metrics, seconds, pace=meter.read(done, seconds))
            self.tell("step", report.metrics)
            asked = self.work.ranks.most(noted.asked)
            if done < stage.steps:
                if self.experiment.probe_every and done % self.experiment.probe_every == 0:
                    self.probe()
                    if self.keeping.best is not None and done % self.keeping.every:
                        self.save()
                if asked:
                    raise interruption(asked)
                if done % self.keeping.every == 0:
                    self.save()
            self.whole, began = False, time.perf_counter()

    def end(self, stage: Stage) -> None:
        """Averages become weights, the product is written, and a checkpoint stands at the border."""
        for average in stage.averages.values():
            average.install()
        product, message = self.experiment.products.get(stage.name), ""
        if product is not None and (self.work.ranks.first or self.sharding is not None):
            card = {"recipe": self.recipe, "stage": stage.name, "steps": str(stage.steps)}
            card |= {"seed": str(self.experiment.seed), "version": __version__} | dict(product.card)
            path = self.folder / "models" / product.file
            module = self.experiment.modules[product.role]
            about = {"family": product.family, "config": product.config, "classes": product.classes}
            weights.save(path, module, **about, card=card, write=self.work.ranks.first)
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
        evaluate = self.experiment.probe
        if evaluate is None:
            return
        began = time.perf_counter()
        scalars = self.everyone(
            "probe", lambda: {name: float(value) for name, value in evaluate(self.stage_name).items()}
        )
        self.score = scalars
        seconds = time.perf_counter() - began
        self.clock.probes.append(seconds)
        self.note("probe", scalars, seconds)
        self.tell("probe", scalars)

    def save(self) -> None:
        """Leave a checkpoint."""
        if self.work.ranks.first:
            self.journal.synchronize()
        self.saver.save(self.position, self.score, told=self.told)

    def told(self, saved: Path) -> None:
        """Take note of a checkpoint that is written."""
        self.saved = saved
        self.tell("checkpoint", message=str(saved))

    def everyone(self, topic: str, act: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What one process finds out, or all of them where a network is there only when all ask for it."""
        return self.work.ranks.from_first(topic, act) if self.sharding is None else act()

    def finish(self) -> None:
        """Do what comes after the last step."""
        self.saver.wait(self.told)
        ranks, finish = self.work.ranks, self.experiment.finish
        if finish is not None and self.sharding is not None and not ranks.first:
            with scratch(self.folder) as elsewhere:  # every process evaluates, the first one's files stay
                finish(elsewhere)

        def close() -> None:
            if finish is not None:
                finish(self.folder)
            write_json(self.folder / FINISHED, {"global_step": self.position.global_step})

        ranks.from_first("finish", close)

    @property
    def stage_name(self) -> str:
        """Name of the stage at the position; behind the last stage its name."""
        return self.experiment.stages[min(self.position.stage, len(self.experiment.stages) - 1)].name

    def remember(self) -> str:
        """Count what steps take, or read it where it was counted; in words why it could not be."""
        self.loads, uncounted = remembered(self.experiment, self.folder / "work.json")
        return uncounted

    def note(
        self,
        kind: str,
        scalars: Mapping[str, object],
        seconds: float = 0.0,
        pace: Mapping[str, float] | None = None,
    ) -> None:
        """Write a line into the journal, and its numbers into the others."""
        if not self.work.ranks.first:
            return
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
