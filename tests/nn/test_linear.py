"""Linear: mlx.nn's, with its gradient in the weight's own layout; weight_in: a copy whose gradient keeps its dtype."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from energy_flow_mlx.nn import Linear
from energy_flow_mlx.nn.precision import weight_in


def gradients(layer: nn.Module, x: mx.array) -> dict[str, mx.array]:
    def loss(layer: nn.Module, x: mx.array) -> mx.array:
        return mx.sum(mx.sin(layer(x)))

    own = nn.value_and_grad(layer, loss)(layer, x)[1]
    return {**dict(tree_flatten(own)), "x": mx.grad(lambda x: loss(layer, x))(x)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5), (5,)])
def test_linear_is_that_of_mlx(bias: bool, shape: tuple[int, ...]) -> None:
    layer, theirs = Linear(5, 7, bias=bias), nn.Linear(5, 7, bias=bias)
    theirs.update(layer.parameters())
    x = mx.random.normal(shape, key=mx.random.key(0))
    np.testing.assert_allclose(np.array(layer(x)), np.array(theirs(x)), atol=1e-6)
    own, wanted = gradients(layer, x), gradients(theirs, x)
    assert own.keys() == wanted.keys()
    for name, gradient in wanted.items():
        np.testing.assert_allclose(np.array(own[name]), np.array(gradient), atol=1e-6, err_msg=name)


def test_the_gradient_of_a_weight_lies_in_memory_as_the_weight() -> None:
    x = mx.random.normal((4, 5), key=mx.random.key(0))
    for layer, row_by_row in ((Linear(5, 7), True), (nn.Linear(5, 7), False)):
        gradient = gradients(layer, x)["weight"]
        mx.eval(gradient)
        assert memoryview(gradient).c_contiguous == row_by_row  # type: ignore[arg-type]


def test_the_gradient_of_a_copied_weight_has_the_dtype_of_the_copy() -> None:
    weight = mx.random.normal((3, 4), key=mx.random.key(0))

    def loss(weight: mx.array) -> mx.array:
        return mx.sum(mx.sin(weight_in(weight, mx.bfloat16, training=True)))

    gradient = mx.grad(loss)(weight)
    assert gradient.dtype == mx.bfloat16
    wanted = mx.grad(lambda weight: mx.sum(mx.sin(weight.astype(mx.bfloat16))))(weight)
    assert wanted.dtype == mx.float32
    assert mx.array_equal(gradient.astype(mx.float32), wanted)
    assert weight_in(weight, mx.float32, training=True) is weight


@pytest.mark.parametrize("dtypes", [(mx.bfloat16, mx.float32), (mx.float32, mx.bfloat16)])
def test_gradients_have_the_dtypes_of_what_they_belong_to(dtypes: tuple[mx.Dtype, mx.Dtype]) -> None:
    of_x, of_weights = dtypes
    layer = Linear(5, 7)
    layer.set_dtype(of_weights)
    found = gradients(layer, mx.random.normal((4, 5)).astype(of_x))
    assert found["x"].dtype == of_x
    assert found["bias"].dtype == of_weights
    assert found["weight"].dtype == of_x  # of the product: a 16-bit gradient of a float32 weight stays in 16 bits
