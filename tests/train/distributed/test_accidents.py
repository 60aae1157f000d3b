"""What happens to runs of several processes, produced for real: nothing is lost, and the right process is named."""

import re

import pytest
from nursery import together
from test_replicated import difference, journal, weights

SMALL = {"what": "small", "steps": 12, "count": 2, "checkpoint_every": 5, "timeout": 4.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Accidents and what follows, in one nursery; by name, how the processes ended, and the folder."""
    place, planned = tmp_path_factory.mktemp("accidents"), {
        "whole": {},
        "die": {"happens": "die", "to": 1, "at": 17},
        "all die": {"happens": "die", "to": -1, "at": 13},
        "terminate": {"happens": "terminate", "to": 0, "at": 7},
        "terminate in the other": {"happens": "terminate", "to": 1, "at": 16},
        "hang": {"happens": "hang", "to": 1, "at": 8},
        "stop": {"happens": "stop", "to": 1, "at": 8},
        "nan": {"happens": "nan", "to": 1, "at": 6},
        "nan in a weight": {"happens": "nan in a weight", "to": 1, "at": 6},
    }  # fmt: skip
    first = [SMALL | {"folder": place / name, **how} for name, how in planned.items()]
    again = [SMALL | {"folder": place / name} for name in planned]
    ends = together(first + again)
    return {name: (ends[n], ends[n + len(planned)], place / name) for n, name in enumerate(planned)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["die", "all die", "terminate", "terminate in the other", "hang", "stop", "nan", "nan in a weight"]
)
def test_the_run_goes_on_as_if_nothing_had_happened(runs, name):
    first, again, folder = runs[name]
    assert any(end["status"] for end in first)
    assert [end["status"] for end in again] == [0, 0], again
    assert difference(folder, runs["whole"][2]) == 0.0
    steps = [line["global_step"] for line in journal(folder) if line["kind"] == "step"]
    assert steps == list(range(1, 25))


@pytest.mark.slow
def test_sigterm_to_one_lets_all_finish_the_step_and_save(runs):
    for name, step in (("terminate", 8), ("terminate in the other", 17)):
        first, _, folder = runs[name]
        assert [end["status"] for end in first] == [143, 143]
        resumed = [line for line in journal(folder) if line.get("event") == "resume"]
        assert resumed[0]["global_step"] == step


@pytest.mark.slow
def test_a_dead_process_ends_the_others_at_once(runs):
    (one, other), _, _ = runs["die"]
    assert other["status"] == -9
    assert one["status"] == 75
    assert "lost another one" in one["error"]
    assert "process 1 (pid" in one["error"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hang", "stop"])
def test_a_process_that_hangs_is_named(runs, name):
    (one, _), _, _ = runs[name]
    assert one["status"] == 75, one
    # A process that is stopped says no more; what it said last may be a second old.
    words = r"last heard of in .*\) does not answer" if name == "stop" else "in step 8 of stage 'sketch'\\).*in hang"
    assert re.search(rf"process 1 \(pid \d+ on \S+, {words}", one["error"]), one["error"]
    assert "process 0 (pid" not in one["error"]


@pytest.mark.slow
def test_a_nan_in_one_process_stops_all_and_is_named(runs):
    for name in ("nan", "nan in a weight"):
        first, _, folder = runs[name]
        assert [end["status"] for end in first] == [2, 2], first
        words = "stage 'sketch', step 6, update 'student': the loss of FlowMatching is nan (rows "
        assert all(words in end["error"] for end in first), first
        assert "in process 1 of 2" in first[0]["error"]
        assert weights(folder)
    assert "(rows [5], in process 1 of 2); the last good checkpoint is" in runs["nan"][0][0]["error"]
    assert "00000005" in runs["nan"][0][0]["error"]
    assert "(rows [1, 3, 5, 7, 9, 11, 13, 15], in process 1 of 2)" in runs["nan in a weight"][0][0]["error"]
