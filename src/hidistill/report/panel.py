"""One small panel of lines, as PNG for a file and as SVG for a page.

Small, so that it is read on a phone; lines differ in color, dashes and markers, so that gray is enough.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = ("#0b62a4", "#c1440e", "#1b7f5c", "#8a4fa3", "#8a6d00", "#4f5b66")
INK, FAINT = "#333639", "#d9dcdf"
VARIABLES = {color: f"var(--series-{i})" for i, color in enumerate(SERIES, start=1)} | {
    INK: "var(--ink)",
    FAINT: "var(--line)",
}
"""The page's names for the colors: a dark page gives them other values."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
BUCKETS = 80
"""Long series are drawn as means of this many pieces, with each piece's range behind them."""
INCHES = (4.4, 3.1)


@dataclass(frozen=True)
class Plot:
    """One panel: `name` for its file, words for its caption, and the drawing twice.

    Args:
        svg: for a page: colors are its variables, no address leads outside.
    """

    name: str
    title: str
    caption: str
    png: bytes
    svg: str


@dataclass(frozen=True)
class Line:
    """One line of a panel; `notes` stand beside its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    notes: Sequence[str] = ()
    marked: bool = True


def panel(
    name: str,
    title: str,
    caption: str,
    lines: Sequence[Line],
    *,
    xlabel: str,
    levels: Mapping[str, float] = {},
    borders: Mapping[str, float] = {},
    log_x: bool = False,
) -> Plot:
    """Draw one panel.

    Args:
        name: for the file.
        title: for the page.
        caption: for the page.
        lines: what is drawn.
        xlabel: name of the x axis.
        levels: horizontal lines by name.
        borders: vertical lines by name.
        log_x: a logarithmic x axis; the y axis becomes one too where its values span more than a decade.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": name}):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(FAINT)
        axes.tick_params(which="both", color=FAINT, labelcolor=INK)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_xlabel(xlabel, color=INK)
        for i, line in enumerate(lines):
            draw(axes, line, i)
        for i, (label, height) in enumerate(levels.items()):
            axes.axhline(height, color=INK, linewidth=1, dashes=(2, 2 + 2 * i), label=label, zorder=1)
        mark(axes, borders)
        scale_axes(axes, lines, log_x=log_x)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            figure.legend(
                handles,
                labels,
                loc="outside upper left",
                ncols=2,
                frameon=False,
                fontsize=8,
                labelcolor=INK,
                handlelength=3,
            )
        svg = inline(rendered(figure, "svg").decode())
        axes.set_title(title, loc="left", fontsize=9, color=INK)
        return Plot(name, title, caption, rendered(figure, "png"), svg)


def draw(axes: "Axes", line: Line, index: int) -> None:
    """Draw one line in the look of its index."""
    color, dash, marker = (look[index % len(look)] for look in (SERIES, DASHES, MARKERS))
    x, y = np.asarray(line.x), np.asarray(line.y)
    label = line.label or None
    if len(x) > BUCKETS:
        pieces = [np.array_split(a, BUCKETS) for a in (x, y)]
        x, y = (np.array([piece.mean() for piece in split]) for split in pieces)
        low, high = (np.array([extreme(piece) for piece in pieces[1]]) for extreme in (np.min, np.max))
        axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
    every = max(1, len(x) // 8)
    axes.plot(
        x,
        y,
        color=color,
        linestyle=dash,
        marker=marker,
        markersize=4,
        linewidth=1.4,
        label=label,
        markevery=1 if line.marked else (index, every),
    )
    for note, at, height in zip(line.notes, x, y, strict=False):
        axes.annotate(note, (at, height), xytext=(4, 4), textcoords="offset points", fontsize=7.5, color=color)


def mark(axes: "Axes", borders: Mapping[str, float]) -> None:
    """Mark where each stage begins."""
    for stage, start in borders.items():
        axes.axvline(start, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        place = {"xy": (start, 1), "xycoords": ("data", "axes fraction"), "xytext": (3, -2)}
        axes.annotate(stage, **place, textcoords="offset points", va="top", fontsize=8, color=INK)


def scale_axes(axes: "Axes", lines: Sequence[Line], *, log_x: bool) -> None:
    """Choose logarithmic axes with plain numbers at few ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    plain = FuncFormatter(lambda number, _: f"{number:g}")
    x, y = (np.concatenate([getattr(line, side) for line in lines] or [[]]) for side in "xy")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], min_n_ticks=3))
        axis.set_major_formatter(plain)
    if log_x:
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(LogLocator(subs=ticks(x)))
        axes.xaxis.set_major_formatter(plain)
        axes.xaxis.set_minor_locator(NullLocator())
    if log_x and len(y) and y.min() > 0 and y.max() > 10 * y.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=ticks(y)))
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(NullFormatter())


def ticks(values: NDArray[Any]) -> tuple[float, ...]:
    """Multiples of a power of ten that get a tick: more where the values span little."""
    decades = float(np.log10(values.max() / values.min())) if len(values) else 0.0
    return (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3 else (1.0,)


def rendered(figure: "Figure", kind: str) -> bytes:
    """A figure's file; equal numbers give equal files.

    An SVG has no date, and names its parts by its pixels: different figures of one page share no names.
    """
    from matplotlib import rc_context

    stream = io.BytesIO()
    if kind == "png":
        figure.savefig(stream, format="png", dpi=160, facecolor="white")
        return stream.getvalue()
    salt = sha256(rendered(figure, "png")).hexdigest()
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def inline(svg: str) -> str:
    """An SVG as a part of a page: no prolog, addresses or fixed size, and the page's colors and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg)\s[^>]*?(viewBox="[^"]*")[^>]*>', r'\1 \2 role="img">', svg, count=1)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1inherit_font", svg)
    svg = svg.replace("inherit_font", "system-ui, sans-serif")
    return re.sub("|".join(VARIABLES), lambda found: VARIABLES[found[0]], svg)
