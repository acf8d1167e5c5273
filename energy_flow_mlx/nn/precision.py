"""Mixed precision: master weights stay float32, a module computes with copies in another dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ..ops.kernel import as_type

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@contextmanager
def weights_in(module: nn.Module, dtype: mx.Dtype) -> Iterator[None]:
    """Inside, the parameters of `module` are copies in `dtype`; afterwards its own arrays are back.

    Gradients pass through the copies to the arrays that the module has outside. Within another such block nothing is copied again.
    """
    if dtype == mx.float32:
        yield
        return
    own = module.parameters()
    module.update(tree_map(lambda weight: as_type(weight, dtype), own))
    try:
        yield
    finally:
        module.update(own)
