"""The stages of a step by name: what a trace tells apart, and where numbers stop being finite."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import mlx.core as mx

from ..models.collector import OutputCollector
from ..models.lattice import EnergyLattice
from ..models.mapper import EmbeddingMapper
from ..models.step import FlowStep
from ..models.text_encoder import TextToCubeEncoder
from .optimiser import named_arrays

Stage = tuple[Any, str, str]  # an owner, the attribute that holds the function, the stage's name

# Functions that give arrays.
STAGES: tuple[Stage, ...] = (
    (EmbeddingMapper, "map_to_surface", "mapper"),
    (EnergyLattice, "place_initial_energy", "place"),
    (FlowStep, "features", "neuron"),
    (FlowStep, "recur", "GRU"),
    (FlowStep, "steer", "heads"),
    (FlowStep, "move", "advance"),
    (EnergyLattice, "collect", "collect"),
    (OutputCollector, "collect", "collector"),
    (TextToCubeEncoder, "__call__", "text encoder"),
)


@contextmanager
def wrapped(stages: Sequence[Stage], wrap: Callable[[Callable[..., Any], str], Callable[..., Any]]) -> Iterator[None]:
    """Inside, each stage's function is `wrap(function, name)`, and nothing runs compiled, as one piece that has no stages."""
    with ExitStack() as stack:
        mx.disable_compile()
        stack.callback(mx.enable_compile)
        for where, attribute, name in stages:
            original = getattr(where, attribute)
            setattr(where, attribute, wrap(original, name))
            stack.callback(setattr, where, attribute, original)
        yield


def first_not_finite(forward: Callable[[], Any]) -> str:
    """The first stage of `forward` whose output holds NaN or infinity; "" if none does. Each stage is waited for."""
    found: list[str] = []

    def checking(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            if not found and not_finite(result):
                found.append(name)
            return result

        return call

    with wrapped(STAGES, checking):
        forward()
    return found[0] if found else ""


def not_finite(tree: Any) -> list[str]:
    """The names of the arrays in a tree that hold NaN or infinity; waits for them."""
    finite = {name: mx.all(mx.isfinite(array)) for name, array in named_arrays(tree).items() if isinstance(array, mx.array)}
    mx.eval(finite)
    return [name for name, whole in finite.items() if not whole.item()]
