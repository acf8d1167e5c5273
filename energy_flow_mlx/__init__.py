"""The energy-flow model in MLX: texts become surfaces, surfaces become flows through a lattice, and flows become embeddings."""

# ruff: noqa: E402
import os

from .blas import prefer_system_blas

prefer_system_blas()  # before anything below imports MLX
# MLX reads this when CUDA is first used. In its graphs kernels run side by side and take each other's cache and bandwidth: on an
# H100 the gates' backward kernel took 322 us instead of 86, and a step of the experiment preset 40 ms instead of 31.
os.environ.setdefault("MLX_USE_CUDA_GRAPHS", "0")
try:
    import mlx.core  # noqa: F401
except ImportError as missing:
    if "libmlx" not in str(missing):
        raise
    raise ImportError(
        "MLX is installed without a backend, which on Linux is an extra of this package: pip install 'energy-flow-mlx[cpu]', or with an NVIDIA "
        "GPU 'energy-flow-mlx[cuda12]' or 'energy-flow-mlx[cuda13]'"
    ) from missing

from .comparison import Comparison, compare
from .config import ConfigError, EnergyConfig, ModelConfig, RunConfig
from .models.carrier import CarrierOutput, EnergyCarrier
from .models.collector import OutputCollector
from .models.energy_flow import EnergyFlow, EnergyFlowOutput
from .models.lattice import EnergyLattice, FlowState
from .models.mapper import EmbeddingMapper
from .models.neuron import SimpleNeuron
from .models.processor import FlowProcessor, FlowResult
from .models.text_decoder import CubeToTextDecoder
from .models.text_encoder import TextToCubeEncoder
from .models.trace import Trace
from .nn import GRUCell, MultiHeadAttention, PositionalEncoding, TransformerEncoder, TransformerEncoderLayer
from .results import Results
from .runs import Run
from .scores import Evaluation, Scores

__all__ = [
    "CarrierOutput",
    "Comparison",
    "ConfigError",
    "CubeToTextDecoder",
    "EmbeddingMapper",
    "EnergyCarrier",
    "EnergyConfig",
    "EnergyFlow",
    "EnergyFlowOutput",
    "EnergyLattice",
    "Evaluation",
    "FlowProcessor",
    "FlowResult",
    "FlowState",
    "GRUCell",
    "ModelConfig",
    "MultiHeadAttention",
    "OutputCollector",
    "PositionalEncoding",
    "Results",
    "Run",
    "RunConfig",
    "Scores",
    "SimpleNeuron",
    "TextToCubeEncoder",
    "Trace",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "compare",
]
