"""The energy-flow model in MLX: texts become surfaces, surfaces become flows through a lattice, and flows become embeddings."""

# ruff: noqa: E402
from .blas import prefer_system_blas

prefer_system_blas()  # before anything below imports MLX

from .config import ConfigError, EnergyConfig
from .models.carrier import CarrierOutput, EnergyCarrier
from .models.collector import OutputCollector
from .models.energy_flow import EnergyFlow, EnergyFlowOutput
from .models.lattice import EnergyLattice, FlowState
from .models.mapper import EmbeddingMapper
from .models.neuron import SimpleNeuron
from .models.processor import FlowProcessor, FlowResult
from .models.text_encoder import TextToCubeEncoder
from .nn import GRUCell, MultiHeadAttention, PositionalEncoding, TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "CarrierOutput",
    "ConfigError",
    "EmbeddingMapper",
    "EnergyCarrier",
    "EnergyConfig",
    "EnergyFlow",
    "EnergyFlowOutput",
    "EnergyLattice",
    "FlowProcessor",
    "FlowResult",
    "FlowState",
    "GRUCell",
    "MultiHeadAttention",
    "OutputCollector",
    "PositionalEncoding",
    "SimpleNeuron",
    "TextToCubeEncoder",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]
