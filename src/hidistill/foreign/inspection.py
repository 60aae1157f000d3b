"""The self-test of a teacher: whether it answers as its convention says, and does what distillation needs of it.

A wrong time direction, sign, unit, prediction type, latent scale or null condition raises no error: it gives a student
of nothing. On clean samples each of them shows in the flow-matching loss, because another convention explains the
answers better (see `hypotheses`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from hidistill.conventions import Diffusion, Flow
from hidistill.foreign.conditioning import NOT_THEIRS, alike, conditioning
from hidistill.foreign.finding import Finding
from hidistill.foreign.hypotheses import SLIGHTLY, Draws, Hypothesis, best, configured, draws, hypotheses
from hidistill.foreign.network import Network
from hidistill.foreign.questions import FINER, Space, other_latents, questions, scaled
from hidistill.path import interpolate, per_row, rows_of
from hidistill.sampling import all_rows, euler
from hidistill.seeds import fold_in, normal
from hidistill.types import Cond, Points, Teacher

LEAST = 16
"""Samples that a test needs; 32 to 64 are good."""
PASSES = 30
"""More than the passes through the network that a test takes, of one batch each."""
STEPS = 20
"""Of the sampling where no pictures are given."""
AMPLIFIED = 10.0
"""Size of the network's part of the velocity at t = 1 from which on it is worth a word; the whole's is about 1."""
DIMENSIONS = ("prediction", "sign", "time direction", "time unit", "schedule", "latent scale", "latent shift")
"""What a convention can be wrong in."""


@torch.no_grad()
def inspect(teacher: Teacher, x_0: Points, cond: Cond, *, seed: int, spaces: Sequence[Space] = ()) -> Sequence[Finding]:
    """Test a teacher on clean samples, in fewer than `PASSES` passes of them through the network.

    Args:
        teacher: what is tested.
        x_0: clean samples where the teacher lives, 32 to 64.
        cond: their own conditions; some must differ for the null condition to be tested.
        seed: of times and noise.
        spaces: further latents that the network may have been trained on, beside powers of 2 of these.

    Raises:
        ValueError: if the samples are too few, not finite, or all alike.
    """
    refuse(x_0)
    drawn = draws(teacher, x_0, cond, seed=seed)
    own = configured(teacher, drawn)
    others = list(hypotheses(teacher, drawn, questions(teacher, drawn.t, spaces)))
    if not own.explains and best(own, others) is None:
        others += hypotheses(teacher, drawn, other_latents(teacher, drawn.t, scaled(FINER)))
    other = best(own, others)
    findings = [*weights_of(teacher), latents(x_0, spaces), *conventions(teacher, own, others, other)]
    if own.explains and other is None:
        findings += conditioning(teacher, drawn, seed=seed)
    else:
        findings.append(misled(teacher, drawn, other))
    return [*findings, *manners(teacher, drawn)]


@torch.no_grad()
def inspect_samples(teacher: Teacher, shape: Sequence[int], cond: Cond, *, seed: int) -> Sequence[Finding]:
    """Test a teacher on samples of its own: weaker, as it cannot see a wrong latent scale or what a fault is.

    Args:
        teacher: what is tested.
        shape: of one sample.
        cond: conditions of 32 to 64 samples.
        seed: of the noise.
    """
    count = len(cond if isinstance(cond, torch.Tensor) else next(iter(cond.values())))
    like = next((p for p in teacher.parameters()), torch.zeros(1)) if isinstance(teacher, nn.Module) else torch.zeros(1)
    noise = normal([fold_in(seed, "samples", row) for row in range(count)], shape).to(like.device)
    findings = [share_of_noise(teacher, noise, cond)]
    x_0 = euler(teacher, noise, cond=cond, steps=STEPS)
    findings.append(samples(x_0))
    if findings[-1].verdict == "fail" or x_0.std() == 0:
        return findings
    # What the network makes of garbage says nothing about the convention that would have given better.
    on_own = [
        replace(one, verdict="warn", cure=f"{one.cure}; give pictures to be sure" if one.cure else "give pictures")
        if one.check in ("velocity", *DIMENSIONS) and one.verdict == "fail"
        else one
        for one in inspect(teacher, x_0, cond, seed=seed)
        if one.check != "latents"
    ]
    return findings + on_own


def refuse(x_0: Points) -> None:
    """Refuse samples on which nothing can be told."""
    if len(x_0) < LEAST:
        raise ValueError(f"{len(x_0)} samples came; a self-test needs at least {LEAST}, and 64 are good: give more")
    if not x_0.isfinite().all():
        raise ValueError("samples came that are not finite; check the codec that made them")
    if float(x_0.std()) == 0:
        raise ValueError("samples came that are all one number; give pictures with content")


def weights_of(teacher: Teacher) -> Iterator[Finding]:
    """The type of the weights."""
    if not isinstance(teacher, nn.Module):
        return
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in teacher.parameters() if p.is_floating_point()})
    if is_exact(teacher):
        yield Finding("weights", ", ".join(kinds), "ok")
        return
    words = f"{', '.join(kinds)}: the derivative of such a network along t is wrong by some percent"
    cure = "convert the teacher to float32 where memory allows it; autocast keeps its training fast"
    yield Finding("weights", words, "warn", cure)


def is_exact(teacher: Teacher) -> bool:
    """Whether all weights are of float32 at least."""
    kinds = (torch.float32, torch.float64)
    return not isinstance(teacher, nn.Module) or all(
        p.dtype in kinds for p in teacher.parameters() if p.is_floating_point()
    )


def latents(x_0: Points, spaces: Sequence[Space]) -> Finding:
    """Mean and standard deviation of the samples."""
    mean, std = float(x_0.mean()), float(x_0.std())
    words = f"mean {mean:.2f}, standard deviation {std:.2f}"
    if 0.4 <= std <= 2.0 and abs(mean) <= 1.0:
        return Finding("latents", words, "ok")
    cure = "most networks are trained on latents of mean 0 and standard deviation 1: check the codec's scale and shift"
    stds = {space.words: float(space.of(x_0).std()) for space in spaces}
    near = min(stds, key=lambda name: abs(stds[name] - 1), default=None)
    if near is not None and abs(stds[near] - 1) < 0.5 * abs(std - 1):
        cure += f"; {near}, they would have {stds[near]:.2f}"
    return Finding("latents", words, "warn", cure)


def conventions(
    teacher: Teacher, own: Hypothesis, others: Sequence[Hypothesis], other: Hypothesis | None
) -> Iterator[Finding]:
    """Whether the configured convention stands, and in what it is wrong if not."""
    words = f"loss {own.loss:.3g} of the velocity's own size; of a linear guess's error {own.words} is left"
    if other is not None:
        changed = ", ".join(f"{what} {value}" for what, value in other.changes.items())
        yield Finding("velocity", f"{words}; with {changed}: loss {other.loss:.3g}, {other.words}", "fail")
        for what, value in other.changes.items():
            fits = f"{value} fits: {other.words} left, not {own.words}"
            yield Finding(what, fits, "fail", cure_of(what, teacher, other))
        return
    if not own.explains:
        cure = "it is untrained, was trained on other data, or with a convention that is not tried; look at its samples"
        yield Finding(
            "velocity",
            f"{words}, and no other convention explains more: the network explains little or nothing",
            "warn",
            cure,
        )
        return
    yield Finding("velocity", words, "ok")
    little = best(own, others, by=SLIGHTLY)
    for dimension in DIMENSIONS:
        alone = [one for one in others if set(one.changes) == {dimension}]
        if little is not None and dimension in little.changes:
            fits = f"{little.changes[dimension]} fits a little better: {little.words} left, not {own.words}"
            yield Finding(dimension, fits, "warn", cure_of(dimension, teacher, little))
        elif alone:
            near = min(alone, key=lambda one: one.rest)
            yield Finding(dimension, f"as configured; {near.changes[dimension]} would leave {near.words}", "ok")


def misled(teacher: Teacher, drawn: Draws, other: Hypothesis | None) -> Finding:
    """Whether a network that does not explain its samples under their conditions does so without."""
    check = "conditions"
    try:
        null = teacher.null(drawn.cond)
    except ValueError:
        null = drawn.cond
    if other is None and not alike(null, drawn.cond).all():
        without = configured(teacher, replace(drawn, cond=null))
        if without.explains:
            words = f"under them the network explains nothing; under the null condition {without.words} is left"
            return Finding(check, words, "fail", NOT_THEIRS)
    return Finding(check, "not looked at while the network explains nothing as it is configured", "warn")


def cure_of(dimension: str, teacher: Teacher, other: Hypothesis) -> str:
    """What to do about a wrong dimension, in the words of the folder."""
    changes = other.changes
    if dimension in ("latent scale", "latent shift"):
        return other.cure or (
            f"the network was trained on latents that are these {changes[dimension]}: check scaling_factor and "
            "shift_factor in vae/config.json, or the codec that made the latents"
        )
    convention = teacher.convention if isinstance(teacher, Network) else None
    turned = isinstance(convention, Flow) and convention.reversed
    if {"sign", "time direction"} <= changes.keys():
        setting = "reversed=False), without" if turned else "reversed=True), which is"
        return f"the network's time and velocity run the other way: Flow({setting} invert_sigmas in the scheduler"
    if dimension == "prediction" or (dimension == "sign" and isinstance(convention, Diffusion)):
        return wrong_prediction(convention, other)
    return {
        "sign": f"the network answers {'noise - x_0' if turned else 'x_0 - noise'}: turn it round where it is called",
        "time direction": "the network's time runs the other way: hand it 1 - t, by a convention of your own",
        "time unit": f"the network's times are those that it is given, {changes.get('time unit')}: check "
        "num_train_timesteps in scheduler/scheduler_config.json, or the unit of Flow",
        "schedule": f"the network was trained with another schedule, {changes.get('schedule')}: put that into "
        "scheduler/scheduler_config.json of a copy of the folder",
    }[dimension]


def wrong_prediction(convention: object, other: Hypothesis) -> str:
    """What to do about a wrong type of prediction."""
    said = {Diffusion: "prediction_type in scheduler/scheduler_config.json says", Flow: "the scheduler says"}
    start = said.get(type(convention), "the convention says")
    told = str(convention.prediction) if isinstance(convention, Diffusion) else "the velocity of a flow"
    if "prediction" in other.changes:
        answer = f"{'minus ' if 'sign' in other.changes else ''}{other.changes['prediction']}"
    elif told == "edm":
        answer = "v_prediction"
    else:
        answer = "minus that: turn it round where it is called" + (", or is edm's" if told == "v_prediction" else "")
    return f"{start} {told}; the network answers {answer}: correct it in a copy of the folder"


def end_of_schedule(teacher: Teacher, noise: Points, velocity: Points) -> Iterator[Finding]:
    """How much noise the network's last time lacks, and what the network's part of a step from t = 1 is."""
    if not isinstance(teacher, Network):
        return
    last, one = teacher.convention.last, torch.ones(len(noise), device=noise.device)
    part = float((velocity - per_row(teacher.convention.at(one).skip.to(noise), noise) * noise).square().mean().sqrt())
    end = "pure noise" if last >= 1 else f"t = {last:.4f}: {1 - last:.2%} of x_t is data there"
    words = f"{end}; at t = 1 the network's answer counts {part:.3g} times in the velocity"
    if part > AMPLIFIED:
        cure = (
            f"a student of one step must learn the answer at t = 1 {part:.0f} times as exactly as its samples have to "
            "be: train it longer, use several steps, or take a teacher that answers v_prediction or a flow"
        )
    else:
        cure = "one step starts at noise that the network never saw: compare its pictures with those of several steps"
    settled = last >= 1 and part <= AMPLIFIED
    yield Finding("end of the schedule", words, "ok" if settled else "warn", "" if settled else cure)


def manners(teacher: Teacher, drawn: Draws) -> Iterator[Finding]:
    """What every teacher must be: finite at both ends, a function, and of each row alone."""
    t = torch.arange(len(drawn.t)).remainder(2).to(drawn.t)
    ends = teacher.velocity(interpolate(drawn.x_0, drawn.noise, t), t=t, cond=drawn.cond)
    if ends.isfinite().all():
        yield from end_of_schedule(teacher, drawn.noise[t == 1], ends[t == 1])
        yield Finding("ends", "the velocity is finite at t = 0 and 1", "ok")
    else:
        cure = "check the ends of the schedule, and for weights of float16 whether they overflow"
        yield Finding("ends", "the velocity is not finite at t = 0 or 1", "fail", cure)
    x_t, tolerance = drawn.x_t, 1e-3 if is_exact(teacher) else 5e-2
    first = teacher.velocity(x_t, t=drawn.t, cond=drawn.cond)
    change = float((teacher.velocity(x_t, t=drawn.t, cond=drawn.cond) - first).norm() / first.norm())
    if not change <= tolerance:
        cure = "the network draws at random: call eval() on it, and drop conditions outside of it"
        yield Finding("repeated", f"the same question changes the answer by {change:.2%}", "fail", cure)
        return
    yield Finding("repeated", "the same answer twice", "ok")
    half = slice(0, len(drawn.t) // 2)
    alone = teacher.velocity(x_t[half], t=drawn.t[half], cond=rows_of(drawn.cond, half))
    change = float((alone - first[half]).norm() / first[half].norm())
    if change <= tolerance:
        yield Finding("rows", "each row's answer is its own", "ok")
    else:
        cure = "an answer must not depend on its batch: look for batch norm in training mode, or mixed-up dimensions"
        yield Finding("rows", f"without the other rows the answers change by {change:.2%}", "fail", cure)


def share_of_noise(teacher: Teacher, noise: Points, cond: Cond) -> Finding:
    """The coefficient of the velocity on the noise at t = 1, which is 1: there `velocity = noise - E[x_0]`."""
    velocity = teacher.velocity(noise, t=all_rows(1.0, noise), cond=cond).double()
    of = noise.double()
    share = float((velocity * of).sum() / of.square().sum())
    other = float((velocity - share * of).square().sum() / velocity.square().sum().clamp(min=1e-30))
    words = f"at t = 1 the velocity is {share:.2f} times the noise, and {other:.0%} of it something else"
    if abs(share - 1) <= 0.5:
        return Finding("noise", words, "ok")
    if abs(share + 1) <= 0.5 and other < 0.5:
        cure = "sign or time are turned round: at t = 1 the velocity is noise - x_0; give pictures to see which"
        return Finding("noise", words, "fail", cure)
    cure = "it should be once: the network is untrained, or is asked or read wrongly; give pictures to see which"
    return Finding("noise", words, "warn", cure)


def samples(x_0: Points) -> Finding:
    """Whether samples are finite and of the size of data."""
    if not x_0.isfinite().all():
        cure = "the weights are damaged, or the convention is wrong: give pictures to see which"
        return Finding("samples", f"not finite after {STEPS} steps", "fail", cure)
    mean, std = float(x_0.mean()), float(x_0.std())
    words = f"after {STEPS} steps mean {mean:.2f}, standard deviation {std:.2f}"
    if 0.3 <= std <= 2.5 and abs(mean) <= 1.5:
        return Finding("samples", words, "ok")
    cure = "data has about 0 and 1: the network is untrained, or is asked or read wrongly; give pictures to see which"
    return Finding("samples", words, "warn", cure)
