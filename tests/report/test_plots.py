import re

import pytest
from made_up import full_evaluation, full_journal

from hidistill.report.panel import BUCKETS, DASHES, MARKERS, SERIES, VARIABLES, Line, panel
from hidistill.report.plots import borders, costs, guidance, losses, probes


def test_each_stage_has_its_panels():
    names = {plot.name for plot in losses(full_journal(100))}
    assert names == {
        "sketch-losses",
        "sketch-gradients",
        *(f"refine-{f}" for f in ("losses", "gradients", "logits", "shares")),
    }


def test_probes_show_where_stages_begin():
    journal = full_journal(100)
    assert borders(journal) == {"sketch": 0.0, "refine": 100.0}
    drawn = {plot.name: plot for plot in probes(journal)}
    assert set(drawn) == {
        "probe-fd-cnn",
        "probe-high_frequency",
        "probe-agreement",
        "probe-end_distance",
        "probe-entropy",
    }
    assert "refine" in drawn["probe-fd-cnn"].svg


def test_cost_and_guidance_have_a_panel_per_feature_space():
    names = [plot.name for plot in costs(full_evaluation())]
    assert names == ["cost-nfe-cnn", "cost-seconds-cnn", "cost-nfe-net", "cost-seconds-net"]
    names = [plot.name for plot in guidance(full_evaluation())]
    assert names == ["guidance-cnn", "guidance-net", "guidance-shares"]


def test_no_panels_without_numbers():
    assert not losses([])
    assert not probes([{"kind": "event", "global_step": 1}])
    assert not costs({})
    one_scale = [row for row in full_evaluation()["rows"] if row["scale"] in (None, 1.5)]
    assert not guidance({"rows": one_scale})


def test_lines_differ_without_color_and_colors_follow_the_page():
    lines = [Line(f"line {i}", [1.0, 2.0, 3.0], [0.0 + i, 1.0 + i, 0.0 + i]) for i in range(len(SERIES))]
    svg = panel("p", "t", "c", lines, xlabel="x").svg
    assert len(set(DASHES)) == len(set(MARKERS)) == len(SERIES)
    assert all(f"var(--series-{i + 1})" in svg for i in range(len(SERIES)))
    assert not any(color in svg for color in VARIABLES)
    assert "://" not in svg
    assert "line 3" in svg, "text is text"


@pytest.mark.parametrize(("count", "points"), [(BUCKETS, BUCKETS), (10 * BUCKETS, BUCKETS)])
def test_long_series_become_means(count, points):
    drawn = panel(
        "p", "t", "c", [Line("", [0.5 * i for i in range(count)], [1.0] * count, marked=False)], xlabel="x"
    ).svg
    path = max(re.findall(r'<path d="([^"]*)"[^>]*fill: none; stroke(?:-dasharray[^;]*)?[^>]*series-1', drawn), key=len)
    assert 2 <= path.count("L") + 1 <= points


def test_equal_numbers_give_equal_files():
    first, second = (
        panel("p", "t", "c", [Line("a", [1.0, 10.0], [1.0, 100.0])], xlabel="x", log_x=True) for _ in range(2)
    )
    assert (first.svg, first.png) == (second.svg, second.png)
