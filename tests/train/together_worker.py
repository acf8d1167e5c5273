"""The processes of tests/train/test_together.py: they train small runs together, and print how many steps each took as JSON.

    python together_worker.py COUNT FOLDER    FOLDER/half, FOLDER/sharded: a run of one process that stopped after two steps
"""

import json
import os
import signal
import sys
from pathlib import Path

from train.small import small_config
from train.together import fork

from energy_flow_mlx import EnergyConfig
from energy_flow_mlx.distributed import World, joined
from energy_flow_mlx.train import together
from energy_flow_mlx.train.callbacks import Callbacks
from energy_flow_mlx.train.interrupt import StopRequest
from energy_flow_mlx.train.prepare import prepare
from energy_flow_mlx.train.profile import Profile
from energy_flow_mlx.train.run import loop
from energy_flow_mlx.train.step import TrainStep

STEPS = 4
CONFIG = small_config(
    dropout=0.2,
    movement_based_spawn=True,
    spawn_movement_threshold_ratio=0.01,
    spawn_capacity=0.5,
    max_active_flows=32,  # of 4 * 6 first ones
    enable_displacement_filtering=True,
    min_displacement_threshold=0.02,
    arrival_loss_weight=0.1,
    gradient_accumulation_steps=2,
    batch_size=4,
    learning_rate_schedule="constant",
    training_steps=STEPS,
    validation_interval=2,
    checkpoint_interval=STEPS,
    validation_pairs=9,  # of which the last batch has one
    exploration_noise=0.1,
)


def fit(folder: Path, world: World, *, resume: bool = False, config: EnergyConfig = CONFIG, shard: bool = False) -> int:
    """Train to the last step, or until a signal; the steps done."""
    if world.first:
        run = prepare(config, folder, resume=resume)
        run = together.lead(world, run, shard)
    else:
        run = together.follow(world)
    loop(run, Profile(None), True, Callbacks(()), StopRequest(tells=world.first), world)
    return run.state.step


def interrupted_at(step: int) -> None:
    """From now on this process gets a SIGTERM when it launches step `step`."""
    original = TrainStep.launch

    def launch(self, number, batches, rate):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, batches, rate)

    TrainStep.launch = launch


def main() -> None:
    folder = Path(sys.argv[2])
    with joined(timeout=30) as world:
        steps = [fit(folder / "half", world, resume=True)]
        if world.size == 2:
            steps += [fit(folder / "whole", world), fit(folder / "sharded", world, resume=True, shard=True)]
            if world.rank == 1:
                interrupted_at(1)
            steps += [fit(folder / "stopped", world), fit(folder / "stopped", world, resume=True)]
        print(json.dumps(steps))
        world.leave(0)


if __name__ == "__main__":
    fork(main, int(sys.argv[1]), Path(sys.argv[2]))
