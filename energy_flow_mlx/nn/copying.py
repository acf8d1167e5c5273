"""`copy.deepcopy` and `pickle` of models: what MLX's own types lack for it. Both are constants, which a copy shares by their names."""

import copyreg

import mlx.core as mx
import mlx.nn as nn

copyreg.pickle(mx.Dtype, lambda dtype: str(dtype).rpartition(".")[2])  # mlx.core.float32
copyreg.pickle(type(nn.gelu), lambda function: function.__name__)  # functions that MLX compiled
