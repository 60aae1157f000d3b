"""Figures of experiments: names of levels stay apart, series too, and equal numbers give equal files."""

import re

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from hidistill.experiments.figure import Curve, Panel, curves, levels, look, rows
from hidistill.report.panel import SERIES

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


def test_equal_numbers_give_equal_files_and_others_share_no_names():
    first, again, other = (rows({"FD": {"a": [1.0, shift], "b": [2.0, 2.5]}}, "words") for shift in (1.2, 1.2, 1.3))
    assert first == again
    names, others = (set(re.findall(rb'id="([pm][0-9a-f]{10})"', each.svg)) for each in (first, other))
    assert names
    assert not names & others


def test_series_of_two_rounds_of_colors_differ_in_grey():
    looks = [look(index)[1:] for index in range(2 * len(SERIES))]
    assert len(set(looks)) == len(looks)


def test_rates_are_read_from_their_axis():
    panel = Panel([Curve("a", [1.25e-4, 1e-3], [[1.0], [2.0]])], "learning rate", "FD", {})
    assert b"<!-- 0.000125 -->" in curves([panel], "words").svg


def test_a_number_that_no_row_has_takes_no_place():
    one = {"FD": {"a": [1.0, 2.0]}}
    assert rows(one | {"accuracy": {}}, "words") == rows(one, "words")
