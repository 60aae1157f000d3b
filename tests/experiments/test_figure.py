"""Figures of experiments: names of levels stay apart."""

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from hidistill.experiments.figure import levels

HEIGHTS = {"c": 0.32, "a": 0.30, "d": 0.9, "b": 0.31}


@pytest.mark.parametrize("order", ["abcd", "dcba"])
def test_names_of_near_levels_do_not_lie_on_one_another(order):
    """They are in the order of their levels, each at least its own height above the one below."""
    heights = {name: HEIGHTS[name] for name in order}
    figure = Figure(figsize=(6, 3.6), dpi=100)
    axes = figure.subplots()
    axes.set(yscale="log", ylim=(0.01, 1))
    levels(axes, heights)
    figure.draw_without_rendering()
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
    assert boxes.keys() == heights.keys()
    for below, above in zip("abc", "bcd", strict=True):
        assert boxes[above].y0 >= boxes[below].y1 - 1
    assert len(axes.lines) == len(heights)
