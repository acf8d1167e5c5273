"""Run MLX's custom Metal kernels on a CPU, with every memory access checked. See README.md in this folder."""

from .capture import Argument, KernelError, Launch
from .compile import KernelCompileError
from .finite_difference import finite_difference_vjp, mlx_in_float64
from .intercept import Session, capture, metal_on_cpu
from .mutation import Mutant, Outcome, mutants, mutation_outcomes, survivors
from .run import KernelFault, run

__all__ = [
    "Argument",
    "KernelCompileError",
    "KernelError",
    "KernelFault",
    "Launch",
    "Mutant",
    "Outcome",
    "Session",
    "capture",
    "finite_difference_vjp",
    "metal_on_cpu",
    "mlx_in_float64",
    "mutants",
    "mutation_outcomes",
    "run",
    "survivors",
]
