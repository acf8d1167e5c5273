"""What a part of a batch draws and may have is what the whole batch has there."""

import mlx.core as mx
import numpy as np
import pytest

from energy_flow_mlx import EnergyConfig
from energy_flow_mlx.models.lattice import EnergyLattice
from energy_flow_mlx.nn import Dropout
from energy_flow_mlx.place import own_rows, sharing, whole


def dropped(x):
    mx.random.seed(7)
    return np.array(Dropout(0.5)(x))


@pytest.mark.parametrize("size", [2, 3])
def test_a_part_of_a_batch_has_the_dropout_of_the_whole_one(size):
    x = mx.ones((6, 5, 3))
    parts = []
    for rank in range(size):
        with sharing(rank, size):
            parts.append(dropped(x[rank * 6 // size : (rank + 1) * 6 // size]))
    np.testing.assert_array_equal(np.concatenate(parts), dropped(x))
    assert {0.0, 2.0} == set(dropped(x).ravel().tolist())


def test_alone_dropout_is_that_of_mlx():
    x = mx.random.normal((4, 8), key=mx.random.key(1))
    mx.random.seed(7)
    theirs = np.array(mx.random.bernoulli(0.5, x.shape)) * np.array(x) * 2
    np.testing.assert_array_equal(dropped(x), theirs)


def test_own_rows_keep_no_memory_of_the_others():
    mx.clear_cache()
    before = mx.get_active_memory()
    with sharing(3, 8):
        rows = own_rows(lambda shape: mx.random.normal(shape, key=mx.random.key(0)), (64, 1024))
        mx.eval(rows)
    assert rows.shape == (64, 1024)
    assert mx.get_active_memory() - before < 2 * rows.nbytes


def test_the_room_for_flows_is_that_of_the_whole_batch():
    lattice = EnergyLattice(EnergyConfig.tiny().replace(max_active_flows=64 * 4))
    surface = mx.zeros((2, 64))
    with sharing(0, 2):
        assert whole(2) == 4
        lattice.place_initial_energy(surface)
    with sharing(0, 3), pytest.raises(ValueError, match="a batch of 6 surfaces"):
        lattice.place_initial_energy(surface)
    assert whole(2) == 2
