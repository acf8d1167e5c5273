"""EnergyFlow: the model from embedding or text to embedding."""

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
from ..nn.precision import DTYPES
from ..nn.quantised import BITS, QuantisedMatrix
from ..tensors import check_shapes
from ..text.tokeniser import Tokeniser
from .carrier import EnergyCarrier
from .collector import OutputCollector
from .initial import carry_energy
from .mapper import EmbeddingMapper
from .neuron import SimpleNeuron
from .processor import FlowProcessor, FlowResult
from .text_encoder import TextToCubeEncoder

_FILES = ("config.json", "model.safetensors")


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

    def __call__(
        self,
        embeddings: mx.array,
        *,
        steps: int | None = None,
        key: mx.array | None = None,
        training_step: int | mx.array | None = None,
    ) -> EnergyFlowOutput:
        """Embeddings [B, E] through the lattice. For `steps` and `key` see FlowProcessor.

        training_step: where the displacement schedule stands; None: where this model's training stopped.
        """
        here = self.trained_steps if training_step is None else training_step
        out = self._from_surface(self.map_to_surface(embeddings), steps, key, here)
        return out._replace(embedding=embeddings + out.embedding) if self.config.input_residual else out

    def _from_surface(
        self, surface: mx.array, steps: int | None, key: mx.array | None, training_step: int | mx.array | None
    ) -> EnergyFlowOutput:
        """What surfaces [B, S] or [B, H, W] become; the embedding is without that of the input."""
        if self.config.flows_enabled:
            flow = self.processor(surface, steps=steps, key=key, training_step=training_step)
        else:
            flow = self.processor.left_out(surface)
        embedding = self.collector.collect(flow.surface.astype(self._dtype)).astype(mx.float32)
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
        training = self.training
        self.eval()
        try:
            if teacher is not None:
                return self(self._embedded("texts", checked, teacher)).embedding
            surface = self.text_encoder.encode(checked).astype(mx.float32)
            return self._from_surface(surface, None, None, self.trained_steps).embedding
        finally:
            self.train(training)

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
        return np.concatenate([_unit(self.predict(checked[at : at + batch_size], teacher)) for at in starts])

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
        known = _unit(self._embedded("among", candidates, teacher))
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
        nn.quantize(self, bits=bits)

    @property
    def _dtype(self) -> mx.Dtype:
        return DTYPES[self.config.compute_dtype]

    def map_to_surface(self, embeddings: mx.array) -> mx.array:
        """Embeddings [B, E] -> surfaces [B, H, W], computed in `compute_dtype`, float32."""
        return self.mapper.map_to_surface(embeddings.astype(self._dtype)).astype(mx.float32)

    def text_to_surface(self, input_ids: mx.array, attention_mask: mx.array) -> mx.array:
        """Token ids [B, T], mask [B, T] (non-zero: a token) -> surfaces [B, S] float32, computed in `compute_dtype`."""
        return self.text_encoder(input_ids, attention_mask).astype(mx.float32)

    def save_weights_with_steps(self, path: str | os.PathLike[str]) -> None:
        """Write model.safetensors: every parameter, and in its metadata `trained_steps` and, if quantised, `quantised_bits`."""
        metadata = {"format": "mlx", "trained_steps": str(self.trained_steps)}
        if self.quantised_bits:
            metadata["quantised_bits"] = str(self.quantised_bits)
        mx.save_safetensors(str(path), dict(tree_flatten(self.parameters())), metadata=metadata)

    def writers(self) -> dict[str, Callable[[Path], Any]]:
        """The files of a model folder, each with the function that writes it to a path, as `files.write_folder` takes them."""
        writers: dict[str, Callable[[Path], Any]] = {
            "config.json": self.config.to_json,
            "model.safetensors": self.save_weights_with_steps,
        }
        if self.text_encoder.tokeniser is not None:
            writers["tokenizer.json"] = self.text_encoder.tokeniser.save
        return writers

    def save_pretrained(self, folder: str | os.PathLike[str], *, push_to_hub: str | None = None) -> None:
        """Write config.json, model.safetensors and, if there is a tokeniser, tokenizer.json: all or nothing.

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
        model = cls(read_config(resolve(folder, "config.json")))
        path = resolve(folder, "model.safetensors")
        loaded = mx.load(str(path), return_metadata=True)
        weights, metadata = cast(tuple[dict[str, mx.array], dict[str, str]], loaded)
        if "quantised_bits" in metadata:
            model.quantise(_bits_in(path, metadata["quantised_bits"]))
        parameters = dict(tree_flatten(model.parameters()))
        found, wanted = ({name: array.shape for name, array in tree.items()} for tree in (weights, parameters))
        check_shapes(path, found, wanted)
        model.load_weights(list(weights.items()))
        model.trained_steps = int(metadata.get("trained_steps", 0))
        tokeniser = resolve(folder, "tokenizer.json")
        if tokeniser.is_file():
            model.text_encoder.tokeniser = Tokeniser.from_file(tokeniser)
            check_fit(model.config, str(tokeniser), vocab_size=model.text_encoder.tokeniser.vocab_size)
        model.eval()
        mx.eval(model.parameters())
        return model


def model_folder(spec: str | os.PathLike[str]) -> Path:
    """The folder of a model, `spec` itself or, for the hub id OWNER/NAME, the hub's cache.

    What lies beside folders that exist is a folder, not an id: a missing runs/tiny is not looked for on the hub if there is a runs/.

    Raises:
        FileNotFoundError: the folder or one of its files is missing, or the download failed.
        ValueError: the repository lacks a file.
    """
    from ..model_files import is_repository, locate

    name, folder = os.fspath(spec), Path(spec)
    if is_repository(name) and not folder.parent.exists():
        try:
            return locate("folder", name, [*_FILES, "tokenizer.json"])
        except ValueError:  # the repository of a model without a tokeniser
            return locate("folder", name, _FILES)
    for file in _FILES:
        if not resolve(folder, file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing: a model folder holds {' and '.join(_FILES)}")
    return folder


def _bits_in(path: Path, text: str) -> int:
    accepted = [str(bits) for bits in BITS]
    if text not in accepted:
        raise ValueError(f"{path}: quantised_bits in its metadata is {text[:80]!r}; accepted are {', '.join(accepted)}")
    return int(text)


def _unit(embeddings: mx.array) -> NDArray[np.float32]:
    """Rows scaled to length 1; a row of zeros stays one."""
    rows = np.array(embeddings, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
