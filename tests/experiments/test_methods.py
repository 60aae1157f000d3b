"""Every method by its name trains, is judged, and is refused where it does not fit together."""

from dataclasses import replace

import pytest
import torch
from costs import cost_of
from torch.utils.flop_counter import FlopCounterMode

from hidistill import weights
from hidistill.discriminators.matching import parameters
from hidistill.experiments import bench, planted
from hidistill.experiments.methods import REFINE_COSTS, SKETCH_COSTS, Method, head_of, stages
from hidistill.experiments.studies import discriminator, initialization, open_questions, table
from hidistill.experiments.toys import once
from hidistill.objectives.regression import Paired
from hidistill.recipes import digits
from hidistill.teachers.dit import DiT, Size
from hidistill.train.loop import steps
from hidistill.types import Batch

STUDIES = {"discriminator": discriminator, "initialization": initialization, "open": open_questions, "table": table}


def tiny():
    torch.manual_seed(0)
    net = DiT(image_size=8, channels=1, classes=10, patch=4, size=Size(32, 3, 2), taps=(0, 1, 2))
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net.eval().requires_grad_(False)


def shortened(arguments):
    """A variant of a few steps; a round for each halving."""
    return arguments | {
        name: length for name, length in (("sketch_steps", 4), ("refine_steps", 2)) if arguments.get(name)
    }


def kinds(study):
    """The variants that differ in more than their lengths, without the teacher's and planted ones."""
    found = {}
    for variant in study.STUDY.grids["full"].variants:
        arguments = dict(variant.arguments)
        if "teacher_steps" not in arguments and "planted_steps" not in arguments:
            found.setdefault(repr(sorted(shortened(arguments).items(), key=str)), shortened(arguments))
    return list(found.values())


METHODS = list({repr(sorted(a.items(), key=str)): a for study in STUDIES.values() for a in kinds(study)}.values())


@pytest.mark.parametrize("arguments", METHODS, ids=lambda a: "-".join(str(v) for v in a.values()))
def test_every_method_of_the_studies_moves_its_student_and_nothing_else(arguments):
    teacher, method = tiny(), Method(**arguments)
    student, head = teacher.student(), head_of(method, teacher)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    kept = {key: value.clone() for key, value in teacher.state_dict().items()}

    def batch_at(step):
        x, cond = torch.randn(4, 1, 8, 8), torch.arange(4)
        return Paired(x, cond, step, noise=torch.randn_like(x)) if method.sketch == "regression" else Batch(x, cond)

    names = []
    for stage, paired in stages(replace(method, sketch_steps=min(method.sketch_steps, 4)), teacher, student, head):
        names.append(stage.name)
        assert paired == (method.sketch == "regression" and stage.name == "sketch")
        list(steps(stage, batch_at, seed=0))
    wanted = {"none": 0, "progressive": 4}.get(method.sketch, 1) * (method.refine != "blend")
    assert len(names) == wanted + (method.refine != "none")
    assert any(not torch.equal(before[key], value) for key, value in student.state_dict().items())
    assert all(torch.equal(kept[key], value) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("head", ["pooled", "convolutional", "per_token"])
def test_heads_have_as_many_weights_as_the_adaptive_one(head):
    teacher = tiny()
    ours, adaptive = (head_of(Method(refine="gan", head=name), teacher) for name in (head, "adaptive"))
    assert parameters(ours) == pytest.approx(parameters(adaptive), rel=0.06)


@pytest.mark.parametrize(
    "arguments",
    [{"refine": "dmd", "head": "pooled"}, {"refine": "gan"}, {"refine": "dmd+align"}, {"align": "energy"}],
)
def test_what_does_not_fit_together_is_refused(arguments):
    with pytest.raises(ValueError, match="needs a"):
        Method(**arguments)


def counted(method, teacher):
    """Forward passes of the student that a step of a method is worth, by counting its products; mean of its stages."""
    student, head = teacher.student(), head_of(method, teacher)
    x, cond, t = torch.randn(64, 1, 8, 8), torch.arange(64) % 10, torch.rand(64)
    with FlopCounterMode(display=False) as once_through, torch.no_grad():
        student.mean_velocity(x, t=t, r=t, cond=cond)
    total, seen = 0.0, 0
    for stage, _ in stages(method, teacher, student, head):
        seen += 1
        batch = Paired(x, cond, 0, noise=torch.randn_like(x))
        for update in stage.updates.values():
            for parameter in update.parameters():
                parameter.requires_grad_(True)
            with FlopCounterMode(display=False) as counter:
                update.objective(batch).value.mean().backward()
            for parameter in update.parameters():
                parameter.requires_grad_(False)
            total += counter.get_total_flops() / update.every
    return total / seen / once_through.get_total_flops()


@pytest.mark.parametrize("name", [name for name in SKETCH_COSTS if name != "none"])
def test_steps_of_trajectory_objectives_cost_what_the_table_says(name):
    teacher = digits.teacher(steps=4).modules["teacher"].eval().requires_grad_(False)
    assert counted(Method(sketch=name, sketch_steps=4), teacher) == pytest.approx(SKETCH_COSTS[name], rel=0.03)


@pytest.mark.parametrize(("refine", "head"), REFINE_COSTS)
def test_steps_of_distribution_objectives_cost_what_the_table_says(refine, head):
    teacher = digits.teacher(steps=4).modules["teacher"].eval().requires_grad_(False)
    method = Method(refine=refine, head=head, refine_steps=4)
    assert counted(method, teacher) == pytest.approx(REFINE_COSTS[refine, head], rel=0.03)


def test_methods_of_the_table_cost_alike():
    costs = {
        variant.name: cost_of(variant.arguments)
        for variant in table.STUDY.grids["full"].variants
        if "teacher_steps" not in variant.arguments
    }
    assert max(costs.values()) < 1.01 * min(costs.values())


@pytest.mark.parametrize(
    "arguments",
    [
        {"sketch": "meanflow", "sketch_steps": 2, "refine": "dmd+gan", "refine_steps": 2, "head": "adaptive"},
        {"teacher_steps": 2},
    ],
)
def test_a_cell_of_the_bench_gives_numbers_for_every_column(tmp_path, arguments):
    net, folder = tiny(), tmp_path / "cells" / "x" / "0"
    weights.save(tmp_path / "teacher" / "teacher.safetensors", net, family="dit", config=net.config)
    found = bench.cell(seed=0, folder=folder, **arguments)
    wanted = {column.key for column in table.STUDY.columns if column.key.endswith(", 1")}
    assert wanted <= found.keys()
    assert ("entropy" in found) == ("head" in arguments)


def test_a_sketch_is_trained_once_and_is_what_it_would_be_alone(tmp_path):
    """Two cells of a seed that refine the same sketch; without the stored one, the second gives the same numbers."""
    net = tiny()
    weights.save(tmp_path / "teacher" / "teacher.safetensors", net, family="dit", config=net.config)
    method = {"sketch": "meanflow", "sketch_steps": 3, "refine": "dmd", "refine_steps": 2}
    alone = bench.cell(seed=1, folder=tmp_path / "cells" / "alone" / "1", **method)
    (stored,) = (tmp_path / "sketches").rglob("student.safetensors")
    assert stored.parent.name == "teacher-meanflow-3-0.0005-1"
    before = stored.stat().st_mtime_ns
    shared = bench.cell(seed=1, folder=tmp_path / "cells" / "shared" / "1", **method)
    assert shared == alone
    assert stored.stat().st_mtime_ns == before


def test_a_planted_defect_is_where_the_mask_says():
    torch.manual_seed(0)
    x = torch.randn(3, 1, 28, 28)
    broken, mask = planted.plant(x, 6)
    assert torch.equal(broken[~mask], x[~mask])
    assert mask.flatten(1).sum(1).tolist() == [36] * 3
    for row in range(3):
        assert torch.equal(broken[row][mask[row]], x[row][mask[row]].flip(0))
        assert not torch.equal(broken[row], x[row])


def test_a_head_learns_to_see_a_large_defect():
    method = Method(refine="gan", head="pooled")
    untrained = planted.measured(method, side=20, length=1, seed=0)
    trained = planted.measured(method, side=20, length=25, seed=0)
    assert trained["accuracy"] > max(0.6, untrained["accuracy"] + 0.05)
    assert trained["focus"] > 0


def test_what_several_cells_need_is_made_once(tmp_path):
    made = []

    def make(path):
        made.append(path)
        path.write_text("there")

    assert [once(tmp_path / "a" / "file", make).read_text() for _ in range(3)] == ["there"] * 3
    assert len(made) == 1
