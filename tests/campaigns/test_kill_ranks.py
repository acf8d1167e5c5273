"""Processes that gave each other up on a slow machine are given more time, as much as users give them, and no more."""

import pytest
from jobs import Ended
from kill_ranks import PATIENCE, Shared

from energy_flow_mlx.distributed import TIMEOUT


@pytest.mark.parametrize("said", ["no process has gone on for 30 s (--collective-timeout), since step 2", "rank 1 on a has not been heard of for 30 s"])
def test_patience_doubles_up_to_that_of_users(said, tmp_path):
    job, ended = Shared(tmp_path), [Ended(0, False, 1, "", 1.0), Ended(1, False, 1, f"error: {said}", 1.0)]
    given = [job.patience]
    while job.is_more_patient(ended):
        given.append(job.patience)
    assert given == [PATIENCE, 2 * PATIENCE, 4 * PATIENCE, 8 * PATIENCE, TIMEOUT]
    assert Shared(tmp_path).patience == TIMEOUT  # also of a campaign that goes on


def test_other_ends_are_not_of_time(tmp_path):
    job = Shared(tmp_path)
    assert not job.is_more_patient([Ended(1, False, 1, "error: rank 2 on a died at step 3", 1.0)])
    assert job.patience == PATIENCE
