"""EnergyFlow: the model from embedding or text to embedding, and to text."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from ..checks import check_int, check_texts
from ..config import ModelConfig, check_fit, read_config
from ..files import resolve, write_folder
from ..nn import blank_weights
from ..nn.mode import evaluating
from ..nn.precision import DTYPES
from ..nn.quantised import BITS, QuantisedMatrix
from ..tensors import check_shapes
from ..text.search import Search
from ..text.tokeniser import Tokeniser
from .carrier import EnergyCarrier
from .collector import OutputCollector
from .corrector_files import RECORD as CORRECTOR_RECORD
from .corrector_files import TENSORS as CORRECTOR_TENSORS
from .corrector_files import corrector_writers, read_corrector
from .decoder_files import RECORD, TENSORS, decoder_writers, read_decoder
from .energy_flow_files import Weights, model_folder, read_weights, save_weights
from .initial import carry_energy
from .mapper import EmbeddingMapper
from .neuron import SimpleNeuron
from .processor import FlowProcessor, FlowResult
from .shapes import Array, as_array, as_rows, expect_rows, expect_shape, unit_rows
from .text_corrector import TextCorrector, correct
from .text_decoder import CubeToTextDecoder
from .text_encoder import TextToCubeEncoder
from .trace import Trace, record

NEIGHBOURS = 8  # likely tokens that correction tries in each place
BESIDE = ("text_decoder.", "text_corrector.")  # parameters with files of their own


class EnergyFlowOutput(NamedTuple):
    """embedding [B, E]; surface [B, S], the collected energies; flow: its counts; start [B, S], the energies of the first flows."""

    embedding: mx.array
    surface: mx.array
    flow: FlowResult
    start: mx.array


class TextEmbedder(Protocol):
    """What embeds texts for a model: a teacher, as `data.open_teacher` opens it."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """N texts -> [N, E]."""
        ...


class Neighbour(NamedTuple):
    """A text that was found, its number among those searched, and the cosine with what was looked for."""

    text: str
    number: int
    cosine: float


class EnergyFlow(nn.Module):
    """Embedding -> surface -> flows -> surface -> embedding, and text -> surface beside it.

    Weights start at random from `mx.random`; seed it first for a reproducible model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.neuron = SimpleNeuron(config.neuron_hidden_dim, config.neuron_output_dim)
        self.carrier = EnergyCarrier(config)
        ends = config.embedding_dim, config.lattice_width, config.lattice_height, config.dropout
        self.mapper, self.collector = EmbeddingMapper(*ends), OutputCollector(*ends)
        if config.initial_weights == "carrying":
            carry_energy(self.mapper, self.carrier, config)
        if config.input_residual:
            last = self.collector.reconstruction[-1]
            last.weight, last.bias = mx.zeros_like(last.weight), mx.zeros_like(last.bias)
        self.text_encoder = TextToCubeEncoder(config)
        self.processor = FlowProcessor(config, self.neuron, self.carrier)
        # Saved with the weights: a trained model moves its flows with the displacement scale its training ended with.
        self.trained_steps = 0
        # What turns surfaces into texts, where there is one. It has files of its own, which `text_decoder.json` describes.
        self.text_decoder: CubeToTextDecoder | None = None
        self.text_corrector: TextCorrector | None = None  # and what makes such a text better

    def __call__(
        self,
        embeddings: Array,
        *,
        steps: int | None = None,
        key: mx.array | None = None,
        training_step: int | mx.array | None = None,
    ) -> EnergyFlowOutput:
        """Embeddings [B, E] through the lattice: an array of MLX or NumPy, or lists. For `steps` and `key` see FlowProcessor.

        training_step: where the displacement schedule stands; None: where this model's training stopped.

        Raises:
            TypeError, ValueError: they are texts or no numbers, or have another shape, or there is none; or as FlowProcessor.
        """
        embeddings = as_array("embeddings", embeddings)
        surface = self.map_to_surface(embeddings)
        return self.from_surface(surface, embeddings, steps=steps, key=key, training_step=training_step)

    def from_surface(
        self,
        surface: mx.array,
        embeddings: mx.array | None = None,
        *,
        steps: int | None = None,
        key: mx.array | None = None,
        training_step: int | mx.array | None = None,
    ) -> EnergyFlowOutput:
        """Surfaces [B, S] or [B, H, W], of embeddings or texts, through the lattice. For the other arguments see `__call__`.

        embeddings: [B, E], the inputs; needed with `input_residual` alone, which adds them to what the collector reads.
        """
        if self.config.input_residual and embeddings is None:
            raise ValueError("embeddings: None came; with input_residual the output is what the flows add to the input embeddings")
        here = self.trained_steps if training_step is None else training_step
        if self.config.flows_enabled:
            flow = self.processor(surface, steps=steps, key=key, training_step=here)
        else:
            flow = self.processor.left_out(surface)
        embedding = self.collector.collect(flow.surface.astype(self._dtype)).astype(mx.float32)
        if self.config.input_residual and embeddings is not None:
            embedding = embeddings + embedding
        return EnergyFlowOutput(embedding, flow.surface, flow, surface.reshape(flow.surface.shape))

    def predict(self, texts: Sequence[str], teacher: TextEmbedder | None = None) -> mx.array:
        """The embeddings [B, E] that the model expects of the texts that belong to these, in evaluation mode, as one batch.

        Args:
            texts: B texts.
            teacher: the one that the model was trained with, which embeds them. None: the model's own text encoder makes the surfaces
                that its flows start from, which takes a model without `input_residual`.

        Raises:
            TypeError, ValueError: texts are not accepted, the teacher's embeddings have another size, or there is no teacher where the
                model needs one; or as `TextToCubeEncoder.encode`.
        """
        checked = check_texts("texts", texts)
        if teacher is None and self.config.input_residual:
            raise ValueError(
                "teacher: None came, but this model adds its input's embedding to its output (input_residual): give the teacher it was "
                "trained with, such as energy_flow_mlx.data.open_teacher('builtin')"
            )
        if not checked:
            return mx.zeros((0, self.config.embedding_dim))
        with evaluating(self):
            if teacher is not None:
                return self(self._embedded("texts", checked, teacher)).embedding
            surface = self.text_encoder.encode(checked).astype(mx.float32)
            return self.from_surface(surface).embedding

    def embed(
        self, texts: Sequence[str], teacher: TextEmbedder | None = None, *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """`predict` for any number of texts, in batches: embeddings [N, E] of length 1, so that their products are cosines.

        Raises:
            TypeError, ValueError: as `predict`, or the batch size is not accepted.
        """
        check_int("batch_size", batch_size, 1)
        checked = check_texts("texts", texts)
        starts = range(0, len(checked), batch_size) or (0,)
        return np.concatenate([unit_rows(self.predict(checked[at : at + batch_size], teacher)) for at in starts])

    def nearest(
        self, texts: Sequence[str], among: Sequence[str], teacher: TextEmbedder, *, count: int = 1, batch_size: int = 64
    ) -> list[list[Neighbour]]:
        """Of each text the `count` texts of `among` whose embeddings are nearest to what the model predicts, the nearest first.

        Args:
            teacher: the one that the model was trained with: predictions are in the space of its embeddings.

        Raises:
            TypeError, ValueError: as `embed`; `among` holds no text; or `count` is not accepted.
        """
        check_int("count", count, 1)
        candidates = check_texts("among", among)
        if not candidates:
            raise ValueError("among must hold at least one text, got none")
        known = unit_rows(self._embedded("among", candidates, teacher))
        cosines = self.embed(texts, teacher, batch_size=batch_size) @ known.T  # [N, M]
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        return [
            [Neighbour(among[at], int(at), float(row[at])) for at in best] for row, best in zip(cosines, order, strict=True)
        ]

    def _embedded(self, argument: str, texts: list[str], teacher: TextEmbedder) -> mx.array:
        embeddings = teacher.embed(texts)
        if embeddings.shape != (len(texts), self.config.embedding_dim):
            raise ValueError(
                f"teacher: its embeddings of {len(texts)} {argument} have shape {tuple(embeddings.shape)}, this model takes "
                f"({len(texts)}, {self.config.embedding_dim})"
            )
        return mx.array(embeddings)

    @property
    def quantised_bits(self) -> int:
        """Bits of a number in the quantised matrices; 0 where none is quantised."""
        return next((module.bits for module in self.modules() if isinstance(module, QuantisedMatrix)), 0)

    def quantise(self, bits: int) -> None:
        """Quantise, for inference, every matrix that takes less memory so; a quantised model cannot be trained.

        Args:
            bits: of a number, 4 or 8.

        Raises:
            ValueError: other bits, or the model is quantised already.
        """
        if bits not in BITS:
            raise ValueError(f"bits={bits!r} is not accepted: it takes {' or '.join(map(str, BITS))}")
        if self.quantised_bits:
            raise ValueError(f"the model is quantised already, to {self.quantised_bits} bits")
        nn.quantize(self, bits=bits, class_predicate=lambda name, module: hasattr(module, "to_quantized") and not name.startswith(BESIDE))

    @property
    def _dtype(self) -> mx.Dtype:
        return DTYPES[self.config.compute_dtype]

    def trace(
        self,
        inputs: Sequence[str] | Array,
        *,
        steps: int | None = None,
        training_step: int | mx.array | None = None,
        limit_gb: float = 1.0,
    ) -> Trace:
        """Where the flows of texts or embeddings go, step by step, in evaluation mode: no dropout, no noise.

        Args:
            inputs: texts, whose surfaces the text encoder makes, or embeddings [B, E], whose surfaces the mapper makes.
            steps, training_step: as in `__call__`.
            limit_gb: the most that the trace may take; 22 bytes a flow and step.

        Raises:
            TypeError, ValueError: an input is not accepted, the trace would take more (the message says how much), or the model has no
                flows.
        """
        if not self.config.flows_enabled:
            raise ValueError("flows_enabled is off: this model has no flows to trace")
        texts = check_texts("inputs", inputs) if _are_texts(inputs) else []
        with evaluating(self):
            surface = self.text_encoder.encode(texts).astype(mx.float32) if texts else self.map_to_surface(inputs)
        here = self.trained_steps if training_step is None else training_step
        return record(self.processor, surface, texts=texts, steps=steps, training_step=here, limit_gb=limit_gb)

    def map_to_surface(self, embeddings: Array) -> mx.array:
        """Embeddings [B, E] -> surfaces [B, H, W], computed in `compute_dtype`, float32."""
        embeddings = as_array("embeddings", embeddings)
        expect_shape("embeddings", embeddings, (None, self.config.embedding_dim))
        expect_rows("embeddings", embeddings)
        return self.mapper.map_to_surface(embeddings.astype(self._dtype)).astype(mx.float32)

    def text_to_surface(self, input_ids: Array, attention_mask: Array) -> mx.array:
        """Token ids [B, T], mask [B, T] (non-zero: a token) -> surfaces [B, S] float32, computed in `compute_dtype`."""
        return self.text_encoder(input_ids, attention_mask).astype(mx.float32)

    def decode(
        self,
        surface: mx.array | None = None,
        *,
        embedding: Array | None = None,
        rounds: int = 0,
        neighbours: int = NEIGHBOURS,
        teacher: TextEmbedder | None = None,
        search: Search | None = None,
        **settings: Any,
    ) -> list[str]:
        """Surfaces or embeddings -> texts.

        Args:
            surface: [B, S] or [B, H, W].
            embedding: [B, E], in place of a surface: its mapped surface is decoded, without flows.
            rounds: of correction at most, by the model's text corrector, towards `embedding` or what the collector reads of `surface`.
            neighbours: see `correct`.
            teacher: the one that the model was trained with; needed for correction.
            search: how texts are looked for; or its fields as arguments: num_beams=1, max_length=20, …

        Raises:
            ValueError: this model has no text decoder; surfaces of another size, or with NaN or infinity; both or none of `surface` and
                `embedding`; a search that is not accepted; or as `correct`.
        """
        search = Search(**settings) if search is None else dataclasses.replace(search, **settings)
        if self.text_decoder is None:
            raise ValueError(f"text_decoder: this model has none; a folder that has one holds {RECORD} and {TENSORS}")
        if (surface is None) == (embedding is None):
            raise ValueError("decode takes either a surface or embedding=, " + ("none came" if surface is None else "both came"))
        if embedding is not None:
            embedding = as_array("embedding", embedding)
            expect_shape("embedding", embedding, (None, self.config.embedding_dim))
            surface = self.map_to_surface(embedding)
        rows = as_rows("surface", cast(mx.array, surface), self.config.lattice_width, self.config.lattice_height)
        check_int("rounds", rounds, 0)
        if rounds and embedding is None and self.config.input_residual:
            raise ValueError(
                f"rounds={rounds} came with a surface alone, but this model adds its input's embedding to what it reads of one "
                "(input_residual): decode without rounds, then correct(texts, wanted, teacher)"
            )
        with evaluating(self):
            texts = self.text_decoder.decode(rows.astype(mx.float32), search)
            if not rounds:
                return texts
            if embedding is None:
                embedding = self.collector.collect(rows.astype(self._dtype)).astype(mx.float32)
        return self.correct(texts, embedding, teacher, rounds=rounds, neighbours=neighbours, search=search)

    def correct(
        self,
        texts: Sequence[str],
        wanted: Array,
        teacher: TextEmbedder | None,
        *,
        rounds: int = 20,
        neighbours: int = NEIGHBOURS,
        search: Search | None = None,
    ) -> list[str]:
        """Texts whose embeddings are nearer to the wanted ones. Each round writes candidates, embeds them with the teacher and keeps the
        nearest; a text that a round does not improve is done.

        Args:
            texts: B texts to begin with, as `decode` gives them.
            wanted: [B, E].
            teacher: the one that the model was trained with.
            rounds: at most.
            neighbours: where no candidate is nearer, a round tries the texts that differ in one token: with one left out, or with one of
                so many likely ones in its stead or before it. 0: it does not.
            search: how candidates are looked for; each beam gives one.

        Raises:
            ValueError: this model has no text corrector, there is no teacher, or sizes do not fit.
        """
        if self.text_corrector is None or self.text_decoder is None:
            raise ValueError(f"text_corrector: this model has none; a folder that has one holds {CORRECTOR_RECORD} and {CORRECTOR_TENSORS}")
        if teacher is None:
            raise ValueError("teacher: None came; correction embeds its texts with the teacher that the model was trained with")
        check_int("rounds", rounds, 0)
        check_int("neighbours", neighbours, 0, self.text_corrector.settings.t5.vocab_size - 1)
        wanted = as_array("wanted", wanted)
        expect_shape("wanted", wanted, (len(texts), self.config.embedding_dim))
        known, tokeniser = teacher, self.text_decoder.fitting_tokeniser()
        with evaluating(self):
            return correct(
                self.text_corrector, tokeniser, lambda some: unit_rows(self._embedded("texts", list(some), known)), unit_rows(wanted), texts,
                search or Search(), rounds=rounds, neighbours=neighbours,
            )  # fmt: skip

    def flow_parameters(self) -> dict[str, mx.array]:
        """The parameters by name, without those of text decoder and corrector, which have files of their own."""
        parameters: dict[str, mx.array] = dict(tree_flatten(self.parameters()))
        return {name: array for name, array in parameters.items() if not name.startswith(BESIDE)}

    def save_weights_with_steps(self, path: str | os.PathLike[str]) -> None:
        """Write model.safetensors: `flow_parameters`, and in its metadata `trained_steps` and, if quantised, `quantised_bits`."""
        save_weights(path, Weights(self.flow_parameters(), self.trained_steps, self.quantised_bits))

    def writers(self) -> dict[str, Callable[[Path], Any]]:
        """The files of a model folder, each with the function that writes it to a path, as `files.write_folder` takes them."""
        writers: dict[str, Callable[[Path], Any]] = {
            "config.json": self.config.to_json,
            "model.safetensors": self.save_weights_with_steps,
        }
        if self.text_encoder.tokeniser is not None:
            writers["tokenizer.json"] = self.text_encoder.tokeniser.save
        if self.text_decoder is not None:
            writers |= decoder_writers(self.text_decoder)
        if self.text_corrector is not None:
            writers |= corrector_writers(self.text_corrector)
        return writers

    def save_pretrained(self, folder: str | os.PathLike[str], *, push_to_hub: str | None = None) -> None:
        """Write config.json, model.safetensors and, where there are a tokeniser and a text decoder, their files: all or nothing.

        Args:
            push_to_hub: OWNER/NAME: also upload them to this repository of the hub. `python -m energy_flow_mlx.upload` adds a model card.

        Raises:
            ValueError: `push_to_hub` is no OWNER/NAME.
            OSError: a file cannot be written, or the upload failed.
        """
        from ..model_files import check_repository, publish

        if push_to_hub is not None:
            check_repository("push_to_hub", push_to_hub)
        writers = self.writers()
        write_folder(folder, writers)
        if push_to_hub is not None:
            publish(push_to_hub, {name: Path(folder) / name for name in writers}, message="An energy-flow model")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "EnergyFlow":
        """The model in a folder that `save_pretrained`, training or conversion wrote, or in a repository of the hub, in evaluation mode.

        Args:
            folder: or OWNER/NAME, whose files are downloaded once and then taken from the hub's cache.

        Raises:
            FileNotFoundError: the folder or one of its files is missing, or the download failed.
            ValueError: weights and configuration do not fit, or the repository holds no model; names the tensors or files.
        """
        folder = model_folder(folder)
        config = read_config(resolve(folder, "config.json"))
        path = resolve(folder, "model.safetensors")
        weights = read_weights(path, config)  # refuses another number of layers before they are built
        with blank_weights():
            model = cls(config)
        if weights.quantised_bits:
            model.quantise(weights.quantised_bits)
        parameters = dict(tree_flatten(model.parameters()))
        found, wanted = ({name: array.shape for name, array in tree.items()} for tree in (weights.arrays, parameters))
        check_shapes(path, found, wanted)
        model.load_weights(list(weights.arrays.items()))
        model.trained_steps = weights.trained_steps
        tokeniser = resolve(folder, "tokenizer.json")
        if tokeniser.is_file():
            model.text_encoder.tokeniser = Tokeniser.from_file(tokeniser)
            check_fit(model.config, str(tokeniser), vocab_size=model.text_encoder.tokeniser.vocab_size)
        mx.eval(model.parameters())
        model.text_decoder = decoder = read_decoder(folder)
        if decoder is not None:
            check_fit(model.config, str(folder / RECORD), surface_dim=decoder.settings.surface_dim)
        model.text_corrector = corrector = read_corrector(folder)
        if corrector is not None:
            check_fit(model.config, str(folder / CORRECTOR_RECORD), embedding_dim=corrector.settings.embedding_dim)
        model.eval()
        return model


def _are_texts(inputs: Any) -> bool:
    """A list of texts, or a text alone, which `check_texts` refuses by name."""
    return isinstance(inputs, str) or (isinstance(inputs, Sequence) and any(isinstance(each, str) for each in inputs))
