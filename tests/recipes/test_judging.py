"""The pictures of a run: what stands beside what, for test sets of any shares."""

import numpy as np
import pytest
import torch

from hidistill.recipes.judging import SHOWN_CLASSES, Jury, draw_pictures
from hidistill.teachers.dit import DiT, Size
from hidistill.types import Split

STEPS = 2


def drawn(folder, counts, monkeypatch):
    """What `draw_pictures` leaves for a test set with so many pictures of each class; a picture's level is its row."""
    monkeypatch.setattr("hidistill.recipes.judging.REFERENCE_STEPS", STEPS)
    classes = len(counts)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    test = Split(images, labels, [f"class {i}" for i in range(classes)] if classes > 1 else [])
    teacher = DiT(image_size=4, channels=1, classes=classes if classes > 1 else 0, patch=4, size=Size(8, 1, 1))
    student = teacher.student().eval().requires_grad_(False)
    judges = Jury(test, test, test, None, {})
    draw_pictures(folder, judges, teacher, {"student": student}, scale=1.0, seed=0, precision="float32")
    return dict(np.load(folder / "samples" / "grids.npz", allow_pickle=False)), labels


@pytest.mark.parametrize(
    ("counts", "each"), [((9, 2, 7), 2), ((6, 6), 6), ((14, 8), 6), ((3,), 3), ((30,), 20)], ids=str
)
def test_real_pictures_are_of_the_class_they_stand_beside(counts, each, tmp_path, monkeypatch):
    grids, labels = drawn(tmp_path, counts, monkeypatch)
    assert len(grids["real"]) == len(grids["student"]) == len(grids["teacher"]) == each * len(counts)
    rows = grids["real"].reshape(len(grids["real"]), -1)[:, 0].astype(int)
    assert labels[rows].tolist() == grids["labels"].tolist()
    assert len(set(rows.tolist())) == len(rows)


def test_without_pictures_of_a_class_only_drawn_ones_are_shown(tmp_path, monkeypatch):
    grids, _ = drawn(tmp_path, (4, 0, 4), monkeypatch)
    assert "real" not in grids
    assert grids["labels"].tolist() == [0, 1, 2]


def test_of_many_classes_the_first_are_shown(tmp_path, monkeypatch):
    grids, labels = drawn(tmp_path, (2,) * (SHOWN_CLASSES + 5), monkeypatch)
    assert sorted(set(grids["labels"].tolist())) == list(range(SHOWN_CLASSES))
    rows = grids["real"].reshape(len(grids["real"]), -1)[:, 0].astype(int)
    assert labels[rows].tolist() == grids["labels"].tolist()
