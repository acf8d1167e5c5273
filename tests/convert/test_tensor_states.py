"""Tensors in every state that torch.save keeps: read as torch reads them, or refused by name, in every reader of .pt files."""

import contextlib
import io
import json
import pickle
import tracemalloc
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert.checkpoints import ODD, Modules, checkpoint
from safetensors.torch import load_file

from energy_flow_mlx import export_torch_checkpoint as script
from energy_flow_mlx.convert.__main__ import main
from energy_flow_mlx.convert.source import read_source
from energy_flow_mlx.dataset.formats import pack

Refused = Callable[..., str]
KEY = "neuron.layers.0.bias"
BASE = torch.arange(1.0, 6.0)  # of KEY's shape
PAIR = torch.complex(BASE, BASE + 1)
READ = {
    "plain": BASE,
    "parameter": torch.nn.Parameter(BASE.clone()),
    "buffer": torch.nn.Buffer(BASE.clone()),
    "with gradient": BASE.clone().requires_grad_(),
    "negative": PAIR.conj().imag,
    "negative of every second": torch.view_as_complex(torch.arange(20.0).view(10, 2)).conj().imag[::2],
    "every second": torch.arange(10.0)[::2],
    "behind an offset": torch.arange(12.0)[7:],
    "overlapping": torch.arange(12.0).as_strided((5,), (1,), 3),
    "float64": BASE.double(),
    "float16": BASE.half(),
    "bfloat16": BASE.bfloat16(),
}
ROWS = torch.arange(2.0, 7.0)
REFUSED = {
    "is larger than its data": torch.zeros(1).expand(5),
    "is larger than its data in": torch.zeros(1).expand(2**42),
    "is larger": torch.complex(torch.ones(1), torch.ones(1)).conj().imag.expand(5),
    "is sparse or nested": BASE.to_sparse(),
    "is sparse": ROWS.view(1, 5).to_sparse_csr(),
    "is sparse or": torch.nested.nested_tensor([BASE, BASE]),
    "has no data in the file (its device is meta)": BASE.to("meta"),
    "is quantised": torch.quantize_per_tensor(BASE, 0.5, 0, torch.qint8),
    "is torch.complex64": PAIR.conj(),
    "is torch.bool": BASE > 2,
    "is torch.int8": BASE.to(torch.int8),
    "is torch.uint16": BASE.to(torch.uint16),
    "is torch.float8_e4m3fn": BASE.to(torch.float8_e4m3fn),
}


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return checkpoint(Modules(ODD), ODD)


def with_bias(good: dict[str, Any], tensor: torch.Tensor) -> dict[str, Any]:
    return {**good, "model_state_dict": {**good["model_state_dict"], KEY: tensor}}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("tensor", READ.values(), ids=READ.keys())
def test_weights_are_those_that_torch_reads(tensor: torch.Tensor, zipped: bool, good: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save(with_bias(good, tensor), path, _use_new_zipfile_serialization=zipped)
    wanted = torch.load(path, weights_only=True)["model_state_dict"][KEY].detach().resolve_neg()
    assert np.array_equal(read_source(path, None, None, True).tensors[KEY], wanted.float().numpy())
    assert script.main([str(path), str(tmp_path / "out")]) == 0
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")[KEY], wanted)
    # A pack's embeddings, and a mapper's weights.
    rows = tensor.view(1, -1) if tensor.is_contiguous() else tensor[None]
    torch.save({"input_embeddings": rows, "target_embeddings": rows}, path, _use_new_zipfile_serialization=zipped)
    assert np.array_equal(pack.load(path).inputs, wanted[None].float().numpy())
    torch.save({"input_mapper.a": tensor}, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(script.load_mapper(path)["input_mapper.a"], wanted)


@pytest.mark.parametrize(("words", "tensor"), REFUSED.items(), ids=REFUSED.keys())
def test_what_has_no_plain_values_is_refused_by_name(
    words: str, tensor: torch.Tensor, good: dict[str, Any], tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.pt"
    torch.save(with_bias(good, tensor), path)
    assert f"model_state_dict: {KEY} {words}" in refused(path)
    assert script.main([str(path), str(tmp_path / "out")]) == 2
    assert f"{KEY} {words}" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pt"]
    torch.save({"input_mapper.a": tensor}, path)
    with pytest.raises(ValueError, match="the file: input_mapper.a is|the file: input_mapper.a has no data"):
        script.load_mapper(path)
    if tensor.is_floating_point() and tensor.element_size() > 1 and not tensor.is_nested:
        rows = tensor if tensor.layout == torch.sparse_csr else tensor[None] if tensor.layout == torch.strided else tensor.unsqueeze(0)
        torch.save({"input_embeddings": rows, "target_embeddings": torch.ones(1, 5)}, path)
        with pytest.raises(ValueError, match="input_embeddings (is|has no data)"):
            script.load_pack(path)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("tensor", [BASE.to("meta"), torch.zeros(1).expand(5), PAIR.conj()], ids=["meta", "expanded", "complex"])
def test_moments_too(name: str, tensor: torch.Tensor, files: tuple[Path, Path], refused: Refused) -> None:
    state = torch.load(files[0], weights_only=True)
    state["optimizer_state_dict"]["state"][3][name] = tensor
    torch.save(state, files[0])
    assert f"optimizer_state_dict: {KEY}.{name} " in refused(files[0])


def test_negative_moments_and_records_keep_their_sign(files: tuple[Path, Path], tmp_path: Path) -> None:
    state = torch.load(files[0], weights_only=True)
    state["optimizer_state_dict"]["state"][3]["exp_avg"] = PAIR.conj().imag
    state["best_loss"] = PAIR.conj().imag
    torch.save(state, files[0])
    source = read_source(files[0], None, None, True)
    assert np.array_equal(source.moments[f"{KEY}.exp_avg"], -(BASE + 1).numpy())
    assert source.training["best_loss"] == [-2.0, -3.0, -4.0, -5.0, -6.0]


@pytest.mark.parametrize("device", ["cuda:0", "mps", "xla:1", "privateuseone:0"])
def test_weights_from_another_device(device: str, good: dict[str, Any], tmp_path: Path) -> None:
    torch.save(good, tmp_path / "c.pt")
    place = b"X" + len(device).to_bytes(4, "little") + device.encode()
    with zipfile.ZipFile(tmp_path / "c.pt") as there, zipfile.ZipFile(tmp_path / "device.pt", "w") as here:
        for entry in there.infolist():
            content = there.read(entry)
            assert b"X\3\0\0\0cpu" in content or not entry.filename.endswith("data.pkl")
            here.writestr(entry, content.replace(b"X\3\0\0\0cpu", place))
    found = read_source(tmp_path / "device.pt", None, None, True).tensors[KEY]
    assert np.array_equal(found, good["model_state_dict"][KEY].numpy())


def test_numbers_of_the_other_byte_order(good: dict[str, Any], tmp_path: Path) -> None:
    torch.save(good, tmp_path / "c.pt")
    wanted = good["model_state_dict"][KEY]
    with zipfile.ZipFile(tmp_path / "c.pt") as little, zipfile.ZipFile(tmp_path / "big.pt", "w") as big:
        for entry in little.infolist():
            content = little.read(entry)
            if entry.filename.endswith("byteorder"):
                content = b"big"
            elif "/data/" in entry.filename:
                content = np.frombuffer(content, "<f4").byteswap().tobytes()
            big.writestr(entry, content)
    assert np.array_equal(read_source(tmp_path / "big.pt", None, None, True).tensors[KEY], wanted.numpy())


def test_weights_that_share_storage_are_read_until_they_take_twice_the_file(good: dict[str, Any], tmp_path: Path, refused: Refused) -> None:
    state = with_bias(good, BASE)
    state["model_state_dict"]["neuron.layers.3.bias"] = BASE  # tied
    torch.save(state, tmp_path / "c.pt")
    assert np.array_equal(read_source(tmp_path / "c.pt", None, None, True).tensors["neuron.layers.3.bias"], BASE.numpy())
    rows = torch.zeros(10**5)
    state["model_state_dict"] |= {f"neuron.{index}": rows for index in range(40)}
    torch.save(state, tmp_path / "c.pt")
    assert "its tensors share storage and take 16" in refused(tmp_path / "c.pt")


def lies(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files that ask for more memory than they hold, and the words of their refusal."""
    for zipped in (True, False):
        path = folder / f"storage{zipped}.pt"
        torch.save({"input_embeddings": torch.zeros(3, 4), "target_embeddings": torch.ones(3, 4)}, path, _use_new_zipfile_serialization=zipped)
        content = path.read_bytes()
        assert content.count(b"K\x0c") == 2  # the number 12, of each storage, in one byte; here in four: 2**30
        path.write_bytes(content.replace(b"K\x0c", b"J\0\0\0\x40"))
        if zipped:  # a pickle of another length: the archive is written anew
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in zip_entries(content):
                    archive.writestr(name, data.replace(b"K\x0c", b"J\0\0\0\x40") if name.endswith("data.pkl") else data)
        yield "refer to more data than it holds" if zipped else "its tensors take 8589934592 bytes", path
    for words, body in {
        "calls bytearray with a size": b"cbuiltins\nbytearray\nJ\0\0\0\x7f\x85R",
        "calls torch.FloatTensor": b"ctorch\nFloatTensor\nJ\0\0\0\x7f\x85R",
        "a quantised tensor of shape": b"ctorch._utils\n_rebuild_qtensor\n(NK\0J\0\0\0\x7f\x85K\x01\x85N\x89NtR",
    }.items():
        path = folder / f"{words}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("c/data.pkl", b"\x80\x02}X\x06\0\0\0config" + body + b"s.")
            archive.writestr("c/version", b"3\n")
        yield words, path
    path = folder / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", bytes(10**8))
    yield "is compressed, or claims more", path


def zip_entries(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def test_no_file_makes_torch_allocate_what_it_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, path in lies(tmp_path):
        with monkeypatch.context() as patched, pytest.raises(ValueError, match=words):
            patched.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded before it was judged"))
            tracemalloc.start()
            script.load_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def doubled(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


def test_a_record_may_not_grow_beyond_its_file(good: dict[str, Any], tmp_path: Path, refused: Refused) -> None:
    ring: list = []
    ring.append(ring)
    for words, entry in {"nested over 100 deep": ring, "repeats values": doubled(60), "keys that are the same as text": {1: 2, "1": 3}}.items():
        torch.save({**good, "training_history": entry}, tmp_path / "c.pt")
        error = refused(tmp_path / "c.pt")
        assert "training_history" in error and words in error
    rows, text = torch.ones(500, 2), "x" * 10**4
    torch.save({"input_embeddings": rows, "target_embeddings": rows, "text_pairs": [(text, text)] * 500}, tmp_path / "p.pt")
    with pytest.raises(ValueError, match="text_pairs repeats texts"):
        script.load_pack(tmp_path / "p.pt")


def test_files_of_other_tools_are_named(tmp_path: Path, refused: Refused, good: dict[str, Any]) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(pickle.dumps({"config": {}, "model_state_dict": {}}))
    assert "c.pt: was written by pickle.dump, not torch.save" in refused(path)
    torch.save({**good, "config": Namespace(lattice_width=3)}, path)
    assert "c.pt: holds argparse.Namespace besides tensors and plain values" in refused(path)
    torch.save(good, path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x06\x07") + 4 if b"PK\x06\x07" in content else content.rindex(b"PK\5\6") + 4
    content[place] = 3  # the number of the disk
    path.write_bytes(content)
    assert "c.pt: is cut off" in refused(path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "is a TorchScript archive (torch.jit.save)" in refused(path)


ENTRIES = {
    "global_step is 'None', accepted is a whole number from 0": {"global_step": None},
    "global_step is 'NaN'": {"global_step": float("nan")},
    "global_step is '-1'": {"global_step": -1},
    "global_step is '[7]'": {"global_step": [7]},
    "global_step is '1.5'": {"global_step": 1.5},
    "global_step is '1e+300'": {"global_step": 1e300},
    "scheduler_state_dict is '[1]', accepted is a dictionary": {"scheduler_state_dict": [1]},
    "scheduler_state_dict.num_bad_epochs is '-3'": {"scheduler_state_dict": {"num_bad_epochs": -3}},
    "scheduler_state_dict.best is 'low', accepted is a number": {"scheduler_state_dict": {"best": "low"}},
    "text_encoder_state_dict must be a dictionary of tensors, got a list": {"text_encoder_state_dict": [1]},
    "model_state_dict is not a state dict: its keys 3 are not text": {"model_state_dict": {3: torch.zeros(2)}},
    "model_state_dict is not a state dict: a (NoneType), b (list) are not tensors": {"model_state_dict": {"a": None, "b": []}},
    "optimizer_state_dict is not that of a torch optimiser": {"optimizer_state_dict": [1]},
    "energy_flow_mlx: must be a dictionary": {"energy_flow_mlx": [1]},
    "has no config; it holds": {"config": [1]},
}


@pytest.mark.parametrize(("words", "entries"), ENTRIES.items(), ids=ENTRIES.keys())
def test_entries_of_another_kind_are_named(
    words: str, entries: dict[str, Any], files: tuple[Path, Path], refused: Refused
) -> None:
    torch.save({**torch.load(files[0], weights_only=True), **entries}, files[0])
    assert words in refused(files[0], "--mapper", files[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda optimiser: optimiser["param_groups"][0].update(lr=None), "param_groups[0].lr is 'None', accepted is a number from 0"),
        (lambda optimiser: optimiser["param_groups"][0].update(betas=0.9), "param_groups[0].betas is '0.9', accepted is two numbers"),
        (lambda optimiser: optimiser["state"].update({3: [1]}), "is not that of a torch optimiser"),
        (lambda optimiser: optimiser["state"][3].update(step=torch.ones(2)), f"{KEY}: step holds 2 numbers, accepted is one"),
        (lambda optimiser: optimiser["state"][3].update(exp_avg=[1]), f"{KEY}: exp_avg is a list, accepted is a tensor"),
    ],
)
def test_an_optimiser_of_another_kind_is_named(
    change: Callable[[Any], object], words: str, files: tuple[Path, Path], refused: Refused
) -> None:
    state = torch.load(files[0], weights_only=True)
    change(state["optimizer_state_dict"])
    torch.save(state, files[0])
    assert words in refused(files[0], "--mapper", files[1])


def test_infinity_and_whole_keys_come_back(files: tuple[Path, Path], tmp_path: Path) -> None:
    """What JSON has no form for is written as text, and is itself again in torch."""
    state = torch.load(files[0], weights_only=True)
    state["scheduler_state_dict"] = {"best": float("inf"), "num_bad_epochs": 3, "milestones": {30: 1, 80: 2}}
    state["training_history"] = {"total_losses": [float("nan"), float("-inf"), 1.0]}
    torch.save(state, files[0])
    assert main([str(files[0]), "--mapper", str(files[1]), "--to", str(tmp_path / "m")]) == 0
    record = json.loads((tmp_path / "m/conversion.json").read_text(), parse_constant=pytest.fail)
    assert record["training"]["training_history"] == {"total_losses": ["NaN", "-Infinity", 1.0]}
    assert main([str(tmp_path / "m"), "--to-torch", "--to", str(tmp_path / "t")]) == 0
    back = torch.load(tmp_path / "t/checkpoint.pt", weights_only=True)
    assert back["scheduler_state_dict"] == state["scheduler_state_dict"]
    assert np.array_equal(back["training_history"]["total_losses"], [np.nan, -np.inf, 1.0], equal_nan=True)


@pytest.mark.parametrize("operations", [b"\x96" + (2**26).to_bytes(8, "little"), b"Nr" + (2**22).to_bytes(4, "little")], ids=["bytearray", "memory"])
def test_a_pickle_cannot_ask_for_room(operations: bytes, tmp_path: Path) -> None:
    """A length without its bytes, and a value to be remembered at a place far off, which the unpickler in C makes room for."""
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("c/data.pkl", b"\x80\x02}X\x06\0\0\0config" + operations + b"s.")
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        script.check_claims(tmp_path / "c.pt", zipped=True)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
