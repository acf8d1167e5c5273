"""T5's decoder agrees with transformers': logits, every gradient, buckets; and its cache with itself."""

import re

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from models.parity import assert_close
from models.t5 import KINDS, ours, prefixes, torch_t5
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5Attention as TorchAttention

from energy_flow_mlx.models.decoder_files import torch_key
from energy_flow_mlx.nn import RMSNorm, T5Decoder, T5Settings
from energy_flow_mlx.nn.t5 import bucket_numbers

IDS = np.random.default_rng(1).integers(0, 23, (3, 30))


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_logits_and_gradients(kind: str, vectors: int, training: bool) -> None:
    """In training mode, without dropout, other code computes the attention and the products.

    The gradients of these models are ill-conditioned: float32 alone is off by up to 2.5e-4 of the largest, torch's as ours. So they are
    compared with torch's in float64, for a model where ours are within 3e-5.
    """
    theirs = torch_t5(1, **KINDS[kind], dropout_rate=0.0)
    decoder = ours(theirs)
    theirs = theirs.double()
    decoder.train(training)
    for module in decoder.modules():
        if "Dropout" in type(module).__name__:
            module._p_1 = 1.0
    given = prefixes(3, vectors, theirs.config.d_model)
    prefix = torch.tensor(given, dtype=torch.float64, requires_grad=True)
    wanted = theirs(encoder_outputs=BaseModelOutput(prefix), decoder_input_ids=torch.tensor(IDS)).logits
    cotangent = np.random.default_rng(2).standard_normal(wanted.shape).astype(np.float32)
    (wanted * torch.tensor(cotangent)).sum().backward()

    def loss(parameters: dict, prefix: mx.array) -> mx.array:
        decoder.update(parameters)
        return mx.sum(decoder(mx.array(IDS), prefix) * mx.array(cotangent))

    assert_close("logits", decoder(mx.array(IDS), mx.array(given)), wanted.detach())
    gradients, by_prefix = mx.grad(loss, argnums=(0, 1))(decoder.parameters(), mx.array(given))
    assert_close("prefix", by_prefix, prefix.grad)
    parameters = dict(theirs.named_parameters())
    named = {torch_key(f"decoder.{name}").removeprefix("t5_model."): value for name, value in tree_flatten(gradients)}
    assert set(named) == {name for name in parameters if not name.startswith("encoder.")}
    for name, gradient in named.items():
        assert_close(name, gradient, parameters[name].grad)
    # One vector gets all the attention, whatever the query.
    blind = {name for name in named if re.search(r"EncDecAttention\.[qk]|layer\.1\.layer_norm", name)}
    without = {name for name in named if parameters[name].grad.abs().max() < 1e-4}
    assert without == (blind if vectors == 1 else set())


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (7, 12), (2, 2), (64, 1000), (16, 64)])
def test_buckets(buckets: int, longest: int) -> None:
    distances = torch.arange(longest + 1)
    wanted = TorchAttention._relative_position_bucket(-distances, False, buckets, longest)
    assert np.array_equal(bucket_numbers(buckets, longest), wanted.numpy())


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_changes_nothing(kind: str, vectors: int) -> None:
    theirs = torch_t5(**KINDS[kind])
    decoder = ours(theirs)
    prefix = mx.array(prefixes(3, vectors, theirs.config.d_model))
    whole = np.array(decoder(mx.array(IDS), prefix))
    step, cache = decoder.start(prefix, room=IDS.shape[1] + 3)
    shapes = [array.shape for _, array in tree_flatten(cache)]
    for position in range(IDS.shape[1]):
        logits, cache = step(mx.array(IDS[:, position]), mx.array(position), cache)
        assert np.abs(np.array(logits) - whole[:, position]).max() < 1e-5 * np.abs(whole).max()
        assert [array.shape for _, array in tree_flatten(cache)] == shapes


def test_a_token_sees_no_later_one() -> None:
    theirs = torch_t5()
    decoder, prefix = ours(theirs), mx.array(prefixes(3, 1, 16))
    changed = IDS.copy()
    changed[:, 20:] = 5
    before, after = (np.array(decoder(mx.array(ids), prefix)) for ids in (IDS, changed))
    assert np.array_equal(before[:, :20], after[:, :20]) and not np.allclose(before[:, 20:], after[:, 20:])


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_it_computes_in_the_dtype_of_the_prefix(dtype: mx.Dtype) -> None:
    decoder, prefix = ours(torch_t5()), mx.array(prefixes(3, 1, 16))
    wanted, logits = decoder(mx.array(IDS), prefix), decoder(mx.array(IDS), prefix.astype(dtype))
    assert logits.dtype == dtype
    error = np.abs(np.array(logits.astype(mx.float32)) - np.array(wanted)).max()
    assert 0 < error < 0.1 * np.abs(np.array(wanted)).max()


def test_dropout_is_on_while_training() -> None:
    decoder = T5Decoder(T5Settings(vocab_size=23, dim=16, layers=1, heads=2, head_dim=4, feedforward_dim=20))
    ids, prefix = mx.array(IDS), mx.array(prefixes(3, 1, 16))
    assert not np.allclose(np.array(decoder(ids, prefix)), np.array(decoder(ids, prefix)))
    decoder.eval()
    assert np.array_equal(np.array(decoder(ids, prefix)), np.array(decoder(ids, prefix)))


@pytest.mark.parametrize("tied", [True, False])
def test_initial_weights_are_t5s(tied: bool) -> None:
    mx.random.seed(0)
    settings = T5Settings(vocab_size=500, dim=96, layers=1, heads=4, head_dim=32, feedforward_dim=200, tied=tied, gated=not tied)
    decoder = T5Decoder(settings)
    deviation = {name: float(mx.std(array)) for name, array in tree_flatten(decoder.parameters()) if array.ndim == 2}
    wanted = {"query_proj": (96 * 32) ** -0.5, "key_proj": 96**-0.5, "value_proj": 96**-0.5, "out_proj": 128**-0.5, "wi": 96**-0.5,
              "wi_0": 96**-0.5, "wi_1": 96**-0.5, "wo": 200**-0.5, "token_embedding": 1.0, "head": 96**-0.5, "position_bias": 96**-0.5}  # fmt: skip
    for name, value in deviation.items():
        assert value == pytest.approx(wanted[name.split(".")[-2]], rel=0.15), name


def test_rms_norm_keeps_the_dtype() -> None:
    x = mx.array(prefixes(1, 2, 8))
    norm = RMSNorm(8)
    for dtype in (mx.float32, mx.bfloat16):
        assert norm(x.astype(dtype)).dtype == dtype
