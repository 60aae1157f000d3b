"""What a plan says, against closed forms and against what is really allocated."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from measuring.memory import allocated
from small_run import Field, adam, batch_at, build
from torch import nn

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.recipes.sizes import on_paper
from hidistill.recipes.stages import refine, sketch
from hidistill.recomputing import recomputed
from hidistill.teachers.dit import DiT, Size
from hidistill.train.counting import Op, Uncountable, count, count_update
from hidistill.train.driver import execute
from hidistill.train.experiment import Experiment
from hidistill.train.planning import Layout, counted, plan, rows, warning
from hidistill.train.rates import COLD_SETS, Curve, cold, datasheet, measured
from hidistill.train.stage import Stage, Update
from hidistill.types import Batch, Loss

H100 = datasheet("H100")


def small(**changes):
    sides = {"image_size": 8, "classes": 10, "batch_size": 8, "sketch_steps": 10, "refine_steps": 10}
    return on_paper(size="32x2x2", **sides | changes)


@pytest.fixture(scope="module")
def run():
    return small()


@pytest.fixture(scope="module")
def work(run):
    """On one process, and on each of two."""
    return {n: counted(run, Layout(n)) for n in (1, 2)}


def test_a_plan_holds_every_role_and_a_shard_is_a_part_of_it(run, work):
    (first, second) = plan(run, work[1], H100)
    weights = sum(p.numel() for p in run.modules["student"].parameters())
    assert weights < first.memory["student"] / 4 < 1.1 * weights + 1000  # and buffers: positions, frequencies
    assert first.memory["optimizers"] == 8 * weights
    assert first.memory["gradients"] == 4 * weights
    assert first.memory["averages"] == 2 * first.memory["student"]
    moving = sum(p.numel() for role in ("fake", "discriminator") for p in run.modules[role].parameters())
    assert second.memory["optimizers"] == 8 * (2 * weights + moving)  # the sketch's stays
    (_, replicated) = plan(run, work[2], H100, layout=Layout(2))
    (_, sharded) = plan(run, work[2], H100, layout=Layout(2, sharded=True))
    assert sharded.memory["student"] == replicated.memory["student"] // 2
    assert sharded.memory["optimizers"] == replicated.memory["optimizers"] // 2
    kept = replicated.memory[
        "activations"
    ]  # as if all gradients were there when most else is, which is not so in parts
    assert kept <= sharded.memory["activations"] <= kept + replicated.memory["gradients"]
    assert sharded.sending > replicated.sending > 0
    assert (replicated.samples, second.samples) == (8, 8)


def test_products_and_activations_go_with_the_rows(run, work):
    one, four = (plan(run, work[n], H100, layout=Layout(n)) for n in (1, 2))
    for a, b in zip(one, four, strict=True):
        assert a.flops == pytest.approx(2 * b.flops, rel=0.05)  # heads and embeddings have terms of their own
        assert a.memory["activations"] > 1.5 * b.memory["activations"]


def test_passes_take_less_memory_for_the_same_products(run, work):
    layout = Layout(1, passes=4)
    once, passes = plan(run, work[1], H100), plan(run, counted(run, layout), H100, layout=layout)
    for a, b in zip(once, passes, strict=True):
        assert b.flops == pytest.approx(a.flops, rel=0.1)  # heads and embeddings have terms of their own
        assert b.memory["activations"] < 0.6 * a.memory["activations"]
        assert (b.samples, b.memory["gradients"]) == (a.samples, a.memory["gradients"])


def test_offloaded_states_take_the_room_of_activations(run, work):
    held, offloaded = (plan(run, work[1], H100, layout=Layout(offload_optimizer=how)) for how in (False, True))
    for a, b in zip(held, offloaded, strict=True):
        assert a.memory["optimizers"] > 0
        assert b.memory["optimizers"] == 0  # the activations of 8 rows are more than the moments of so small a network
        assert b.total == a.total - a.memory["optimizers"]


def test_a_student_that_moves_rarely_costs_less(run, work):
    (_, refined) = plan(run, work[1], H100)
    critics, student = (refined.work[name].flops for name in ("critics", "student"))
    assert refined.work["student"].every == 5
    assert refined.flops == pytest.approx(critics + student / 5)


def test_a_batch_that_cannot_be_split_is_refused(run):
    with pytest.raises(ValueError, match="a batch of 8 cannot be split evenly over 3 processes; use a multiple"):
        counted(run, Layout(3))
    with pytest.raises(ValueError, match="over 2 processes of 3 passes each; use a multiple of 6, such as 6"):
        counted(run, Layout(2, passes=3))
    with pytest.raises(ValueError, match="processes=0"):
        Layout(0)


def test_networks_without_numbers_are_not_trained(run, tmp_path):
    with pytest.raises(ValueError, match=r"student has shapes and no numbers.*hidistill doctor"):
        execute(run, tmp_path / "run", recipe="x", arguments={})
    assert not (tmp_path / "run").exists()


def test_a_table_has_a_column_for_each_stage(run, work):
    layout = Layout(2)
    table = rows(plan(run, work[2], H100, layout=layout), layout=layout, precision="bfloat16")
    assert {len(line) for line in table} == {3}
    labels = [line[0] for line in table]
    for label in ("memory: student", "memory: activations", "products: update critics", "hours"):
        assert label in labels


def test_too_little_memory_is_said(run, work):
    plans = plan(run, work[1], H100)
    assert not warning(plans, H100)
    assert not warning(plans, replace(H100, memory=0.0))
    assert "does not fit" in warning(plans, replace(H100, memory=1.05 * max(each.total for each in plans)))


def test_a_datasheet_gives_the_larger_of_two_times():
    assert H100.seconds(Op("product", int(989e12), 0, half=True)) == pytest.approx(1.0, rel=1e-3)
    assert H100.seconds(Op("product", 0, int(3.35e12), half=True)) == pytest.approx(1.0, rel=1e-3)
    assert H100.seconds(Op("light", 0, int(3.35e12), half=False)) == pytest.approx(1.0, rel=1e-3)
    assert datasheet("H100", share=0.5).seconds(Op("product", int(989e12), 0, half=True)) == pytest.approx(2, rel=1e-3)
    with pytest.raises(ValueError, match="'B9000' is unknown; there are H100"):
        datasheet("B9000")
    with pytest.raises(ValueError, match=r"share=1\.5"):
        datasheet("H100", share=1.5)


def test_a_curve_passes_through_its_points_and_goes_on_in_proportion():
    curve = Curve([(1.0, 2.0), (100.0, 20.0)])
    assert curve(0.1) == 2.0
    assert curve(1.0) == pytest.approx(2.0)
    assert curve(10.0) == pytest.approx(40**0.5)
    assert curve(1000.0) == pytest.approx(200.0)


def test_measured_rates_grow_with_the_size():
    rates = measured()
    for table in (rates.products["product"], rates.light, rates.strided, rates.heavy, rates.update):
        assert 0 < table(1e3) <= table(1e9)


def test_what_is_measured_finds_its_operands_in_memory():
    """Other operands come in turn, spread over more than caches hold, and answers stay as long."""
    seen: list[int] = []
    x, weight = torch.randn(2**20), torch.randn(3, requires_grad=True)

    def run(x, weight):
        assert weight.requires_grad
        seen.append(x.data_ptr())
        return x + 1

    call = cold(run, x, weight)
    turn = len(seen)
    assert turn * x.nbytes * 2 == pytest.approx(2**26, rel=0.2)
    assert len(set(seen)) == turn
    call()
    assert seen[turn] == seen[0]
    few: list[int] = []
    cold(lambda x: few.append(x.data_ptr()), torch.zeros(1))
    assert len(set(few)) == COLD_SETS


def test_operations_are_told_apart_by_how_they_move_bytes():
    """4 x 8 numbers of 4 bytes: read and written in order, out of order, added up; a view moves nothing."""

    @dataclass(frozen=True)
    class Moves:
        weight: torch.nn.Parameter

        def __call__(self, batch):
            x = batch.x * self.weight
            return Loss(x.t().contiguous().sum(0), {})

    weight = torch.nn.Parameter(torch.ones(8))
    update = Update(Moves(weight), torch.optim.SGD([weight], lr=1.0))
    ops = count_update(update, Batch(torch.randn(4, 8), torch.zeros(4)), []).ops
    assert ops[Op("light", 0, 4 * (32 + 8 + 32), half=False)] >= 1
    assert ops[Op("strided", 0, 4 * (32 + 32), half=False)] >= 1
    assert ops[Op("strided", 0, 4 * (32 + 4), half=False)] >= 1


@pytest.mark.parametrize("again", [False, True])
def test_memory_is_what_the_allocator_gave_out(again):
    """Within 10 %, for every update of both stages of a small network; also where blocks run again on the way back."""
    teacher = DiT(image_size=16, channels=3, classes=10, size=Size(64, 2, 4)).requires_grad_(False)
    student, fake = teacher.student().requires_grad_(False), DiT.from_config(teacher.config).requires_grad_(False)
    head, guided = Adaptive(teacher.feature_channels).requires_grad_(False), Guided(teacher, 1.5)
    batch = Batch(torch.randn(16, 3, 16, 16), torch.arange(16) % 10)
    stages = [
        sketch(student, guided, steps=10, derivative=Forward()),
        refine(student, guided, fake, head, steps=10),
    ]
    with recomputed([teacher, student, fake, head]) if again else nullcontext():
        for stage in stages:
            for name, update in stage.updates.items():
                update.objective(batch)  # what is made once, such as position embeddings, is not the step's
                said = count_update(update, batch, [teacher, student, fake, head]).peak_bytes
                assert said == pytest.approx(allocated(update, batch), rel=0.1), (stage.name, name)


def test_blocks_that_run_again_take_a_forward_more_and_keep_less(run):
    """Of a network of one forward with gradient: 4 in the place of 3, and a block's activations in the place of all."""
    whole, again = (counted(run, Layout(2, sharded=True, recompute=how))["sketch"]["student"] for how in (False, True))
    forward = 2 * 4 * sum(p.numel() for p in run.modules["student"].net.blocks[0].mlp.parameters() if p.ndim == 2) * 16
    assert again.flops - whole.flops > 2 * forward  # of two blocks, attention and the modulation beside it
    assert again.flops < 1.3 * whole.flops
    assert again.saved_bytes < 0.7 * whole.saved_bytes
    assert again.saved_bytes < again.activation_bytes < whole.activation_bytes
    assert all("forward" not in vars(block) for block in run.modules["student"].net.blocks)


def test_what_is_alive_beside_gradients_is_what_hooks_see():
    """Of a chain of layers whose gradients are larger than its activations, and which keeps nothing for long."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(4))

        def __call__(self, batch):
            x = batch.x
            for layer in self.layers:
                x = layer(x).relu()
            return Loss(x.sum(1), {})

    chain = Chain()
    update, batch = Update(chain, adam(chain)), Batch(torch.randn(2, 64), torch.zeros(2))
    work = count_update(update, batch, [chain])
    row, gradient = 2 * 64 * 4, 64 * 64 * 4
    assert 4 * gradient < work.peak_bytes
    assert gradient <= work.activation_bytes < 2 * gradient  # the one that is being made, and 10 to 20 rows beside it
    assert work.activation_bytes - gradient < 20 * row


def test_steps_in_parts_send_in_each_pass(run, work):
    once, twice = (
        plan(run, counted(run, layout), H100, layout=layout)
        for layout in (Layout(2, sharded=True, passes=passes) for passes in (1, 2))
    )
    for a, b in zip(once, twice, strict=True):
        assert b.sending == pytest.approx(2 * a.sending)


def test_attention_of_few_tokens_is_an_accelerators_own_there():
    """On a CPU it is counted in float32; 16 tokens in bfloat16."""
    run = small(precision="bfloat16")
    here, there = (count(run, device=device)["sketch"]["student"].ops for device in ("cpu", "cuda"))
    assert not any(op.half for op in here if op.kind == "attention")
    assert all(op.half for op in there if op.kind == "attention")
    assert any(op.kind == "attention" for op in there)
    assert count(run)["sketch"]["student"].ops == here


def test_spectral_norms_are_not_moved_twice():
    head = Adaptive((16, 16)).train()
    with recomputed([head]):
        assert not any("forward" in vars(part) for part in head.modules())


def test_frozen_networks_that_rest_elsewhere_take_no_memory(run, work):
    there, away = (
        plan(run, work[2], H100, layout=Layout(2, sharded=True, offload_frozen=how)) for how in (False, True)
    )
    for a, b in zip(there, away, strict=True):
        assert a.memory["teacher"] > 0
        assert b.memory == a.memory | {"teacher": 0}


@pytest.mark.parametrize("how", [{"recompute": True}, {"offload_frozen": True}])
def test_what_has_no_effect_without_parts_is_refused(how):
    with pytest.raises(
        ValueError, match="--recompute and --offload-frozen are of networks held in parts; add --sharded"
    ):
        Layout(2, **how)
    with pytest.raises(ValueError, match="--offload-optimizer is of networks held whole"):
        Layout(2, sharded=True, offload_optimizer=True)


@pytest.mark.parametrize("every", [1, 3])
def test_critics_that_take_the_students_draw_are_counted_so(every):
    """In the steps in which the student moves; in the others they draw for themselves."""
    alone, reused = (count(small(every=every, reuse=reuse))["refine"] for reuse in (False, True))
    assert reused["student"].flops == alone["student"].flops
    saved = alone["critics"].flops - reused["critics"].flops
    together = count(small(every=1, reuse=True))["refine"]["critics"].flops
    assert saved == pytest.approx((alone["critics"].flops - together) / every, rel=1e-6)
    assert 0.2 < (alone["critics"].flops - together) / alone["critics"].flops < 0.4


def test_counting_changes_nothing():
    run = build(4)
    before = {f"{r}/{n}": v.clone() for r, m in run.modules.items() for n, v in m.state_dict().items()}
    state = torch.get_rng_state()
    found = count(run)
    assert {stage: list(updates) for stage, updates in found.items()} == {
        stage.name: list(stage.updates) for stage in run.stages
    }
    after = {f"{r}/{n}": v for r, m in run.modules.items() for n, v in m.state_dict().items()}
    assert all(type(v) is torch.Tensor and torch.equal(v, before[name]) for name, v in after.items())
    assert torch.equal(state, torch.get_rng_state())


def test_what_looks_at_numbers_cannot_be_counted():
    class Looking(Field):
        def velocity(self, x_t, *, t, cond):
            return super().velocity(x_t, t=t, cond=cond) * (1.0 if x_t.sum().item() > 0 else 2.0)

    field = Looking()
    stage = Stage("fit", {"student": Update(FlowMatching(field), adam(field))}, 2)
    with pytest.raises(Uncountable, match="FlowMatching cannot be counted"):
        count(Experiment([stage], {"student": field}, batch_at, seed=0))


def test_a_size_that_is_none_is_refused():
    for words in ("huge", "32x2", "32x0x2"):
        with pytest.raises(ValueError, match=f"size='{words}' is none; give .*XL, or width x depth x heads"):
            on_paper(size=words)
