"""The table of a run's speed, from a journal whose medians are known."""

from made_up import full_journal

from hidistill.report.speed import paced, plots, table


def lines():
    def step(stage, number, **pace):
        return {"kind": "step", "stage": stage, "step": number, "global_step": number, "seconds": 0.5, "pace": pace}

    rates = {"samples_per_second": 64.0, "utilization": 0.25, "data_share": 0.0125, "flops_per_second": 3e9}
    return [
        step("sketch", 1, **rates, memory_mib=100.0),
        step("sketch", 2, **rates | {"samples_per_second": 66.0}, memory_mib=300.0),
        step("sketch", 3, **rates | {"samples_per_second": 1.0}, memory_mib=200.0),
        step("<refine>", 1, samples_per_second=8.0),
        {"kind": "probe", "stage": "sketch", "global_step": 3, "fd": 1.0},
    ]


def test_medians_and_the_high_water_mark():
    page = table(lines())
    for cell in ("<td>64</td>", "<td>25.0&nbsp;%</td>", "<td>1.25&nbsp;%</td>", "<td>300</td>", "<td>3</td>", "0.5"):
        assert cell in page
    assert "&lt;refine&gt;" in page
    assert "tokens" not in page
    assert [len(steps) for steps in paced(lines()).values()] == [3, 1]


def test_a_line_for_each_stage():
    (plot,) = plots(lines())
    assert "sketch" in plot.svg
    assert plot.png[:4] == b"\x89PNG"


def test_a_journal_of_an_earlier_version_has_none():
    earlier = [{name: value for name, value in line.items() if name != "pace"} for line in full_journal(steps=5)]
    assert table(earlier) == ""
    assert plots(earlier) == []
