"""Low-rank students: what a slot adds, what it leaves alone, and that several of them share one network."""

import os
import signal
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import peft
import pytest
import small_transformers
import small_unets
import torch
from randomized import randomized
from safetensors.torch import load_file
from small_transformers import dit, masked, sana_net, sana_teacher
from torch import nn

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.foreign.clock import entries
from hidistill.foreign.lora import LowRank, adapter_layers, low_rank, merged, without_slots
from hidistill.foreign.network import FlowMap
from hidistill.guidance import Guided
from hidistill.recipes.stages import refine, sketch
from hidistill.train.checkpoint import newest_first
from hidistill.train.driver import execute
from hidistill.train.ema import Average
from hidistill.train.experiment import Experiment, Product
from hidistill.types import Batch, Student, Teacher

T = torch.tensor([0.0213, 0.2137, 0.5541, 0.7813, 1.0], dtype=torch.float64)
FAMILIES = small_transformers.FAMILIES | small_unets.FAMILIES
TEACHERS = {"dit": (dit, lambda: torch.tensor([0, 1, 0, 1, 1])), "sana": (sana_teacher, masked)}


@pytest.fixture(params=TEACHERS)
def case(request):
    """A teacher in float64, points, and where it is asked."""
    teacher, cond = (make() for make in TEACHERS[request.param])
    if isinstance(cond, dict):
        cond["text"] = cond["text"].double()
    return teacher.double(), torch.randn(5, 4, 4, 4, dtype=torch.float64), {"t": T, "cond": cond}


def moved(role):
    """The role with random adapters, which require a gradient as they did."""
    for name, weight in role.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.5 * weight[0].numel() ** -0.5)
    return role


def far(ours, theirs):
    """Relative difference."""
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


def test_a_slot_has_the_roles_of_a_network(case):
    teacher, x_t, point = case
    fake = low_rank(teacher, rank=2)
    assert isinstance(fake, Teacher)
    assert isinstance(FlowMap(fake), Student)
    assert (fake.classes, fake.taps, tuple(fake.feature_channels)) == (
        teacher.classes,
        teacher.taps,
        tuple(teacher.feature_channels),
    )
    moved(fake)
    alone = fake.merged()
    guided, expected = Guided(fake, 1.5), Guided(alone, 1.5)
    assert far(guided.velocity(x_t, **point), expected.velocity(x_t, **point)) < 1e-12
    probe, features = fake.probe(x_t, **point), fake.features(x_t, **point)
    assert far(probe.velocity, alone.velocity(x_t, **point)) < 1e-12
    for theirs, *ours in zip(alone.features(x_t, **point), probe.features, features, strict=True):
        assert all(far(layer, theirs) < 1e-12 for layer in ours)
    assert far(fake.velocity(x_t, **point), teacher.velocity(x_t, **point)) > 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_a_student_all_of_whose_adapters_learn(name):
    family = FAMILIES[name]
    teacher, x_t = family["teacher"](), torch.randn(5, *family["shape"])
    point = {"t": T.float(), "cond": family.get("cond", lambda: torch.tensor([0, 1, 0, 1, 1]))()}
    before, student = teacher.velocity(x_t, **point), FlowMap(low_rank(teacher, rank=2))
    assert torch.equal(student.mean_velocity(x_t, r=point["t"] / 2, **point), before)
    answer = moved(student).mean_velocity(x_t, r=point["t"] / 2, **point)
    answer.square().sum().backward()
    assert all(weight.grad is not None for weight in student.parameters())
    assert far(merged(student).mean_velocity(x_t, r=point["t"] / 2, **point), answer) < 1e-6
    assert torch.equal(teacher.velocity(x_t, **point), before)


def test_a_student_begins_as_its_teacher_and_the_teacher_is_what_it_was(case):
    teacher, x_t, point = case
    before = teacher.probe(x_t, **point)
    student = FlowMap(low_rank(teacher, rank=2, alpha=5.0))
    assert torch.equal(student.mean_velocity(x_t, r=point["t"] / 3, **point), before.velocity)
    moved(student)
    fake, other = moved(low_rank(teacher, rank=3)), moved(low_rank(teacher, rank=1, targets=["to_q"]))
    kept = student.mean_velocity(x_t, r=point["t"] / 3, **point), fake.velocity(x_t, **point)
    after = teacher.probe(x_t, **point)
    assert torch.equal(after.velocity, before.velocity)
    assert all(torch.equal(*layers) for layers in zip(after.features, before.features, strict=True))
    for answer in (*kept, other.velocity(x_t, **point)):
        assert far(answer, before.velocity) > 0.01
    assert torch.equal(teacher.velocity(x_t.requires_grad_(), **point), before.velocity)


def test_one_backward_through_three_roles_is_that_through_three_copies(case):
    """The chain rule from the gradient G of a whole weight: alpha / rank B' G for A, alpha / rank G A' for B."""
    teacher, x_t, point = case
    student, fake = moved(FlowMap(low_rank(teacher, rank=2, alpha=3.0))), moved(low_rank(teacher, rank=3))
    randomized(student.interval).requires_grad_(True)
    copies = without_slots(teacher), merged(student).requires_grad_(True), fake.merged().requires_grad_(True)

    def loss(teacher, student, fake):
        sample = x_t - student.mean_velocity(x_t, r=point["t"] / 2, **point)
        real = teacher.velocity(sample, **point)
        return (sample.square() + 0.3 * real * x_t + 0.7 * fake.velocity(sample, **point).square()).sum()

    losses = loss(teacher, student, fake), loss(*copies)
    losses[0].backward()
    losses[1].backward()
    assert far(losses[0], losses[1]) < 1e-12
    for role, copy in ((student.network, copies[1].network), (fake, copies[2])):
        for name in role.layers:
            a, b = (getattr(role.adapter.get_submodule(name), part).weight for part in ("lora_A", "lora_B"))
            whole = role.alpha / role.rank * copy.net.get_submodule(name).weight.grad.flatten(1)
            assert far(a.grad.flatten(1), b.detach().flatten(1).T @ whole) < 1e-9
            assert far(b.grad.flatten(1), whole @ a.detach().flatten(1).T) < 1e-9
    for ours, theirs in zip(student.interval.parameters(), copies[1].interval.parameters(), strict=True):
        assert far(ours.grad, theirs.grad) < 1e-9
    adapters = {id(weight) for role in (student, fake) for weight in role.parameters()}
    assert all(weight.grad is None for weight in teacher.parameters() if id(weight) not in adapters)


def test_derivative_equals_differences_and_that_of_the_merged_network(case):
    teacher, x_t, point = case
    student, t, h = moved(FlowMap(low_rank(teacher, rank=2))), point["t"].clamp(0.1, 0.9), 1e-6
    randomized(student.interval)
    along = {"r": 0.3 * t, "cond": point["cond"]}
    direction = torch.randn_like(x_t)
    du = Forward()(student, x_t, t=t, direction=direction, **along)
    ends = [student.mean_velocity(x_t + s * direction, t=t + s, **along) for s in (h, -h)]
    assert far(du, (ends[0] - ends[1]) / (2 * h)) < 1e-5
    assert far(du, Forward()(merged(student), x_t, t=t, direction=direction, **along)) < 1e-9


@pytest.mark.parametrize("degree", [None, 6])
def test_merged_is_an_ordinary_network_with_the_students_answers(degree):
    teacher, x_t, point = dit(), torch.randn(5, 4, 4, 4), {"t": T.float(), "cond": torch.tensor([0, 1, 0, 1, 1])}
    plain = {key: value.clone() for key, value in teacher.net.state_dict().items()}
    student = moved(FlowMap(low_rank(teacher, rank=4), degree=degree))
    randomized(student.interval)
    shared = {key: value.clone() for key, value in teacher.net.state_dict().items()}
    alone = merged(student)
    answers = [each.mean_velocity(x_t, r=point["t"] / 2, **point) for each in (alone, student)]
    assert far(*answers) < 1e-6
    assert alone.network.net.state_dict().keys() == plain.keys()
    assert not adapter_layers(alone.network.net)
    assert all(torch.equal(value, shared[key]) for key, value in teacher.net.state_dict().items())
    assert not {id(weight) for weight in alone.parameters()} & {id(weight) for weight in teacher.parameters()}
    restored = without_slots(teacher).net.state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in restored.items())
    with pytest.raises(TypeError, match="a Network; only a LowRank"):
        merged(alone)


def test_state_and_parameters_are_the_adapters_alone():
    teacher = dit()
    count = sum(weight.numel() for weight in teacher.parameters())
    role = low_rank(teacher, rank=2)
    keys = list(role.state_dict())
    assert len(keys) == 2 * len(role.layers) == len(list(role.parameters()))
    assert keys[2:4] == [f"adapter.transformer_blocks.0.attn1.to_q.lora_{part}.weight" for part in "AB"]
    assert sum(weight.numel() for weight in role.parameters()) < 0.5 * count
    assert all(weight.count_nonzero() == 0 for name, weight in role.named_parameters() if "lora_B" in name)
    twin = low_rank(teacher, rank=2)
    twin.load_state_dict(moved(role).state_dict())
    x_t, point = torch.randn(5, 4, 4, 4), {"t": T.float(), "cond": torch.tensor([0, 1, 0, 1, 1])}
    assert torch.equal(twin.velocity(x_t, **point), role.velocity(x_t, **point))


def test_who_requires_a_gradient_is_never_changed_by_a_call_or_a_new_slot():
    teacher, x_t, point = dit(), torch.randn(5, 4, 4, 4), {"t": T.float(), "cond": torch.tensor([0, 1, 0, 1, 1])}
    base = list(teacher.requires_grad_(True).parameters())
    student, fake = FlowMap(low_rank(teacher, rank=2)), low_rank(teacher, rank=2)
    assert not any(weight.requires_grad for weight in base)
    everything = [*base, *student.parameters(), *fake.parameters()]
    for index, weight in enumerate(everything):
        weight.requires_grad_(index % 3 == 0)
    answer = student.mean_velocity(x_t, r=point["t"], **point)
    fake.features(x_t, **point)
    teacher.velocity(x_t, **point)
    late = low_rank(teacher, rank=1)
    copy = deepcopy(fake)
    answer.sum().backward()
    assert [weight.requires_grad for weight in everything] == [index % 3 == 0 for index in range(len(everything))]
    assert all(weight.requires_grad for weight in late.parameters())
    assert [w.requires_grad for w in copy.parameters()] == [w.requires_grad for w in fake.parameters()]


def test_a_slot_is_off_again_after_an_error():
    teacher, x_t, point = dit(), torch.randn(5, 4, 4, 4), {"t": T.float(), "cond": torch.tensor([0, 1, 0, 1, 1])}
    before, role = teacher.velocity(x_t, **point), moved(low_rank(teacher, rank=2))
    with pytest.raises(TypeError, match="conditioned by a tensor"):
        role.velocity(x_t, t=point["t"], cond={"label": point["cond"]})
    assert torch.equal(teacher.velocity(x_t, **point), before)


def test_a_copy_is_a_slot_of_its_own_and_goes_with_its_owner():
    teacher, x_t, point = dit(), torch.randn(5, 4, 4, 4), {"t": T.float(), "cond": torch.tensor([0, 1, 0, 1, 1])}
    role = moved(low_rank(teacher, rank=2, alpha=5.0))
    student, answer = FlowMap(role), role.velocity(x_t, **point)
    state = torch.get_rng_state()
    copy, average = deepcopy(student).network, Average(role, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(copy.velocity(x_t, **point), answer)
    assert isinstance(average.module, LowRank)
    assert copy.shared is average.module.shared is teacher
    moved(role)
    assert torch.equal(copy.velocity(x_t, **point), answer)
    average.update()
    average.install()
    assert torch.equal(role.velocity(x_t, **point), average.module.velocity(x_t, **point))
    assert len(teacher.net.peft_config) == 3
    size = sum(weight.numel() for weight in teacher.parameters())
    del copy, average
    assert len(teacher.net.peft_config) == 1
    assert sum(weight.numel() for weight in teacher.parameters()) == size - 2 * sum(
        w.numel() for w in role.parameters()
    )
    assert far(role.velocity(x_t, **point), answer) > 0.01


def test_a_seed_gives_the_same_student_in_every_type():
    students = []
    for kind in (torch.float32, torch.float64, torch.bfloat16):
        teacher = dit().to(kind)
        torch.manual_seed(5)
        students.append(low_rank(teacher, rank=2))
    for single, double, half in zip(*(student.parameters() for student in students), strict=True):
        assert (single.dtype, double.dtype, half.dtype) == (torch.float32, torch.float64, torch.float32)
        assert torch.equal(single.double(), double)
        assert torch.equal(single, half)
    x_t, point = torch.randn(5, 4, 4, 4), {"t": T.float(), "cond": torch.tensor([0, 1, 0, 1, 1])}
    single, half = (moved(students[index]).velocity(x_t, **point) for index in (0, 2))
    assert single.dtype == half.dtype == torch.float32
    first = next(FlowMap(students[2]).interval.parameters())
    assert first.dtype == torch.float32


def test_targets():
    teacher = dit()
    layers = [(entry.embedding.linear_1, entry.embedding.linear_2) for entry in entries(teacher.net)]
    role = low_rank(teacher, rank=1)
    block = ["norm1.linear", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]
    assert list(role.layers) == [f"transformer_blocks.{index}.{name}" for index in range(4) for name in block]
    assert layers == [(entry.embedding.linear_1, entry.embedding.linear_2) for entry in entries(teacher.net)]
    assert all(type(layer) is nn.Linear for pair in layers for layer in pair)
    assert low_rank(teacher, rank=1).layers == role.layers
    named = low_rank(teacher, rank=1, targets=["to_q", "0.attn1.to_out.0"])
    queries = [f"transformer_blocks.{index}.attn1.to_q" for index in range(4)]
    assert list(named.layers) == [queries[0], "transformer_blocks.0.attn1.to_out.0", *queries[1:]]
    matched = low_rank(teacher, rank=1, targets=r".*\.[01]\.ff\.net\.2|proj_out_1")
    assert list(matched.layers) == [f"transformer_blocks.{index}.ff.net.2" for index in (0, 1)] + ["proj_out_1"]
    assert "transformer_blocks.0.ff.conv_point" in low_rank(sana_teacher(), rank=1).layers  # a convolution of one pixel
    assert not any("conv_depth" in name for name in low_rank(sana_teacher(), rank=1).layers)


BAD = [
    ({"rank": 0}, "rank=0, alpha=None: the rank must be 1 or more"),
    ({"rank": 4, "alpha": -1.0}, "alpha positive and finite"),
    ({"rank": 4, "targets": ["to_q", "to_z"]}, r"targets \['to_z'\] match no linear or convolutional layer"),
    ({"rank": 4, "targets": "attn1"}, r"targets \['attn1'\] match no"),
    ({"rank": 4, "targets": []}, r"targets \[\] match no"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_impossible_slots_are_refused(arguments, message):
    teacher = dit()
    with pytest.raises(ValueError, match=message):
        low_rank(teacher, **arguments)
    assert not adapter_layers(teacher.net)


def test_a_network_with_adapters_of_others_is_refused():
    teacher = dit()
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["to_q"]), teacher.net, adapter_name="mine")
    with pytest.raises(ValueError, match=r"has the adapters mine of its own.*merge them"):
        low_rank(teacher, rank=2)


def test_diffusers_loads_the_adapters_of_a_slot():
    teacher, x_t, point = sana_teacher(), torch.randn(5, 4, 4, 4), {"t": T.float(), "cond": masked()}
    net = sana_net()
    net.load_state_dict(teacher.net.state_dict())
    role = moved(low_rank(teacher, rank=2))
    expected, before = role.velocity(x_t, **point), teacher.velocity(x_t, **point)
    net.load_lora_adapter({f"transformer.{key}": value for key, value in role.adapter.state_dict().items()})
    teacher.net = net
    assert far(teacher.velocity(x_t, **point), expected) < 1e-6
    assert far(before, expected) > 0.05


@pytest.mark.parametrize("name", TEACHERS)
def test_blocks_that_run_again_in_the_backward_pass_have_the_slot_on(name):
    """Gradient checkpointing, while another role's forward pass comes between."""
    teacher, cond = (make() for make in TEACHERS[name])
    x_t, point = torch.randn(5, 4, 4, 4), {"t": T.float(), "cond": cond}
    student, fake = moved(low_rank(teacher, rank=2)), moved(low_rank(teacher, rank=2))

    def gradients():
        answer = student.velocity(x_t, **point)
        sum(role.velocity(answer, **point).square().sum() for role in (teacher, fake)).backward()
        found = [weight.grad for role in (student, fake) for weight in role.parameters()]
        for role in (student, fake):
            role.zero_grad(set_to_none=True)
        return found

    expected = gradients()
    teacher.net.enable_gradient_checkpointing()
    own = teacher.net._gradient_checkpointing_func
    assert all(far(*pair) < 1e-4 for pair in zip(gradients(), expected, strict=True))
    assert teacher.net._gradient_checkpointing_func is own


def build(seed=3):
    """Both stages with a low-rank student and fake score, 2 + 4 steps."""
    torch.manual_seed(1)
    teacher = dit()
    student, fake = FlowMap(low_rank(teacher, rank=2)), low_rank(teacher, rank=4)
    guided, head = Guided(teacher, 1.5), Adaptive(teacher.feature_channels)
    stages = [
        sketch(student, guided, steps=2, derivative=Forward()),
        refine(student, guided, fake, head, steps=4),
    ]

    def batch_at(step):
        generator = torch.Generator().manual_seed(step)
        return Batch(torch.randn(4, 4, 4, 4, generator=generator), torch.tensor([0, 1, 1, 0]))

    experiment = Experiment(
        stages=stages,
        modules={"student": student, "fake": fake, "discriminator": head},
        batch_at=batch_at,
        seed=seed,
        products={"refine": Product("student", "student.safetensors", "dit", {})},
    )
    return teacher, student, experiment


def carry_out(folder, experiment, **options):
    execute(experiment, folder, recipe="tests.lora", arguments={"seed": 3}, checkpoint_every=1, **options)


def final_state(folder):
    files = [*(folder / "models").iterdir(), *newest_first(folder / "checkpoints")[0].glob("*.safetensors")]
    return {f"{file.stem}:{key}": value.numpy().tobytes() for file in files for key, value in load_file(file).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and the teacher's answers before and after it."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    teacher, student, experiment = build()
    point = {"t": T.float(), "cond": torch.tensor([0, 1, 0, 1, 1])}
    x_t = torch.randn(5, 4, 4, 4)
    answers = [teacher.probe(x_t, **point)]
    carry_out(folder, experiment)
    answers.append(teacher.probe(x_t, **point))
    return folder, student, answers


def test_a_run_moves_the_student_and_not_its_teacher(whole):
    folder, student, (before, after) = whole
    assert torch.equal(before.velocity, after.velocity)
    assert all(torch.equal(*pair) for pair in zip(before.features, after.features, strict=True))
    moved_ones = [name for name, weight in student.named_parameters() if "lora_B" in name and weight.count_nonzero()]
    assert len(moved_ones) == len(student.network.layers)
    state = load_file(folder / "models" / "student.safetensors")
    assert state.keys() == student.state_dict().keys()
    assert all(key.startswith(("network.adapter.", "interval.")) for key in state)


class Stop(Exception):
    """Ends a run from outside, as a crash would."""


@pytest.mark.parametrize("last", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_run_taken_up_again_is_the_run_that_was_not_stopped(whole, tmp_path, last):
    def stop(event):
        if event.kind == "step" and event.global_step == last:
            raise Stop

    with pytest.raises(Stop):
        carry_out(tmp_path, build()[2], on_event=stop)
    carry_out(tmp_path, build()[2])
    assert final_state(tmp_path) == final_state(whole[0])


def killed(folder):
    """A run that kills its own process at the fourth step."""

    def kill(event):
        if event.kind == "step" and event.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    carry_out(Path(folder), build()[2], on_event=kill)


@pytest.mark.slow
def test_a_run_killed_by_sigkill(whole, tmp_path):
    here, command = Path(__file__).parent, "import sys, test_lora; test_lora.killed(sys.argv[1])"
    places = [str(place) for place in (here, here.parent / "small", here.parents[1] / "src")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", command, tmp_path], env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    carry_out(tmp_path, build()[2])
    assert final_state(tmp_path) == final_state(whole[0])
