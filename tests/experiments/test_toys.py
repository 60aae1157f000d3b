"""Cells of the two studies of points in the plane: each kind trains, and gives the numbers that its table shows."""

import pytest

from hidistill.experiments.studies import capacity, propositions

OBJECTIVES = ("meanflow", "discrete consistency", "continuous consistency", "progressive", "regression")
METHODS = sorted({variant.arguments["method"] for variant in capacity.STUDY.grids["full"].variants} - {"teacher"})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_networks_of_the_propositions_come_nearer_to_the_mean_velocity(name):
    before, after = (
        propositions.network(seed=0, objective=name, length=length, width=16.0)["error"] for length in (0.0, 40.0)
    )
    assert after < before


def test_every_method_on_the_way_from_rectangle_to_semicircle_comes_nearer_to_the_teachers_end(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "PAIRS", 512)
    monkeypatch.setattr(capacity, "ENDS", 256)

    def measured(method, length):
        folder = tmp_path / "cells" / f"{method}-{length}" / "0"
        return capacity.cell(seed=0, folder=folder, method=method, width=16, length=length, teacher_length=60)

    for method in METHODS:
        few, many = measured(method, 4), measured(method, 60)
        assert many["end"] < few["end"]
        assert {"end", "target", "off", "weights"} == set(many)
    one, four = measured("teacher", 1), measured("teacher", 4)
    assert four["end"] < one["end"]
