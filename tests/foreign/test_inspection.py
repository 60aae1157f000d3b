"""Planted faults: networks that answer exactly in one convention, and the bundled teacher, read in others."""

import math
from dataclasses import dataclass, replace

import exact_network as exact
import fashion_network
import pytest
import torch
from torch import nn

from hidistill.conventions import Diffusion, Flow, LogSigma
from hidistill.foreign.hypotheses import best, configured, draws, hypotheses
from hidistill.foreign.inspection import DIMENSIONS, PASSES, inspect, inspect_samples
from hidistill.foreign.network import Network
from hidistill.foreign.questions import Space, betas, questions
from hidistill.path import interpolate, mean_per_sample
from hidistill.teachers.dit import DiT

LINEAR, SCALED = betas(1e-4, 0.02, power=1), betas(0.00085, 0.012, power=2)
FLOW, SIT = Flow(1000.0), Flow(1.0, reversed=True)
EPSILON, V = Diffusion("epsilon", LINEAR), Diffusion("v_prediction", LINEAR)
EDM = Diffusion("edm", LogSigma(0.002, 80.0, 0.5), 0.5)
RIGHT = {"flow": FLOW, "sit": SIT, "epsilon": EPSILON, "v": V, "sample": Diffusion("sample", SCALED), "edm": EDM}
READ_WRONGLY = {
    "epsilon told for v": (V, EPSILON, {"prediction"}),
    "v told for epsilon": (EPSILON, V, {"prediction"}),
    "sample told for v": (V, Diffusion("sample", LINEAR), {"prediction"}),
    "edm told for v": (V, Diffusion("edm", LINEAR), {"sign"}),
    "noise to data": (SIT, Flow(1.0), {"sign", "time direction"}),
    "data to noise": (FLOW, Flow(1000.0, reversed=True), {"sign", "time direction"}),
    "times in thousands": (Flow(1.0), FLOW, {"time unit"}),
    "times in one": (FLOW, Flow(1.0), {"time unit"}),
    "sit told for diffusers": (SIT, FLOW, {"sign", "time direction", "time unit"}),
    "a flow told for v": (V, FLOW, {"schedule", "prediction"}),
    "epsilon told for a flow": (FLOW, EPSILON, {"schedule", "prediction"}),
    "other betas": (EPSILON, Diffusion("epsilon", SCALED), {"schedule"}),
}


QUICK = {"epsilon told for v", "noise to data", "times in thousands", "epsilon told for a flow"}
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)))
SHAPE = (exact.DIMENSIONS,)


def some(names, quick):
    """Names as parameters, of which the quick ones run always."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def by_check(findings):
    return {one.check: one for one in findings}


def failed(findings):
    return {one.check for one in findings if one.verdict == "fail"}


def calling(change):
    """The family of exact networks with another `call`."""
    return replace(exact.FAMILY, call=change)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", some(RIGHT, {"sit", "epsilon"}))
def test_a_teacher_that_is_right_passes(name, seed):
    x_0, labels = exact.samples(32, seed=seed)
    findings = by_check(inspect(exact.network(RIGHT[name]), x_0, labels, seed=seed))
    assert not failed(findings.values())
    assert {check for check, one in findings.items() if one.verdict == "warn"} <= {"end of the schedule"}
    assert {"velocity", "prediction", "sign", "latent scale", "guidance", "conditions", "null condition"} <= set(
        findings
    )


@pytest.mark.parametrize("name", some(READ_WRONGLY, QUICK))
def test_a_wrong_convention_is_named(name):
    truth, told, wrong = READ_WRONGLY[name]
    x_0, labels = exact.samples(32)
    findings = by_check(inspect(exact.network(truth, told), x_0, labels, seed=0))
    assert failed(findings.values()) == {"velocity", *wrong}
    assert all(findings[check].cure for check in wrong)


def test_the_cure_says_what_the_configuration_says_and_what_is_answered():
    findings = by_check(inspect(exact.network(V, EPSILON), *exact.samples(32), seed=0))
    cure = "prediction_type in scheduler/scheduler_config.json says epsilon; the network answers v_prediction"
    assert findings["prediction"].cure.startswith(cure)


@pytest.mark.parametrize(("truth", "told", "setting"), [(SIT, Flow(1.0), "True"), (Flow(1.0), SIT, "False")])
def test_the_cure_of_a_path_that_runs_the_other_way_is_the_setting_to_make(truth, told, setting):
    findings = by_check(inspect(exact.network(truth, told), *exact.samples(32), seed=0))
    assert f"Flow(reversed={setting})" in findings["time direction"].cure


def test_a_sign_is_named():
    network = exact.network(FLOW, family=calling(lambda net, x, time, cond: -net(x, time, cond)))
    assert failed(inspect(network, *exact.samples(32), seed=0)) == {"velocity", "sign"}


@pytest.mark.parametrize(("truth", "factor"), [(FLOW, 5.5), (EPSILON, 0.18215)])
def test_a_latent_scale_is_named_with_its_factor(truth, factor):
    x_0, labels = exact.samples(32)
    findings = by_check(inspect(exact.network(truth), factor * x_0, labels, seed=0))
    assert failed(findings.values()) == {"velocity", "latent scale"}
    told = float(findings["latent scale"].found.split()[1])
    assert abs(math.log(told * factor)) <= math.log(1.5)


def test_the_codecs_own_numbers_come_with_their_cure():
    x_0, labels = exact.samples(32)
    spaces = [Space("not scaled", "leave scaling_factor out", (5.49,)), Space("not shifted", "leave it", offset=(0.7,))]
    scaled = by_check(inspect(exact.network(FLOW), x_0 / 5.49, labels, seed=0, spaces=spaces))
    assert scaled["latent scale"].cure == "leave scaling_factor out"
    assert "not scaled, they would have 1.0" in scaled["latents"].cure
    shifted = inspect(exact.network(FLOW), x_0 - 0.7, labels, seed=0, spaces=spaces)
    assert failed(shifted) == {"velocity", "latent shift"}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("label", some(range(exact.CLASSES), {3}))
def test_a_null_that_is_a_class_is_named(label, seed):
    family = replace(exact.FAMILY, null=lambda net: label)
    x_0, labels = exact.samples(48, seed=seed)
    others = labels != label
    findings = by_check(inspect(exact.network(FLOW, family=family), x_0[others], labels[others], seed=seed))
    assert failed(findings.values()) == {"null condition"}
    assert f"label {label} is a condition like any other" in findings["null condition"].cure


def test_a_null_that_samples_have_is_named():
    family = replace(exact.FAMILY, null=lambda net: 2)
    findings = by_check(inspect(exact.network(FLOW, family=family), *exact.samples(36), seed=0))
    assert failed(findings.values()) == {"null condition"}
    assert "6 of 36 samples have it" in findings["null condition"].found


def test_guidance_that_does_nothing_is_named():
    def deaf(net, x, time, cond):
        return net(x, time, torch.full_like(cond, exact.CLASSES))

    findings = by_check(inspect(exact.network(FLOW, family=calling(deaf)), *exact.samples(32), seed=0))
    assert failed(findings.values()) == {"guidance"}
    assert "does not look at its condition" in findings["guidance"].cure


class Unguided(Network):
    """Takes the condition itself for the null condition."""

    def null(self, cond):
        return cond


def test_a_null_that_is_the_condition_itself_is_named():
    teacher = Unguided(exact.ExactNetwork(FLOW), exact.FAMILY, FLOW)
    findings = by_check(inspect(teacher, *exact.samples(32), seed=0))
    assert failed(findings.values()) == {"guidance"}
    assert "the null condition is the condition itself" in findings["guidance"].cure


@pytest.mark.parametrize("shuffle", [lambda labels: labels.roll(1), lambda labels: (labels + 1) % exact.CLASSES])
def test_conditions_of_other_samples_are_named(shuffle):
    x_0, labels = exact.samples(32)
    assert "conditions" in failed(inspect(exact.network(FLOW), x_0, shuffle(labels), seed=0))


def test_unconditional_networks_have_no_guidance():
    family = replace(exact.FAMILY, classes=lambda net: 0, call=lambda net, x, time, cond: net(x, time, cond + 6))
    x_0, labels = exact.samples(32)
    findings = by_check(inspect(exact.network(FLOW, family=family), x_0, torch.zeros_like(labels), seed=0))
    assert not failed(findings.values())
    assert "there is no guidance" in findings["conditions"].found


WORDS = replace(
    exact.FAMILY,
    texts=("word",),
    classes=lambda net: 0,
    call=lambda net, x, time, cond: net(x, time, cond["word"][:, 0].long()),
)


def of_words(null):
    word = None if null is None else {"word": torch.tensor([[float(null)]])}
    return Network(exact.ExactNetwork(FLOW), WORDS, FLOW, null=word).eval()


def test_prompts_are_conditions_too():
    x_0, labels = exact.samples(32)
    right = by_check(inspect(of_words(exact.CLASSES), x_0, {"word": labels[:, None].float()}, seed=0))
    assert {right[check].verdict for check in ("guidance", "conditions", "null condition")} == {"ok"}
    shuffled = inspect(of_words(exact.CLASSES), x_0, {"word": labels.roll(1)[:, None].float()}, seed=0)
    assert failed(shuffled) == {"conditions"}


def test_an_empty_prompt_that_is_none_is_not_ok():
    x_0, labels = exact.samples(32)
    absent = by_check(inspect(of_words(None), x_0, {"word": labels[:, None].float()}, seed=0))
    assert absent["null condition"].verdict == "warn"
    wrong = by_check(inspect(of_words(3), x_0[labels != 3], {"word": labels[labels != 3, None].float()}, seed=0))
    assert wrong["null condition"].verdict != "ok"


def test_one_prompt_for_all_samples_tells_nothing_of_conditions():
    x_0 = exact.mixture().sample(torch.ones(32, dtype=torch.long)).float()
    findings = by_check(inspect(of_words(exact.CLASSES), x_0, {"word": torch.ones(32, 1)}, seed=0))
    assert findings["conditions"].verdict == "warn"
    assert "nothing can be told" in findings["conditions"].found


class Forgetful(exact.ExactNetwork):
    """Drops a tenth of its answer, as a network in training mode does."""

    def forward(self, x, time, labels):
        return nn.functional.dropout(super().forward(x, time, labels), 0.1)


def test_an_answer_that_changes_is_named():
    findings = inspect(Network(Forgetful(FLOW), exact.FAMILY, FLOW), *exact.samples(32), seed=0)
    assert "repeated" in failed(findings)


def test_rows_that_depend_on_each_other_are_named():
    def centered(net, x, time, cond):
        answer = net(x, time, cond)
        return answer - 0.1 * answer.mean(0)

    findings = inspect(exact.network(FLOW, family=calling(centered)), *exact.samples(32), seed=0)
    assert failed(findings) == {"rows"}


def test_an_end_that_is_not_finite_is_named():
    def burst(net, x, time, cond):
        return torch.where(time[:, None] >= 999, torch.inf, net(x, time, cond))

    findings = inspect(exact.network(FLOW, family=calling(burst)), *exact.samples(32), seed=0)
    assert failed(findings) == {"ends"}


def test_half_precision_is_worth_a_word():
    network = Network(exact.ExactNetwork(FLOW).bfloat16(), exact.FAMILY, FLOW)
    findings = by_check(inspect(network, *exact.samples(32), seed=0))
    assert findings["weights"].verdict == "warn"
    assert not failed(findings.values())


@pytest.mark.parametrize(("truth", "verdict", "part"), [(FLOW, "ok", 1.0), (V, "warn", 1.0), (EPSILON, "warn", 157.0)])
def test_the_end_of_the_schedule_says_what_a_step_from_noise_meets(truth, verdict, part):
    findings = by_check(inspect(exact.network(truth), *exact.samples(32), seed=0))
    end = findings["end of the schedule"]
    assert end.verdict == verdict
    told = float(end.found.split("counts ")[1].split()[0])
    assert told == pytest.approx(part, rel=0.5)
    assert ("0.63%" in end.found) == (truth is not FLOW)


def untrained(kind):
    torch.manual_seed(3)
    if kind == "zero":
        return DiT(image_size=8, channels=1, classes=4, size="mini").eval().requires_grad_(False)
    net = DiT(image_size=8, channels=1, classes=4, size="mini").requires_grad_(False)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return net.eval()


@pytest.mark.parametrize("kind", ["zero", "random"])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_untrained_network_is_a_warning(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    x_0, labels = torch.randn(32, 1, 8, 8, generator=generator).cumsum(3) / 2, torch.arange(32) % 4
    for findings in (
        inspect(untrained(kind), x_0, labels, seed=seed),
        inspect_samples(untrained(kind), (1, 8, 8), labels, seed=seed),
    ):
        assert not failed(findings)
        assert by_check(findings)["velocity"].verdict == "warn"


def test_an_untrained_network_with_a_convention_is_a_warning():
    layer = nn.Linear(exact.DIMENSIONS, exact.DIMENSIONS)

    def linear(net, x, time, cond):
        return layer(x)

    for truth in (FLOW, EPSILON):
        findings = inspect(exact.network(truth, family=calling(linear)), *exact.samples(32), seed=0)
        assert not failed(findings)
        assert by_check(findings)["velocity"].verdict == "warn"


def test_own_samples_tell_a_right_teacher():
    for truth in (SIT, EPSILON):
        findings = inspect_samples(exact.network(truth), SHAPE, exact.samples(32)[1], seed=0)
        assert {one.check for one in findings if one.verdict != "ok"} <= {"end of the schedule"}


def test_own_samples_tell_a_wrong_convention_without_its_name():
    labels = exact.samples(32)[1]
    reversed_ = Flow(1000.0, reversed=True)
    turned = inspect_samples(exact.network(FLOW, reversed_), SHAPE, labels, seed=0)
    assert by_check(turned)["velocity"].verdict == "warn"
    negative = calling(lambda net, x, time, cond: -net(x, time, cond))
    findings = inspect_samples(exact.network(FLOW, family=negative), SHAPE, labels, seed=0)
    assert by_check(findings)["noise"].verdict == "fail"


def test_the_test_is_cheap_and_the_same_for_the_same_seed():
    passes = []

    def counted(net, x, time, cond):
        passes.append(len(x))
        return net(x, time, cond)

    spaces = [Space(f"number {i}", factor=(1.1 + i,)) for i in range(4)]
    network = exact.network(EPSILON, family=calling(counted))
    first = inspect(network, *exact.samples(32), seed=5, spaces=spaces)
    assert sum(passes) / 32 < PASSES
    assert inspect(network, *exact.samples(32), seed=5, spaces=spaces) == first


def test_the_loss_is_that_of_flow_matching():
    x_0, labels = exact.samples(32)
    network = exact.network(FLOW)
    drawn = draws(network, x_0, labels, seed=1)
    target = drawn.noise - x_0
    answer = network.velocity(interpolate(x_0, drawn.noise, drawn.t), t=drawn.t, cond=labels)
    loss = mean_per_sample((answer - target).square()).mean() / mean_per_sample(target.square()).mean()
    own = configured(network, drawn)
    assert own.loss == pytest.approx(float(loss), rel=1e-4)
    assert best(own, hypotheses(network, drawn, questions(network, drawn.t))) is None


@pytest.mark.parametrize(
    ("x_0", "message"),
    [
        (torch.randn(8, 4), "at least 16"),
        (torch.ones(32, 4), "all one number"),
        (torch.full((32, 4), math.nan), "finite"),
    ],
)
def test_samples_that_tell_nothing_are_refused(x_0, message):
    with pytest.raises(ValueError, match=message):
        inspect(exact.network(FLOW), x_0, torch.zeros(len(x_0), dtype=torch.long), seed=0)


def test_the_bundled_teacher_behind_the_adapter_is_itself():
    x_0, labels = fashion_network.pictures(16)
    t = torch.linspace(0, 1, 16)
    x_t = interpolate(x_0, torch.randn_like(x_0), t)
    own = fashion_network.teacher().velocity(x_t, t=t, cond=labels)
    assert (fashion_network.network().velocity(x_t, t=t, cond=labels) - own).abs().max() < 1e-5


@dataclass(frozen=True)
class Warped:
    """The bundled teacher's times, changed."""

    change: object
    ends: tuple[float, float] = (-30.0, math.inf)

    def __call__(self, alpha, sigma):
        return self.change(fashion_network.TimesThousand(fashion_network.teacher().data_std)(alpha, sigma))


def at_times(change):
    return Diffusion("v_prediction", Warped(change), fashion_network.teacher().data_std)


def read_as(prediction):
    std = fashion_network.teacher().data_std
    return Diffusion(prediction, fashion_network.TimesThousand(std, (-30.0, 6.0)), std)


def trained(told=None, factor=1.0, without=None, **family):
    """A fault, by what the test is given: the network, a factor on its pictures, and a class that has none."""
    changed = replace(fashion_network.FAMILY, **family)
    return lambda: fashion_network.network(told() if told else None, changed), factor, without


FASHION = {
    "right": (trained(), set()),
    "sign": (trained(call=lambda net, x, time, cond: -net(x, time, cond)), {"sign"}),
    "reversed time": (trained(lambda: at_times(lambda time: 1000 - time)), {"time direction"}),
    "times over 1000": (trained(lambda: at_times(lambda time: time / 1000)), {"time unit"}),
    "times by 1000": (trained(lambda: at_times(lambda time: time * 1000)), {"time unit"}),
    "epsilon told": (trained(lambda: read_as("epsilon")), {"prediction"}),
    "sample told": (trained(lambda: read_as("sample")), {"prediction"}),
    "edm told": (trained(lambda: read_as("edm")), {"sign"}),
    "latents twice as large": (trained(factor=2.0), {"latent scale"}),
    "latents times 0.18215": (trained(factor=0.18215), {"latent scale"}),
    "null a class": (trained(without=3, null=lambda net: 3), {"null condition"}),
    "null another class": (trained(without=9, null=lambda net: 9), {"null condition"}),
    "null a label of the pictures": (trained(null=lambda net: 0), {"null condition"}),
    "guidance inert": (trained(call=lambda net, x, time, cond: net(x, time, 0 * cond + 10)), {"guidance"}),
}


def fashion_findings(name, *, count, seed):
    (build, factor, without), wrong = FASHION[name]
    x_0, labels = fashion_network.pictures(2 * count, first=150 * seed)
    kept = (labels != (-1 if without is None else without)).nonzero()[:count, 0]
    return by_check(inspect(build(), factor * x_0[kept], labels[kept], seed=seed)), wrong


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FASHION)
def test_each_fault_of_a_trained_network_is_named(name, seed):
    findings, wrong = fashion_findings(name, count=64, seed=seed)
    assert failed(findings.values()) - {"velocity"} == wrong
    assert ("velocity" in failed(findings.values())) == bool(wrong & set(DIMENSIONS))


@pytest.mark.parametrize("name", ["epsilon told"])
def test_a_fault_of_a_trained_network_is_named_on_few_pictures(name):
    findings, wrong = fashion_findings(name, count=16, seed=0)
    assert failed(findings.values()) - {"velocity"} == wrong
