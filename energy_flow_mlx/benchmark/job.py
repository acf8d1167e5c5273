"""The child process of one measurement: `python -m energy_flow_mlx.benchmark.job JOB.json RESULT.json`."""

import sys
from pathlib import Path

from ..config import ConfigError
from ..ops.failures import KernelError, kernel_errors
from ..strict_json import read_json, write_json
from .measure import measure_ceilings, measure_model
from .scaling import measure_scaling
from .scenarios import measure_scenario
from .stages import measure_stages
from .sweep import measure_sweep

KINDS = {
    "forward": measure_model,
    "training": measure_model,
    "ceilings": measure_ceilings,
    "scaling": measure_scaling,
    "stages": measure_stages,
    "sweep": measure_sweep,
    "scenario": measure_scenario,
}

if __name__ == "__main__":
    job = read_json(Path(sys.argv[1]))
    try:
        with kernel_errors():
            result = KINDS[job["what"]](job)
    except (KernelError, ConfigError) as error:
        sys.exit(f"error: {error}")
    write_json(Path(sys.argv[2]), result)
