"""The driver: what lies in a run folder, what is refused, and what goes on after a mishap."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import Field, adam, batch_at, build, carry_out
from test_resume import Stop, final_state, journal

from hidistill.objectives.flow_matching import FlowMatching
from hidistill.train.checkpoint import CheckpointError, newest_first
from hidistill.train.driver import execute
from hidistill.train.ema import Average
from hidistill.train.experiment import Experiment, Product
from hidistill.train.journal import read as read_journal
from hidistill.train.loop import NonFinite
from hidistill.train.pace import Clock
from hidistill.train.stage import Stage, Update
from hidistill.types import Batch
from hidistill.weights import load_into, read


def stop_at(step):
    def stop(event):
        if event.kind == "step" and event.global_step == step:
            raise Stop

    return stop


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, events, counted = tmp_path_factory.mktemp("finished"), [], []
    carry_out(
        folder, on_event=events.append, probe=lambda stage: {"n": len(stage)}, probe_every=5, finish=counted.append
    )
    return folder, events, counted


def test_events_come_in_order(finished):
    _, events, _ = finished

    def told(kind):
        return [(event.stage, event.step, event.global_step) for event in events if event.kind == kind]

    assert events[0].kind == "start"
    assert events[-1].kind == "finish"
    assert told("step") == [("sketch", n, n) for n in range(1, 13)] + [("refine", n, 12 + n) for n in range(1, 13)]
    assert told("stage") == [("sketch", 12, 12), ("refine", 12, 24)]
    assert told("probe") == [("sketch", n, n) for n in (5, 10, 12)] + [("refine", n, 12 + n) for n in (5, 10, 12)]
    assert [at for _, _, at in told("checkpoint")] == [5, 10, 12, 17, 22, 24]
    assert {(event.steps, event.total_steps) for event in events} == {(12, 24)}
    left = [event.seconds_left for event in events if event.kind == "step"]
    assert all(math.isfinite(seconds) for seconds in left)
    assert left[-1] == 0.0 or left[-1] < left[0]


def test_journal_has_each_step_once_with_its_losses(finished):
    lines = journal(finished[0])
    taken = [line for line in lines if line["kind"] == "step"]
    assert [line["global_step"] for line in taken] == list(range(1, 25))
    assert [line["global_step"] for line in taken if "student/loss" in line] == [*range(1, 13), 15, 18, 21, 24]
    assert all(line["seconds"] > 0 for line in taken)
    assert [line["n"] for line in lines if line["kind"] == "probe"] == [6.0] * 6


def test_products_are_the_averages_with_a_card(finished):
    folder, _, _ = finished
    found, student = read(folder / "models" / "student.safetensors"), Field()
    load_into(student, found.tensors, source="product")
    assert (found.family, found.config) == ("field", {"width": 16})
    assert found.card["seed"] == "3"
    assert (found.card["recipe"], found.card["stage"], found.card["steps"]) == ("tests.small", "refine", "12")
    last = newest_first(folder / "checkpoints")[0]
    border = final_state(folder)
    assert last.name == "00000024"
    assert all(border[f"student:{key}"] == value.numpy().tobytes() for key, value in found.tensors.items())
    assert read(folder / "models" / "sketch.safetensors").card["stage"] == "sketch"


def test_folder_says_what_ran_and_where(finished):
    folder, _, _ = finished
    recipe = json.loads((folder / "recipe.json").read_text())
    assert (recipe["recipe"], recipe["arguments"]) == ("tests.small", {"steps": 12, "seed": 3})
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert environment["device"] == "cpu"
    assert environment["git"] is None or set(environment["git"]) == {"commit", "dirty"}


def test_a_finished_run_does_nothing_more(finished):
    folder, _, counted = finished
    before, events = final_state(folder), []
    carry_out(folder, on_event=events.append, finish=counted.append)
    assert [event.kind for event in events] == ["finish"]
    assert counted == [folder]
    assert final_state(folder) == before


def test_finish_alone_is_done_again_when_it_fails(tmp_path):
    def fail(folder):
        raise Stop

    with pytest.raises(Stop):
        carry_out(tmp_path, 3, finish=fail)
    events, counted = [], []
    carry_out(tmp_path, 3, on_event=events.append, finish=counted.append)
    assert [event.kind for event in events] == ["resume", "finish"]
    assert counted == [tmp_path]


def test_resumption_is_recorded(tmp_path):
    with pytest.raises(Stop):
        carry_out(tmp_path, on_event=stop_at(8))
    torch.set_num_threads(2)
    events = []
    carry_out(tmp_path, on_event=events.append)
    assert (events[0].kind, events[0].global_step) == ("resume", 5)
    assert "threads was 1 and is 2: the last bits of the result may differ" in events[0].message
    assert [line["checkpoint"] for line in journal(tmp_path) if line.get("event") == "resume"] == ["00000005"]
    assert len(json.loads((tmp_path / "environment.json").read_text())["resumed"]) == 1


def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path):
    with pytest.raises(Stop):
        carry_out(tmp_path, on_event=stop_at(19))
    newest = newest_first(tmp_path / "checkpoints")[0] / "fake.safetensors"
    newest.write_bytes(newest.read_bytes()[:40])
    events = []
    carry_out(tmp_path, on_event=events.append)
    assert (events[0].kind, events[0].global_step) == ("resume", 12)
    assert f"passed over: {newest} has 40 bytes" in events[0].message
    assert final_state(tmp_path) == final_state(finished[0])


def test_no_good_checkpoint_is_an_error_rather_than_a_new_start(tmp_path):
    with pytest.raises(Stop):
        carry_out(tmp_path, on_event=stop_at(19))
    for checkpoint in newest_first(tmp_path / "checkpoints"):
        (checkpoint / "state.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* can be used: .*00000017.*00000012.*Remove .* another --out"
    ):
        carry_out(tmp_path)


def test_changed_arguments_are_named(tmp_path):
    execute(build(1), tmp_path, recipe="r", arguments={"steps": 1, "lr": 0.1, "data": tmp_path})
    with pytest.raises(ValueError, match=r"lr is 0.1 there and 0.2 here; new is '\(absent\)' there.* another --out"):
        execute(build(1), tmp_path, recipe="r", arguments={"steps": 2, "lr": 0.2, "data": tmp_path, "new": 1})
    with pytest.raises(ValueError, match="holds a run of r, this is other; use another --out"):
        execute(build(1), tmp_path, recipe="other", arguments={"steps": 1, "lr": 0.1, "data": tmp_path})


def test_only_options_of_the_recipe_are_named_as_those_that_may_change(tmp_path):
    for extendable, words in (
        (("steps", "polish_steps"), "only steps may change"),
        (("polish_steps",), "none may change"),
    ):
        changed, folder = replace(build(1), extendable=extendable), tmp_path / str(len(extendable))
        execute(changed, folder, recipe="r", arguments={"steps": 1, "lr": 0.1})
        with pytest.raises(ValueError, match=rf"{words}.*another --out") as caught:
            execute(changed, folder, recipe="r", arguments={"steps": 1, "lr": 0.2})
        assert "polish_steps" not in str(caught.value)


def test_paths_are_stored_whole_and_agree_however_they_are_typed(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    execute(build(1), tmp_path / "run", recipe="r", arguments={"data": Path("pictures"), "more": (Path("a"),)})
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())["arguments"]
    assert stored == {"data": str(tmp_path / "pictures"), "more": [str(tmp_path / "a")]}
    monkeypatch.chdir(tmp_path / "elsewhere")
    execute(build(1), tmp_path / "run", recipe="r", arguments={"data": Path("../pictures"), "more": (Path("../a"),)})
    with pytest.raises(ValueError, match=r"data is '.*/pictures' there and '.*/elsewhere/pictures' here"):
        execute(build(1), tmp_path / "run", recipe="r", arguments={"data": Path("pictures"), "more": (Path("../a"),)})


def test_a_folder_of_an_earlier_version_with_a_relative_path_agrees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute(build(1), tmp_path, recipe="r", arguments={"data": "pictures"})
    execute(build(1), tmp_path, recipe="r", arguments={"data": Path("pictures")})
    with pytest.raises(ValueError, match="data is 'pictures' there"):
        execute(build(1), tmp_path, recipe="r", arguments={"data": Path("others")})


def test_a_folder_with_a_stray_journal_is_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="but no recipe"):
        carry_out(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


def alone(steps):
    """One stage at a constant learning rate."""
    torch.manual_seed(5)
    student = Field()
    update = Update(FlowMatching(student), adam(student))
    stage = Stage("learn", {"student": update}, steps, {"student": Average(student, 0.9)})
    product = Product("student", "student.safetensors", "field", {})
    return Experiment(
        [stage], {"student": student}, batch_at, seed=0, products={"learn": product}, extendable=("steps",)
    )


def test_a_run_that_is_extended_on_its_way_is_the_longer_run(tmp_path):
    with pytest.raises(Stop):
        execute(
            alone(8), tmp_path / "extended", recipe="r", arguments={"steps": 8}, checkpoint_every=3, on_event=stop_at(7)
        )
    for folder in ("extended", "long"):
        execute(alone(13), tmp_path / folder, recipe="r", arguments={"steps": 13}, checkpoint_every=3)
    assert json.loads((tmp_path / "extended" / "recipe.json").read_text())["arguments"] == {"steps": 13}
    extended, long = (read(tmp_path / name / "models" / "student.safetensors").tensors for name in ("extended", "long"))
    assert all(torch.equal(value, long[key]) for key, value in extended.items())
    steps = [line["global_step"] for line in journal(tmp_path / "extended") if line["kind"] == "step"]
    assert steps == list(range(1, 14))


def test_a_finished_run_cannot_be_extended_and_stays_as_it_is(tmp_path):
    carry_out(tmp_path, 6)
    before = (tmp_path / "recipe.json").read_text()
    with pytest.raises(
        ValueError, match=r"finished: steps is 6 there and 7 here.*averages ended with it.*another --out"
    ):
        carry_out(tmp_path, 7)
    assert (tmp_path / "recipe.json").read_text() == before
    events = []
    carry_out(tmp_path, 6, on_event=events.append)
    assert [event.kind for event in events] == ["finish"]


def test_a_stage_that_is_over_cannot_be_extended(tmp_path):
    with pytest.raises(Stop):
        carry_out(tmp_path, 6, on_event=stop_at(9))
    before = (tmp_path / "recipe.json").read_text()
    with pytest.raises(CheckpointError, match=r"6 steps of stage 'sketch' behind it, which has 7 now.*give it 6 steps"):
        carry_out(tmp_path, 7)
    assert (tmp_path / "recipe.json").read_text() == before


def test_a_stage_cannot_become_shorter_than_it_is(tmp_path):
    with pytest.raises(Stop):
        carry_out(tmp_path, 8, on_event=stop_at(7))
    with pytest.raises(
        CheckpointError, match=r"5 steps of stage 'sketch' behind it, which has 4 now. Give it at least"
    ):
        carry_out(tmp_path, 4)


def test_one_folder_holds_one_run_at_a_time(tmp_path):
    def again(event):
        if event.kind == "step" and event.global_step == 2:
            with pytest.raises(ValueError, match=r"in use by another run \(process [0-9]+\)"):
                carry_out(tmp_path, 2)

    carry_out(tmp_path, 2, on_event=again)
    assert (tmp_path / "finished").exists()


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(finished, tmp_path):
    def poisoned(step):
        batch = batch_at(step)
        return Batch(batch.x * float("nan"), batch.cond) if step == 18 else batch

    with pytest.raises(NonFinite, match=r"'refine', step 6, update 'fake': the loss of FlowMatching is nan") as caught:
        carry_out(tmp_path, batches=poisoned)
    newest = newest_first(tmp_path / "checkpoints")[0]
    assert newest.name == "00000017"
    assert str(caught.value).endswith(f"the last good checkpoint is {newest}")
    carry_out(tmp_path)
    assert final_state(tmp_path) == final_state(finished[0])


def test_a_module_outside_the_checkpoints_is_refused():
    experiment = build()
    modules = {name: module for name, module in experiment.modules.items() if name != "fake"}
    with pytest.raises(
        ValueError, match=r"stage 'refine', update 'fake': 4 parameters .* add the module that holds them"
    ):
        replace(experiment, modules=modules)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": []}, "at least one"),
        ({"probe_every": -1}, "probe_every=-1"),
        ({"precision": "half"}, "precision 'half'"),
        ({"products": {"polish": Product("student", "s.safetensors", "field", {})}}, "stage 'polish'"),
        ({"products": {"sketch": Product("teacher", "s.safetensors", "field", {})}}, "role 'teacher'"),
    ],
)
def test_experiments_out_of_range(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(build(), **changes)


def test_a_stage_without_steps_hands_on_what_it_got(tmp_path):
    experiment = build()
    empty = replace(experiment, stages=[replace(experiment.stages[0], steps=0), experiment.stages[1]])
    start = {key: value.clone() for key, value in experiment.modules["student"].state_dict().items()}
    execute(empty, tmp_path, recipe="r", arguments={})
    sketch = read(tmp_path / "models" / "sketch.safetensors").tensors
    assert all(torch.equal(value, sketch[key]) for key, value in start.items())
    assert (tmp_path / "models" / "student.safetensors").exists()


def test_time_left_counts_rare_updates_and_probes():
    student = Field()
    update = Update(FlowMatching(student), adam(student), every=5)
    clock = Clock([Stage("a", {"u": update}, 100), Stage("b", {}, 50)], probe_every=10)
    assert clock.seconds_left(0, 0) is None
    for step in range(50):
        clock.paces[0].add(6.0 if step % 5 == 4 else 1.0)  # 2 seconds a step on average, 1 at the median
    clock.paces[0].add(1000.0)  # the machine slept
    assert clock.seconds_left(0, 50) == pytest.approx(2.0 * 50 + 2.0 * 50)
    clock.probes.append(3.0)
    assert clock.seconds_left(0, 50) == pytest.approx(200.0 + 3.0 * 10)
    assert clock.seconds_left(2, 0) == 0.0


def test_a_journal_cut_off_within_a_line_loses_that_line_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_journal(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a\n{"a": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_journal(path)


def test_products_are_those_that_the_run_asked_for_and_it_says_so(tmp_path):
    torch.backends.cudnn.allow_tf32 = True
    carry_out(tmp_path, 3)
    assert json.loads((tmp_path / "environment.json").read_text())["float32_products"] == "ieee"
    assert not torch.backends.cudnn.allow_tf32
