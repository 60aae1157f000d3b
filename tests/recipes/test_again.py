"""Another evaluation of a finished run: nothing is lost, and what was moved is found."""

import json
import shutil

import pytest
from test_two_stages import pictures, tiny_teacher

from hidistill import weights
from hidistill.metrics.classifier import Classifier, save_classifier
from hidistill.recipes.again import BENCHES, judge, located
from hidistill.recipes.judging import conclude, read_teacher
from hidistill.recipes.tables import keep
from hidistill.train.folder import FINISHED, locked

__all__ = ["pictures"]

ENDINGS = ("json", "html", "md", "tex")
QUICK = {"scales": (), "teacher_steps": (), "student_steps": (1,)}


@pytest.fixture
def run(tmp_path, pictures, monkeypatch):
    """The folder that a run of images.distill leaves, its student untrained."""
    path = tiny_teacher(tmp_path / "teacher.safetensors", size=8, channels=3, classes=2, patch=2)
    save_classifier(tmp_path / "classifier.safetensors", Classifier(2, 3), {})  # as if one had been trained
    student = read_teacher(path).student()
    run = tmp_path / "run"
    weights.save(run / "models" / "student.safetensors", student, family="dit-flow-map", config=student.config)
    arguments = {"images": str(pictures), "teacher": str(path), "guidance": 1.5, "evaluate_samples": 500}
    (run / "recipe.json").write_text(json.dumps({"recipe": "images.distill", "arguments": arguments}))
    (run / FINISHED).write_text("{}")
    monkeypatch.setattr("hidistill.recipes.judging.REFERENCE_STEPS", 2)
    return run


def test_an_earlier_evaluation_and_its_page_are_kept(run):
    judge(run, **QUICK)
    first = {name: (run / name).read_bytes() for name in ("evaluation.json", "report.html")}
    assert json.loads(first["evaluation.json"])["n"] == 12, "as in the run itself: 500, of which there are 12"
    assert not (run / "evaluations").exists()
    judge(run, **QUICK, samples=10, seed=3)
    assert {path.name for path in (run / "evaluations").iterdir()} == {f"0001.{x}" for x in ENDINGS}
    keep(run)
    kept = {path.name for path in (run / "evaluations").iterdir()}
    assert kept == {f"000{i}.{x}" for i in (1, 2) for x in ENDINGS}
    assert (run / "evaluations" / "0001.json").read_bytes() == first["evaluation.json"]
    assert (run / "evaluations" / "0001.html").read_bytes() == first["report.html"]
    assert json.loads((run / "evaluations" / "0002.json").read_text())["n"] == 10


def test_a_runs_own_evaluation_warns_of_few_images(run):
    arguments = json.loads((run / "recipe.json").read_text())["arguments"]
    judges, teacher, settings = BENCHES["images.distill"].build(run, arguments)
    conclude(run, judges, teacher, samples=12, seed=0, **settings | QUICK)
    notes = json.loads((run / "evaluation.json").read_text())["notes"]
    assert any("12 images a row for 64 features" in note and "singular" in note for note in notes)
    assert "Note: 12 images a row for 64 features" in (run / "report.html").read_text()


def test_an_evaluation_that_is_interrupted_keeps_the_earlier_one_once(tmp_path):
    (tmp_path / "evaluation.json").write_text("1")
    keep(tmp_path)
    keep(tmp_path)
    assert [path.name for path in (tmp_path / "evaluations").iterdir()] == ["0001.json"]


def test_a_run_that_is_not_finished_or_in_use_is_refused(run):
    with locked(run), pytest.raises(ValueError, match="is in use by another run"):
        judge(run, **QUICK)
    (run / FINISHED).unlink()
    with pytest.raises(ValueError, match="is not finished; the command that started it goes on"):
        judge(run, **QUICK)


@pytest.mark.parametrize("samples", [-1, 9, 13])
def test_a_count_out_of_range_is_refused_before_anything_is_kept(run, samples):
    (run / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"{samples} images .* 12 test images: .* choose 10 to 12"):
        judge(run, samples=samples)
    assert not (run / "evaluations").exists()


def test_what_was_moved_is_named_with_its_option_and_found_by_it(run, pictures, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    for option, place in (("images", pictures), ("teacher", teacher)):
        shutil.move(place, tmp_path / f"moved-{option}")
        with pytest.raises(ValueError, match=rf"made with {option} {place}, where nothing lies now; .* --{option} "):
            judge(run, **QUICK)
        shutil.move(tmp_path / f"moved-{option}", place)
    shutil.move(pictures, tmp_path / "here")
    shutil.move(teacher, tmp_path / "there.safetensors")
    judge(run, **QUICK, images=tmp_path / "here", teacher=tmp_path / "there.safetensors")
    assert (run / "report.html").exists()


def test_rows_of_an_interrupted_evaluation_are_not_taken_for_another_teachers(run, tmp_path):
    (run / "evaluation.partial.json").write_text("cut off")
    with pytest.raises(ValueError, match="is no evaluation"):
        judge(run, **QUICK)
    other = tiny_teacher(tmp_path / "other.safetensors", size=8, channels=3, classes=2, patch=2)
    judge(run, **QUICK, teacher=other)
    assert not (run / "evaluation.partial.json").exists()


def test_pictures_of_another_kind_are_refused(run, tmp_path, pictures):
    shutil.copytree(pictures / "dark", tmp_path / "others" / "a")
    with pytest.raises(ValueError, match="in 0 classes; this teacher knows 3 channels and 2 classes"):
        judge(run, **QUICK, images=tmp_path / "others")


def test_options_that_a_recipe_has_no_place_for(tmp_path):
    with pytest.raises(ValueError, match=r"--images .*: a run of fashion.distill has no images .* takes --teacher"):
        located("fashion.distill", {"teacher_weights": None}, {"images": tmp_path})
    with pytest.raises(ValueError, match=r"--teacher .*none: there is no such file or folder"):
        located("digits.smoke", {"teacher": "x"}, {"teacher": tmp_path / "none"})
    found = located("fashion.distill", {"teacher_weights": None}, {"teacher": tmp_path})
    assert found == {"teacher_weights": str(tmp_path)}
    assert located("fashion.distill", {"teacher_weights": None}, {}) == {"teacher_weights": None}


def test_a_run_that_trained_a_teacher_says_what_to_do(tmp_path):
    tiny_teacher(tmp_path / "models" / "teacher.safetensors", size=8, channels=3, classes=2, patch=2)
    (tmp_path / "recipe.json").write_text('{"recipe": "images.teacher", "arguments": {}}')
    with pytest.raises(
        ValueError, match=r"trained a teacher and no student; evaluate a run that distills .*hidistill draw"
    ):
        judge(tmp_path)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe\.json"):
        judge(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": "digits.teacher", "arguments": {}}))
    with pytest.raises(ValueError, match=r"is a run of digits\.teacher; runs of fashion\.distill"):
        judge(tmp_path)
    with pytest.raises(ValueError, match="no student_steps"):
        judge(tmp_path, student_steps=())
