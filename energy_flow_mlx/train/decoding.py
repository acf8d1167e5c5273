"""The text decoder that learns in a run: how it starts, and how many texts come back."""

import mlx.core as mx
import numpy as np

from ..config import EnergyConfig
from ..data.source import PairDataset
from ..models.energy_flow import EnergyFlow
from ..models.text_decoder import DecoderSettings
from ..nn.t5 import T5Settings
from ..text.rows import NO_TOKEN, framing
from ..text.search import Search
from ..text.tokeniser import Tokeniser

_ADAPTER = 4  # the adapter's inner width, in widths of the decoder
_FEEDFORWARD = 2  # and that of its gated feed-forward
TEXTS_DECODED = 200  # texts that a validation decodes


def decoder_settings(config: EnergyConfig, tokeniser: Tokeniser) -> DecoderSettings:
    """The sizes of a run's decoder, for texts of this tokeniser.

    Raises:
        ConfigError: the tokeniser does not frame its texts; see `framing`.
    """
    start, end = framing(tokeniser)
    t5 = T5Settings(
        vocab_size=tokeniser.vocab_size,
        dim=config.text_decoder_dim,
        layers=config.text_decoder_layers,
        heads=config.text_decoder_heads,
        head_dim=config.text_decoder_dim // config.text_decoder_heads,
        feedforward_dim=_FEEDFORWARD * config.text_decoder_dim,
        activation="gelu_new",
        gated=True,
        dropout=config.dropout,
    )
    return DecoderSettings(
        surface_dim=config.surface_dim,
        adapter_dim=_ADAPTER * config.text_decoder_dim,
        prefix=config.text_decoder_prefix,
        t5=t5,
        start=start,
        end=end,
        adapter_dropout=config.dropout,
    )


def exact_share(model: EnergyFlow, data: PairDataset, max_length: int) -> float:
    """Of the first TEXTS_DECODED target texts of `data` the share that comes back, token for token, from the teacher's embedding: the mapped
    surface, without flows, decoded greedily."""
    batch = data.batch(np.arange(min(TEXTS_DECODED, len(data))))
    assert batch.target_ids is not None and model.text_decoder is not None, "data_of_run gives both where a decoder learns"
    surface = model.map_to_surface(mx.array(batch.target_embedding))
    search = Search(num_beams=1, max_length=max_length)
    found = model.text_decoder.generate(surface.reshape(len(surface), -1), search)
    wanted = [row[row != NO_TOKEN][1:].tolist() for row in batch.target_ids]
    return float(np.mean([tokens == text for tokens, text in zip(found, wanted, strict=True)]))
