"""Mixed precision: master weights stay float32, a module computes with copies in another dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..ops.cast import cast

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
    names, weights = zip(*tree_flatten(own), strict=True)
    module.update(tree_unflatten(list(zip(names, cast(weights, dtype), strict=True))))
    try:
        yield
    finally:
        module.update(own)
