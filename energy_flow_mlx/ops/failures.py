"""MLX's errors about a custom kernel, explained: which op failed, and how to go on.

MLX compiles a kernel when its result is evaluated, far from the call that asked for it, and its errors are those of any graph. What
they say (mlx/backend/metal/device.cpp and custom_kernel.cpp) and how the kernel is found:

    Unable to build metal library from source    the compiler's report names OP/BODY/FILE:LINE, which `#line` in the source made so
    Unable to load kernel custom_kernel_…        the kernel's name begins with op and body
    maximum allowed threads per threadgroup      no name: the kernels that were launched with so many threads
    Command buffer execution failed              no name: nothing but a trial of each kernel by itself can tell
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..program import call_of

VARIABLE = "ENERGY_FLOW_KERNELS"

# In MLX's texts: the place of an error in a source, a kernel's name, and a group that is too large.
PLACE = re.compile(r"\b(\w+)/(\w+)/[\w.]+:\d+:\d+: (?:fatal )?error:")
NAME = re.compile(r"\b(?:custom_kernel_)?(\w+)_([a-z]+)_[0-9a-f]{12}")
TOO_MANY = re.compile(r"Thread group size \((\d+)\) is greater than\s+the maximum allowed threads per threadgroup \((\d+)\)")
LIBRARY, PIPELINE, BUFFER = "Unable to build metal library", "Unable to load kernel", "Command buffer execution failed"
MEMORY = "Insufficient Memory"  # of a command buffer: not a kernel's fault

Kernel = tuple[str, str]  # op and body
Template = tuple[tuple[str, Any], ...]
_launched: dict[Kernel, dict[Template, int]] = {}  # the threads of a group, by template


class KernelError(RuntimeError):
    """A kernel that was asked for cannot be built or run here; the text names it and says how to go on."""


def note_launch(op: str, body: str, template: Mapping[str, Any], group: int) -> None:
    """Keep what an error would have to name."""
    _launched.setdefault((op, body), {})[tuple(template.items())] = group


def forget_launches() -> None:
    """Forget the launches so far: an error after this call can only come from later ones."""
    _launched.clear()


@contextmanager
def kernel_errors() -> Iterator[None]:
    """Inside, errors that a custom kernel causes are KernelErrors, wherever the evaluation happens that raises them.

    Raises:
        KernelError: MLX could not compile, load or launch a kernel, or the GPU stopped.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        told = None if isinstance(error, KernelError) else explained(str(error))
        if told is None:
            raise
        raise KernelError(told) from error


def explained(message: str) -> str | None:
    """What an error of MLX means for the kernel that caused it, and how to go on; None if it is about no custom kernel."""
    if (found := TOO_MANY.search(message)) is not None:
        asked, allowed = found.groups()
        suspects = [kernel for kernel, groups in _launched.items() if int(asked) in groups.values()]
        what = f"asks for groups of {asked} threads where this GPU allows it {allowed}"
    elif LIBRARY in message or "does not compile as CUDA" in message:
        # Its place in a source that is ours; else its name, which the compiler mentions where a template is instantiated.
        suspects = _known(PLACE, message) or _known(NAME, message) or list(_launched)
        what = "does not compile here"
    elif PIPELINE in message and _known(NAME, message):
        suspects, what = _known(NAME, message), "compiles, but the GPU's driver cannot load it"
    elif BUFFER in message and MEMORY not in message and _launched:
        suspects, what = list(_launched), "may have stopped the GPU, which does not say which did"
    else:
        return None
    if not suspects:
        return None
    return f"{_named(suspects)} {what}:\n{message.strip()}\n{how_to_go_on(suspects)}"


def how_to_go_on(kernels: list[Kernel]) -> str:
    """Which settings take MLX's own graph instead of these kernels."""
    ops = sorted({op for op, _ in kernels})
    if len(ops) > 3:
        return f"Go on with {VARIABLE}=off (MLX's own graph for all ops); {call_of('doctor')} tries each kernel by itself."
    present = os.environ.get(VARIABLE, "auto")
    without = ",".join([present, *(f"-{op}" for op in ops)])
    return (
        f"Go on with {VARIABLE}={without} (MLX's own graph for {', '.join(ops)}) or {VARIABLE}=off (for all ops); "
        f"{call_of('doctor')} tries each kernel by itself and writes a report."
    )


def _known(pattern: re.Pattern[str], message: str) -> list[Kernel]:
    """The launched kernels that a message names."""
    return list(dict.fromkeys(kernel for kernel in pattern.findall(message) if kernel in _launched))


def _named(kernels: list[Kernel]) -> str:
    """In words, with the templates they were launched with."""
    if len(kernels) > 3:
        return f"one of {', '.join(sorted({op for op, _ in kernels}))}"
    texts = []
    for op, body in kernels:
        templates = [", ".join(f"{name}={_value(value)}" for name, value in template) for template in _launched[op, body]]
        texts.append(f"{op} ({body}; {' or '.join(filter(None, templates)) or 'no template'})")
    return " or ".join(texts)


def _value(value: Any) -> str:
    return str(value).removeprefix("mlx.core.")
