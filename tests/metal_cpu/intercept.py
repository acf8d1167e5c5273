"""Make `mx.fast.metal_kernel` work without Metal: each call is captured as MLX generates it, compiled and run on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from .capture import Launch, record_call
from .run import run

Edit = tuple[str, str]
_real_constructor: Any = mx.fast.metal_kernel
_CONSTRUCTOR_NAMES = (
    "name",
    "input_names",
    "output_names",
    "source",
    "header",
    "ensure_row_contiguous",
    "atomic_outputs",
    "compile_options",
)


@dataclass
class Session:
    """What happened inside one `metal_on_cpu` block."""

    checked: bool
    seed: int
    edit: Edit | None
    launches: list[Launch] = field(default_factory=list)
    edited: int = 0


_active: list[Session] = []


class _Kernel:
    """Stands where MLX's kernel object would. Outside a `metal_on_cpu` block it is MLX's own."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.real = _real_constructor(*arguments, **named)
        self.input_names: Sequence[str] = {**dict(zip(_CONSTRUCTOR_NAMES, arguments, strict=False)), **named}[
            "input_names"
        ]

    def __call__(self, **call: Any) -> list[mx.array]:
        if not _active:
            return self.real(**call)
        session = _active[-1]
        inputs = [x if isinstance(x, mx.array) else mx.array(x) for x in call["inputs"]]
        launch = record_call(self.real, inputs, {k: v for k, v in call.items() if k != "inputs"}, self.input_names)
        if session.edit is not None and session.edit[0] in launch.source:
            launch = launch.edited(*session.edit)
            session.edited += 1
        session.launches.append(launch)
        return _without_gradient(launch, session)(*inputs)


def _without_gradient(launch: Launch, session: Session) -> Any:
    """MLX cannot differentiate a CustomKernel: without this, results computed outside the graph would give silent zeros."""

    @mx.custom_function
    def evaluate(*arrays: mx.array) -> list[mx.array]:
        try:
            return run(launch, arrays, checked=session.checked, seed=session.seed)
        except ValueError as error:
            if "during function transformations" in str(error):
                raise RuntimeError(
                    f"{launch.name}: kernels run eagerly here; call it outside mx.compile and mx.vmap"
                ) from error
            raise

    @evaluate.vjp
    def refuse(primals: Any, cotangents: Any, outputs: Any) -> Any:
        raise RuntimeError(
            f"{launch.name}: a CustomKernel has no vjp; join forward and backward with mx.custom_function"
        )

    return evaluate


@contextmanager
def metal_on_cpu(
    *, checked: bool = True, seed: int = 0, edit: Edit | None = None, caches: Iterable[Any] = ()
) -> Iterator[Session]:
    """Inside the block, kernels made by `mx.fast.metal_kernel` run on this CPU. Eager only: no mx.compile, no mx.vmap.

    Args:
        checked, seed: as in `run`.
        edit: (old, new): change this one place in the generated source of every kernel that holds it. At least one must.
        caches: `functools.cache`d factories of kernels; cleared on the way in and out, since a kernel object made
            before the block is MLX's own and would refuse to run.

    Yields:
        The session; `session.launches` lists every kernel call as it was captured.
    """
    session = Session(checked, seed, edit)
    factories = list(caches)
    for factory in factories:
        factory.cache_clear()
    before, mx.fast.metal_kernel = mx.fast.metal_kernel, _Kernel
    _active.append(session)
    try:
        yield session
        if edit is not None and not session.edited:
            raise ValueError(f"no kernel that ran holds {edit[0]!r}: {[launch.name for launch in session.launches]}")
    finally:
        _active.pop()
        mx.fast.metal_kernel = before
        for factory in factories:
            factory.cache_clear()


def capture(fn: Callable[..., Any], *arrays: mx.array, caches: Iterable[Any] = ()) -> list[Launch]:
    """The kernel launches of `fn(*arrays)`, in order, with everything Metal would be given (see `Launch`)."""
    with metal_on_cpu(caches=caches) as session:
        mx.eval(fn(*arrays))
    return session.launches
