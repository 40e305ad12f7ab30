"""A few of the kills of tests/kills.py; `make soak` takes those marked `extended` too and draws many more.

tests/test_launch.py and tests/test_nodes.py hold others: a killed and a stopped rank, an idle agent, the guard, nodes
under load.
"""

import pytest
from kills import IDLE, LOAD, NODES, PIPELINE, START_UP, TENSOR, Kill, carry_out, expected, numbered

KILLS = [
    pytest.param(Kill("rank 1", LOAD, "SIGKILL", PIPELINE, 0.6), marks=pytest.mark.extended),
    pytest.param(Kill("agent 0", START_UP, "SIGKILL", TENSOR, 0.3, "weights", 1), marks=pytest.mark.extended),
    Kill("launcher", LOAD, "SIGKILL", TENSOR, 0.4),
    pytest.param(Kill("rank 0", LOAD, "SIGSTOP", PIPELINE, 0.9), marks=pytest.mark.extended),
    Kill("node 1", START_UP, "SIGKILL", NODES, 0.2, "import", 0),
]


@pytest.fixture(autouse=True)
def state_of_its_own(tmp_path, monkeypatch):
    """Runs and nodes of these tests are not those of whoever works on this machine."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_everyone_is_told_and_nothing_is_left_after(kill):
    outcome = carry_out(kill)
    print(outcome)
    assert not outcome.problems, "\n".join([str(kill), *outcome.problems])
    assert (outcome.answered is None) == (kill.moment == START_UP)


def test_a_seed_gives_the_same_kills_again_and_all_kinds_of_them():
    drawn = [numbered(7, number) for number in range(1, 401)]
    assert drawn == [numbered(7, number) for number in range(1, 401)]
    assert {(kill.target, kill.signal) for kill in drawn} >= {
        *((f"rank {rank}", signum) for rank in (0, 1) for signum in ("SIGKILL", "SIGSTOP")),
        *((f"agent {node}", signum) for node in (0, 1) for signum in ("SIGKILL", "SIGSTOP")),
        *(("launcher", signum) for signum in ("SIGKILL", "SIGTERM", "SIGINT")),
        ("rank 1", "SIGTERM"), ("guard", "SIGKILL"), ("link", "cut"), ("node 0", "SIGKILL"), ("node 1", "SIGKILL"),
    }  # fmt: skip
    assert {(kill.split, kill.moment) for kill in drawn} == {
        (split, moment) for split in (TENSOR, PIPELINE, NODES) for moment in (START_UP, IDLE, LOAD)
    }
    assert all(expected(kill)[0] != 0 for kill in drawn)
