"""Figures of experiments: every seed as a point, means on top; markers and dashes tell series apart without color."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hidistill.report.panel import DASHES, FAINT, INK, MARKERS, SERIES, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDE = (20.0, 1e4)
"""An axis of rows is logarithmic between these ratios of the largest number to the smallest; above, that is as good as
0."""


@dataclass(frozen=True)
class Picture:
    """A drawing and the words under it."""

    caption: str
    png: bytes
    svg: bytes


@dataclass(frozen=True)
class Curve:
    """A series over x: at each x one value per seed."""

    label: str
    x: Sequence[float]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes with curves.

    Args:
        curves: what is drawn.
        xlabel: with its unit.
        ylabel: with its unit.
        levels: horizontal lines by name.
    """

    curves: Sequence[Curve]
    xlabel: str
    ylabel: str
    levels: Mapping[str, float]


def curves(panels: Sequence[Panel], caption: str, *, log_x: bool = True, log_y: bool = True) -> Picture:
    """Panels side by side; lines join the means, small points are the seeds."""
    from matplotlib.figure import Figure

    beside = 1.4 * any(panel.levels for panel in panels)
    figure = Figure(figsize=(4.2 * len(panels) + 0.4 + beside, 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        plain(axes)
        axes.set_xlabel(panel.xlabel, color=INK, fontsize=9)
        axes.set_ylabel(panel.ylabel, color=INK, fontsize=9)
        for index, curve in enumerate(panel.curves):
            color, dash, marker = look(index)
            means = [fmean(values) for values in curve.values]
            axes.plot(
                curve.x, means, color=color, linestyle=dash, marker=marker, markersize=5, linewidth=1.4,
                label=curve.label,
            )  # fmt: skip
            points = [(x, value) for x, values in zip(curve.x, curve.values, strict=True) for value in values]
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle="", markersize=2, alpha=0.55)
        if log_x and panel.curves:
            axes.set_xscale("log")
            where = sorted({x for curve in panel.curves for x in curve.x})
            axes.set_xticks(where, [f"{x:,.0f}" if x >= 1 else f"{x:g}" for x in where])
            axes.set_xticks([], minor=True)
        if log_y:
            axes.set_yscale("log")
        levels(axes, panel.levels)
        if panel.curves:
            axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, handlelength=3)
    return picture(figure, caption)


def look(index: int) -> tuple[str, Any, str]:
    """Color, dash and marker of a series; a second round of colors has other pairs of dash and marker, for grey."""
    again = index // len(SERIES)
    dash, marker = DASHES[(index + again) % len(DASHES)], MARKERS[(index + 2 * again) % len(MARKERS)]
    return SERIES[index % len(SERIES)], dash, marker


def levels(axes: "Axes", heights: Mapping[str, float]) -> None:
    """Horizontal lines with their names at the right, from the lowest to the highest, moved apart where they touch."""
    free = -1.0
    for height in heights.values():
        axes.axhline(height, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for label, height in sorted(heights.items(), key=lambda item: item[1]):
        at = axes.transAxes.inverted().transform(axes.transData.transform((1.0, height)))[1]
        free = max(at, free + 0.042)
        joined = {"arrowstyle": "-", "color": INK, "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 0}
        axes.annotate(
            label, (1.0, height), xycoords=("axes fraction", "data"), xytext=(1.03, free), textcoords="axes fraction",
            fontsize=7.5, color=INK, va="center", arrowprops=joined,
        )  # fmt: skip


def rows(columns: Mapping[str, Mapping[str, Sequence[float]]], caption: str, *, reference: str = "") -> Picture:
    """A row per variant and a column of axes per number: seeds as points, the mean as a bar; a line at the reference.

    Args:
        columns: for each heading the values over seeds by variant; one that no variant has is left out.
        caption: words under the picture.
        reference: the variant whose mean is drawn through all rows; empty for none.
    """
    from matplotlib.figure import Figure

    columns = {heading: values for heading, values in columns.items() if values} or columns
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    figure = Figure(figsize=(2.0 + 2.6 * len(columns), 1.0 + 0.28 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axes, (heading, values) in zip(grid, columns.items(), strict=True):
        plain(axes)
        axes.set_xlabel(heading, color=INK, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        for height, name in enumerate(names):
            if found := values.get(name):
                axes.plot(found, [height] * len(found), "o", color=SERIES[0], markersize=3, alpha=0.6)
                axes.plot([fmean(found)], [height], "|", color=INK, markersize=12, markeredgewidth=1.6)
        drawn = [value for found in values.values() for value in found]
        if drawn and min(drawn) > 0 and WIDE[0] < max(drawn) / min(drawn) < WIDE[1]:
            axes.set_xscale("log")
        if values.get(reference):
            axes.axvline(fmean(values[reference]), color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    return picture(figure, caption)


def plain(axes: "Axes") -> None:
    """The look that all axes share."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=8)
    axes.grid(color=FAINT, linewidth=0.6)


def picture(figure: "Figure", caption: str) -> Picture:
    """Both files of a figure."""
    return Picture(caption, rendered(figure, "png"), rendered(figure, "svg"))
