"""What the two stages refuse when they are put together by hand."""

from copy import deepcopy

import pytest

from hidistill.derivative import Forward
from hidistill.discriminators.adaptive import Adaptive
from hidistill.guidance import Guided
from hidistill.objectives.meanflow import MeanFlow
from hidistill.recipes.stages import refine, sketch
from hidistill.teachers.dit import DiT, Size
from hidistill.teachers.mixture import ExactFlowMap


@pytest.fixture
def teacher():
    return DiT(image_size=8, channels=1, classes=2, patch=2, size=Size(32, 2, 2), taps=(0, 1))


@pytest.mark.parametrize("size", [0.0, -0.3])
def test_a_discriminator_whose_gradient_is_left_out_is_refused(teacher, size):
    head = Adaptive(teacher.feature_channels)
    with pytest.raises(ValueError, match="must be positive; for distribution matching alone give discriminator=None"):
        refine(teacher.student(), Guided(teacher, 1.5), deepcopy(teacher), head, steps=2, feature_gradient=size)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_trajectory_loss_of_no_or_no_finite_weight_is_refused(teacher, weight):
    student, guided = teacher.student(), Guided(teacher, 1.5)
    kept = MeanFlow(guided, student, Forward())
    with pytest.raises(ValueError, match=r"trajectory_weight=.*to leave the loss out give trajectory=None"):
        refine(student, guided, deepcopy(teacher), None, steps=2, trajectory=kept, trajectory_weight=weight)


def test_a_student_without_parameters_is_refused(teacher):
    with pytest.raises(TypeError, match=r"a ExactFlowMap cannot be trained here; give a torch\.nn\.Module"):
        sketch(ExactFlowMap(teacher, 2), Guided(teacher, 1.5), steps=2, derivative=Forward())
