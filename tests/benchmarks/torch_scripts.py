"""The torch baseline as modules: its scripts are no package, and import each other as neighbours."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))

import torch_baseline
import torch_model

__all__ = ["torch_baseline", "torch_model"]
