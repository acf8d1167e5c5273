"""Several processes train the run that one trains: over MLX's ring, on this machine."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from train.small import arrays, assert_same_arrays, small_config
from train.together import run
from train.together_worker import CONFIG, STEPS, fit

from energy_flow_mlx import ConfigError
from energy_flow_mlx.distributed import ALONE
from energy_flow_mlx.metrics import read_lines
from energy_flow_mlx.train import Trainer, memory

WORKER = Path(__file__).with_name("together_worker.py")
BOUND = 1e-5  # of losses, relative, and of weights, which are about 1; the orders of additions differ
ROUNDING_ALONE = "self_attn.key_proj.bias"  # the softmax cancels it: its gradient is rounding, which Adam scales up
OWN = ("samples_per_second", "peak_memory_bytes")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process, and its first two steps."""
    folder = tmp_path_factory.mktemp("alone")
    fit(folder / "whole", ALONE)
    fit(folder / "half", ALONE, config=CONFIG.replace(training_steps=2))
    return folder


def by_several(count, alone, folder):
    """`count` processes go on with a copy of the half run; two also divide its moments, and train runs of their own."""
    for name in ("half", "sharded"):
        shutil.copytree(alone / "half", folder / name)
    result = run(WORKER, count, folder)
    assert result.codes == [0] * count, result.err
    steps = [json.loads(out) for out in result.out]
    assert steps == [steps[0]] * count
    return steps[0], result.err


@pytest.fixture(scope="module")
def two(alone, tmp_path_factory):
    """Two processes: their folder, the steps of each of their runs, and what each said."""
    folder = tmp_path_factory.mktemp("two")
    return folder, *by_several(2, alone, folder)


def lines(folder):
    return [{name: value for name, value in line.items() if name not in OWN} for line in read_lines(folder)]


def assert_close(one, several):
    for a, b in zip(lines(one), lines(several), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=BOUND, abs=1e-9), (a["step"], name)
    saved, others = arrays(one), arrays(several)
    assert saved.keys() == others.keys()
    for name in (name for name in saved if name.startswith("model") and ROUNDING_ALONE not in name):
        np.testing.assert_allclose(others[name], saved[name], rtol=0, atol=BOUND, err_msg=name)


def test_the_run_has_everything_that_depends_on_the_whole_batch(alone):
    """Or the tests below would compare less than they say."""
    last = lines(alone / "whole")[-2]
    slots = CONFIG.surface_dim * CONFIG.batch_size * CONFIG.gradient_accumulation_steps
    assert last["overflowed"] > 0, "the budget of flows is divided among the samples"
    assert last["ended"] > slots, "children are born"
    assert last["arrival"] > 0


@pytest.mark.parametrize("name", ["whole", "half"])
def test_two_processes_train_as_one_and_go_on_with_a_run_of_one(alone, two, name):
    assert_close(alone / "whole", two[0] / name)


def test_four_processes_train_as_one_and_go_on_with_a_run_of_one(alone, tmp_path):
    steps, _ = by_several(4, alone, tmp_path)
    assert steps == [STEPS]
    assert_close(alone / "whole", tmp_path / "half")


def test_a_run_that_one_process_was_told_to_stop_is_saved_by_all_and_goes_on_with_the_same_bits(two):
    folder, steps, said = two
    assert steps == [STEPS, STEPS, STEPS, 3, STEPS], "all learn of it one step later"
    assert_same_arrays(arrays(folder / "whole"), arrays(folder / "stopped"))
    assert lines(folder / "whole")[-1] == lines(folder / "stopped")[-1]
    assert not any("stopping" in text for text in said), "only the first process would say it, and it was not the one"


def test_moments_that_are_divided_give_the_same_bits_and_a_checkpoint_of_one_process(two):
    assert_same_arrays(arrays(two[0] / "half"), arrays(two[0] / "sharded"))
    assert lines(two[0] / "half") == lines(two[0] / "sharded")


def test_one_process_has_nothing_to_divide(tmp_path):
    with pytest.raises(ConfigError, match="shard_optimiser=True is not accepted: .* this one is alone"):
        Trainer(small_config(), out=tmp_path / "run", shard_optimiser=True)


def test_a_batch_that_cannot_be_divided_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"batch_size=4 is not accepted: 3 processes share it equally.* multiple of 3"):
        memory.share(small_config(batch_size=4), 3)
    assert memory.share(small_config(batch_size=6), 3).batch_size == 2
