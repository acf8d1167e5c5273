"""A converted text decoder generates what transformers generates from the same weights, and goes back to torch whole."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from convert.conftest import Refused
from convert.decoders import CELLS, LETTERS, TorchDecoder, save_with_decoder, t5_tokeniser
from models.parity import assert_close
from models.t5 import KINDS, torch_generate
from safetensors.numpy import load_file, save_file

from energy_flow_mlx import EnergyFlow, export_torch_checkpoint
from energy_flow_mlx.convert.__main__ import main
from energy_flow_mlx.text.search import Search

SURFACE = np.random.default_rng(0).uniform(-1, 1, (4, CELLS)).astype(np.float32)
WEIGHTS = Path(__file__).parents[2] / "weights/golden"


def convert(decoder: TorchDecoder, base: Path) -> Path:
    assert main([*save_with_decoder(decoder, base), "--to", str(base / "model")]) == 0
    return base / "model"


@pytest.fixture(scope="module")
def original() -> TorchDecoder:
    return TorchDecoder(7, **KINDS["gated, untied"])


@pytest.fixture(scope="module")
def converted(original: TorchDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(original, tmp_path_factory.mktemp("decoder"))


@pytest.mark.parametrize("kind", ["gated, untied", "relu, tied"])
def test_the_texts_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    decoder = TorchDecoder(7, **KINDS[kind])
    model = EnergyFlow.from_pretrained(convert(decoder, tmp_path))
    with torch.no_grad():
        prefix = decoder.surface_adapter(torch.tensor(SURFACE))[:, None].numpy()
    assert_close("adapter", model.text_decoder.adapt(mx.array(SURFACE)), prefix)
    tokenizer = t5_tokeniser()
    for beams in (1, 3):
        options = {"num_beams": beams, "max_length": 10}
        tokens = torch_generate(decoder.t5_model, prefix, **options)
        assert model.text_decoder.generate(mx.array(SURFACE), Search(**options)) == tokens
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
        assert model.decode(mx.array(SURFACE), **options) == texts
        assert model.decode(mx.array(SURFACE.reshape(4, 3, 4)), **options) == texts
    assert any(set(text) & set(LETTERS) for text in texts)


def test_tokens_beyond_the_tokeniser_have_no_text(converted: Path, original: TorchDecoder) -> None:
    model = EnergyFlow.from_pretrained(converted)
    model.text_decoder.tokeniser = type(model.text_decoder.tokeniser)(t5_tokeniser("ab"))
    tokens = model.text_decoder.generate(mx.array(SURFACE), Search(max_length=10))
    assert any(id > 4 for row in tokens for id in row)
    assert [set(text) <= set("ab ") for text in model.decode(mx.array(SURFACE), max_length=10)] == [True] * 4


def test_an_embedding_is_decoded_by_its_mapped_surface(converted: Path) -> None:
    model = EnergyFlow.from_pretrained(converted)
    embedding = mx.random.normal((3, model.config.embedding_dim), key=mx.random.key(0))
    assert model.decode(embedding=embedding, max_length=5) == model.decode(model.map_to_surface(embedding), max_length=5)
    with pytest.raises(ValueError, match=r"embeddings: shape \(0, 10\) came"):
        model.decode(embedding=embedding[:0])


@pytest.mark.parametrize("saved_again", [False, True])
def test_it_goes_back_to_torch(saved_again: bool, converted: Path, original: TorchDecoder, tmp_path: Path) -> None:
    folder = converted
    if saved_again:
        folder = tmp_path / "again"
        EnergyFlow.from_pretrained(converted).save_pretrained(folder)
        for name in ("text_decoder.safetensors", "text_decoder.json", "text_decoder_tokenizer.json"):
            assert (folder / name).is_file()
        first, second = (load_file(each / "text_decoder.safetensors") for each in (converted, folder))
        assert first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
    assert main([str(folder), "--to-torch", "--to", str(tmp_path / "t")]) == 0
    state = torch.load(tmp_path / "t/checkpoint.pt", weights_only=True)["text_decoder_state_dict"]
    fresh = TorchDecoder(1, **KINDS["gated, untied"])
    fresh.load_state_dict(state, strict=True)
    wanted = original.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_the_decoder_is_in_files_of_its_own(converted: Path, tmp_path: Path) -> None:
    model = EnergyFlow.from_pretrained(converted)
    assert model.text_decoder is not None
    model.save_pretrained(tmp_path)
    assert not any("decoder" in name for name in load_file(tmp_path / "model.safetensors"))
    model.quantise(8)
    assert not any(hasattr(module, "bits") for module in model.text_decoder.modules())


def test_a_safetensors_file_with_a_copy_for_a_head_is_tied(tmp_path: Path) -> None:
    """A file of tensors does not say which are shared."""
    arguments = save_with_decoder(TorchDecoder(0), tmp_path)
    export = tmp_path / "export"
    assert export_torch_checkpoint.main([arguments[0], str(export), *arguments[1:3]]) == 0
    tensors = load_file(export / "model.safetensors")
    shared = tensors["text_decoder.t5_model.shared.weight"]
    copies = {f"text_decoder.t5_model.{name}.weight": shared for name in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens")}
    save_file(tensors | copies, tmp_path / "all.safetensors")
    assert main([str(tmp_path / "all.safetensors"), "--config", str(export / "config.json"), "--to", str(tmp_path / "m")]) == 0
    assert EnergyFlow.from_pretrained(tmp_path / "m").text_decoder.settings.t5.tied


def test_the_tokeniser_gives_the_ids(golden: Path, tmp_path: Path) -> None:
    words = str(golden / "tokenizer.json")
    arguments = [str(golden / "checkpoint.pt"), "--mapper", str(golden / "mapper.safetensors"), "--tokenizer", words]
    assert main([*arguments, "--decoder-tokenizer", words, "--to", str(tmp_path / "m")]) == 0
    record = json.loads((tmp_path / "m/text_decoder.json").read_text())
    assert record["eos_token_id"] == 3 and "eos_token_id" not in record["assumed"]
    decoder = EnergyFlow.from_pretrained(tmp_path / "m").text_decoder
    recorded = {name.removeprefix("text_decoder."): value for name, value in load_file(golden / "modules.safetensors").items() if "text_decoder" in name}
    surface = mx.array(recorded["in"])
    assert_close("adapted", decoder.adapt(surface)[:, 0], recorded["adapted"])
    assert_close("logits", decoder(surface, mx.array(recorded["decoder_input_ids"])), recorded["logits"])
    for name, beams in (("greedy_ids", 1), ("beam3_ids", 3)):
        assert decoder.generate(surface, Search(num_beams=beams, max_length=12)) == recorded[name][:, 1:].tolist()


def test_the_committed_weights_decode() -> None:
    model = EnergyFlow.from_pretrained(WEIGHTS)
    assert model.text_decoder.settings.end == 3
    texts = model.decode(mx.random.uniform(-1, 1, (2, 30), key=mx.random.key(0)), max_length=6)
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize(
    ("letters", "named"),
    [("abcdefghijklmnopqrstuvwxyz", ("29 entries", "23 rows")), (None, ("no end token", "</s>"))],
)
def test_a_tokeniser_that_does_not_fit_is_refused(letters: str | None, named: tuple[str, ...], tmp_path: Path, refused: Refused) -> None:
    arguments = save_with_decoder(TorchDecoder(0), tmp_path)
    if letters:
        t5_tokeniser(letters).save(str(tmp_path / "t5.json"))
    else:
        text = (tmp_path / "words.json").read_text().replace("[SEP]", "[END]")
        (tmp_path / "t5.json").write_text(text)
    error = refused(Path(arguments[0]), *arguments[1:])
    assert "t5.json" in error and all(word in error for word in named)


def test_a_tokeniser_without_a_decoder_is_refused(files: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    t5_tokeniser().save(str(tmp_path / "t5.json"))
    error = refused(files[0], "--mapper", files[1], "--decoder-tokenizer", tmp_path / "t5.json")
    assert "no text decoder" in error and "t5.json" in error


def change(folder: Path, **fields: object) -> None:
    path = folder / "text_decoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"surface_dim": 11}, ("surface_adapter.0.weight", "11")),
        ({"num_heads": 0}, ("num_heads", "from 1 to", "got 0")),
        ({"d_model": "16"}, ("d_model", "'16'")),
        ({"vocab_size": 30}, ("token_embedding", "30")),
        ({"feed_forward_proj": "gated-silly"}, ("feed_forward_proj", "gated-silly", "relu")),
        ({"feed_forward_proj": None}, ("feed_forward_proj", "None")),
        ({"layer_norm_epsilon": 0}, ("layer_norm_epsilon",)),
        ({"eos_token_id": 23}, ("eos_token_id", "23")),
        ({"relative_attention_max_distance": 4}, ("relative_attention_max_distance", "from 5 to", "got 4")),
        ({"num_decoder_layers": 3}, ("num_decoder_layers is 3", "the file has 2")),
        ({"tie_word_embeddings": True, "feed_forward_proj": "relu"}, ("wi", "missing")),
    ],
)
def test_a_record_that_does_not_fit_is_refused(fields: dict, named: tuple[str, ...], converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "m"))
    change(folder, **fields)
    with pytest.raises(ValueError) as error:
        EnergyFlow.from_pretrained(folder)
    assert "text_decoder." in str(error.value) and all(word in str(error.value) for word in named)


def test_files_that_do_not_go_together_are_refused(converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "m"))
    t5_tokeniser("abcdefghijklmnopqrstuvwxyz").save(str(folder / "text_decoder_tokenizer.json"))
    with pytest.raises(ValueError, match="text_decoder_tokenizer.json.*29.*23"):
        EnergyFlow.from_pretrained(folder)
    (folder / "text_decoder_tokenizer.json").unlink()
    model = EnergyFlow.from_pretrained(folder)
    with pytest.raises(ValueError, match="text_decoder_tokenizer.json"):
        model.decode(mx.array(SURFACE))
    # A decoder of another lattice.
    for name in ("text_decoder.json", "text_decoder.safetensors"):
        shutil.copy(WEIGHTS / name, folder / name)
    with pytest.raises(ValueError, match="text_decoder.json.*30 cells"):
        EnergyFlow.from_pretrained(folder)
    (folder / "text_decoder.safetensors").write_bytes((WEIGHTS / "text_decoder.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="text_decoder.safetensors"):
        EnergyFlow.from_pretrained(folder)
    (folder / "text_decoder.json").unlink()
    with pytest.raises(FileNotFoundError, match="text_decoder.json"):
        EnergyFlow.from_pretrained(folder)
