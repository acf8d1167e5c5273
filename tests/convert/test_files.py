"""Damaged, foreign and hostile files: each is refused with a text that names the fault, and nothing is written."""

import contextlib
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from convert.checkpoints import ODD, Modules, checkpoint
from safetensors.torch import load_file

from energy_flow_mlx import EnergyFlow, export_torch_checkpoint, tensors
from energy_flow_mlx.convert.__main__ import main
from energy_flow_mlx.convert.source import read_source

Refused = Callable[..., str]
SCRIPT = Path(__file__).parents[2] / "scripts/export_torch_checkpoint.py"


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint(kept: float, files: tuple[Path, Path], refused: Refused) -> None:
    data = files[0].read_bytes()
    files[0].write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    error = refused(files[0])
    assert str(files[0]) in error and ("cut off" in error or "not a PyTorch file" in error)


@pytest.mark.parametrize("kept", [0, 5, 8, 40, 0.1, 0.5, 0.9999])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_truncated_safetensors(kept: float, name: str, export: Path, refused: Refused) -> None:
    data = (export / name).read_bytes()
    (export / name).write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    error = refused(export)
    assert name in error and ("cut off" in error or "not a safetensors" in error)


def test_a_wrong_magic(tmp_path: Path, refused: Refused) -> None:
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
        error = refused(tmp_path / name, "--config", tmp_path / "model.pt")
        assert "is no" in error and "GGUF" in error


def test_headers_that_contradict_themselves(tmp_path: Path, refused: Refused) -> None:
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    bad = {
        "does not fit its 12 bytes": {"a": entry | {"shape": [4]}},
        "does not fit its -12 bytes": {"a": entry | {"data_offsets": [12, 0]}},
        "a (F32X) have a dtype that is not known": {"a": entry | {"dtype": "F32X"}},
        "a (I8) have a dtype that is not accepted": {"a": entry | {"dtype": "I8", "shape": [12]}},
        "does not parse": {"a": {"dtype": "F32"}},
        "cut off": {"a": entry | {"shape": [2**40], "data_offsets": [0, 2**42]}},
    }
    for words, header in bad.items():
        text = json.dumps(header).encode()
        (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
        (tmp_path / "config.json").write_text("{}")
        assert words in refused(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "not a safetensors file" in refused(tmp_path / "m.safetensors")


def test_sizes_are_judged_before_anything_is_allocated(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 3 * 2**30
    header = {"neuron.layers.0.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)  # sparse: takes no room on disk
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(os, "sysconf", lambda name: 2**18 if name == "SC_PHYS_PAGES" else 4096)  # 1 GiB
    monkeypatch.setattr(np, "fromfile", lambda *_, **__: pytest.fail("read before it was judged"))
    error = refused(path)
    assert "needs about 6.0 GiB" in error and "has 1.0" in error
    tensors.check_memory(path, size, available=2**40)
    assert "warning" in capsys.readouterr().err
    tensors.check_memory(path, 2**30, available=2**40)
    assert not capsys.readouterr().err


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.mark}",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_runs_code(tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "it ran".replace(" ", "_")
    state = checkpoint(Modules(ODD), ODD) | {"best_loss": Hostile(mark)}
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(state["best_loss"]))
    for name in ("zip.pt", "legacy.pt", "plain.pt"):
        error = refused(tmp_path / name)
        assert name in error and "No code was run" in error and "save it again" in error, error
        assert export_torch_checkpoint.main([str(tmp_path / name), str(tmp_path / "out")]) == 2
        assert "No code was run" in capsys.readouterr().err
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_other_things_in_a_pt_file(tmp_path: Path, refused: Refused) -> None:
    good = checkpoint(Modules(ODD), ODD)
    for words, value in {
        "holds a list": [1, 2],
        "has no config, model_state_dict": {"weights": {}},
        "is not a state dict": good | {"model_state_dict": {"neuron.a": 3}},
        "not that of a torch optimiser": good | {"optimizer_state_dict": {"state": 3}},
        "the optimiser has 2 parameters": good | {"optimizer_state_dict": {"state": {}, "param_groups": [{"params": [0, 1]}]}},
    }.items():
        torch.save(value, tmp_path / "c.pt")
        assert words in refused(tmp_path / "c.pt"), words


def test_missing_files(tmp_path: Path, export: Path, files: tuple[Path, Path], refused: Refused) -> None:
    assert "no such file" in refused(tmp_path / "none.pt")
    assert "no such file" in refused(tmp_path / "none.safetensors")
    assert "no such file" in refused(files[0], "--mapper", tmp_path / "none.pt")
    assert "tokenizer.json" in refused(export, "--tokenizer", tmp_path / "none.json")
    (export / "config.json").unlink()
    assert "config.json missing" in refused(export)


def test_without_torch(files: tuple[Path, Path], export: Path, tmp_path: Path) -> None:
    """An export converts where torch cannot be imported; a .pt says what to do."""
    code = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)\n"
        "sys.modules['torch'] = None\n"
        "from energy_flow_mlx.convert.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(source: Path, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(source), "--to", str(tmp_path / f"{source.stem} model"), *more]
        return subprocess.run(command, capture_output=True, text=True)

    failed = run(files[0])
    assert (
        failed.returncode == 2
        and "pip install torch" in failed.stderr
        and "export_torch_checkpoint.py" in failed.stderr
    )
    assert run(export).returncode == 0
    EnergyFlow.from_pretrained(tmp_path / "export model")
    failed = run(tmp_path / "export model", "--to-torch")
    assert failed.returncode == 2 and "writing .pt files needs torch" in failed.stderr


def test_the_script_stands_alone(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy of the one file runs where neither the package nor NumPy is, which torch does not bring."""
    copy = tmp_path / "elsewhere" / SCRIPT.name
    copy.parent.mkdir()
    copy.write_bytes(SCRIPT.read_bytes())
    block = "import sys, runpy; sys.modules.update(dict.fromkeys(['energy_flow_mlx', 'mlx', 'numpy'])); runpy.run_path(sys.argv.pop(1), run_name='__main__')"  # fmt: skip
    command = [
        sys.executable,
        "-c",
        block,
        str(copy),
        str(files[0]),
        str(copy.parent / "out"),
        "--mapper",
        str(files[1]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=copy.parent)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (copy.parent / "out").iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "config.json", "training.json",
    }  # fmt: skip
    written = load_file(copy.parent / "out/model.safetensors")
    saved = torch.load(files[0], weights_only=True)
    wanted = saved["model_state_dict"] | torch.load(files[1], weights_only=True)
    wanted |= {f"text_encoder.{key}": value for key, value in saved["text_encoder_state_dict"].items()}
    assert written.keys() == wanted.keys() and all(torch.equal(written[key], wanted[key]) for key in wanted)
    assert export_torch_checkpoint.main([str(files[0]), str(copy.parent / "out")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_tensors_of_every_dtype_that_the_script_writes(tmp_path: Path) -> None:
    tensors = {str(dtype): (torch.arange(15) % 7).reshape(3, 5).to(dtype) for dtype in export_torch_checkpoint.DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "transposed": torch.arange(6.0).view(2, 3).T}
    export_torch_checkpoint.write_safetensors(tensors, tmp_path / "t.safetensors")
    written = load_file(tmp_path / "t.safetensors")
    assert written.keys() == tensors.keys()
    for key, value in tensors.items():
        assert written[key].dtype == value.dtype and torch.equal(written[key], value), key
    with pytest.raises(ValueError, match=r"complex \(torch.complex64\): accepted are F64"):
        export_torch_checkpoint.write_safetensors({"complex": torch.zeros(2) + 0j}, tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()


def test_mapper_files_that_the_script_refuses(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key of another module would replace the checkpoint's own weights."""
    own = torch.load(files[1], weights_only=True)
    checkpoint_with_mapper = torch.load(files[0], weights_only=True) | {"optimizer_state_dict": None}
    checkpoint_with_mapper["model_state_dict"] |= {"input_mapper.energy_scale": torch.ones(1)}
    torch.save(checkpoint_with_mapper, tmp_path / "both.pt")
    torch.save(own | {"neuron.layers.0.bias": torch.zeros(5)}, tmp_path / "neuron.pt")
    torch.save({}, tmp_path / "empty.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"GGUF" + bytes(40))
    for source, mapper, words in (
        (files[0], "neuron.pt", "unknown keys neuron.layers.0.bias"),
        (files[0], "empty.pt", "it is empty"),
        (files[0], "cut.safetensors", "not a safetensors file"),
        (files[0], "none.safetensors", "no such file"),
        (tmp_path / "both.pt", "mapper.pt", "input_mapper.energy_scale are in"),
    ):
        arguments = [str(source), str(tmp_path / "out"), "--mapper", str(tmp_path / mapper)]
        assert export_torch_checkpoint.main(arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_script_warns_of_large_files(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_torch_checkpoint, "WARN_BYTES", 1000)
    export_torch_checkpoint.load_checkpoint(files[0])
    assert "reading it may need as much memory" in capsys.readouterr().err


def test_half_precision_is_judged_at_the_size_it_is_converted_in(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = checkpoint(Modules(ODD), ODD)
    state["model_state_dict"]["neuron.large"] = torch.zeros(10**6, dtype=torch.bfloat16)
    torch.save(state, tmp_path / "c.pt")
    assert (tmp_path / "c.pt").stat().st_size < 3 * 10**6
    monkeypatch.setattr(os, "sysconf", lambda _: 2500)  # 6.25 MB: less than two float32 copies
    assert "this machine has 0.0" in refused(tmp_path / "c.pt")


def test_the_exports_own_weights_file_is_the_export(export: Path, tmp_path: Path) -> None:
    for source, target in ((export, "m"), (export / "model.safetensors", "n")):
        assert main([str(source), "--to", str(tmp_path / target)]) == 0
    for name in ("model.safetensors", "optimizer.safetensors", "trainer.json"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()


@pytest.mark.parametrize("name", ["checkpoint.pt", "export/model.safetensors"])
def test_flipped_bytes_never_end_in_another_error(name: str, originals: Path, tmp_path: Path) -> None:
    data = bytearray((originals / name).read_bytes())
    (tmp_path / "config.json").write_bytes((originals / "export/config.json").read_bytes())
    damaged = tmp_path / Path(name).name
    rng = np.random.default_rng(0)
    # The description comes first in both formats; a zip repeats it at the end.
    for place in [*rng.integers(0, 3000, 60), *rng.integers(-3000, 0, 30)]:
        copy = bytearray(data)
        copy[place] ^= int(rng.integers(1, 256))
        damaged.write_bytes(copy)
        with contextlib.suppress(ValueError):
            read_source(damaged, None, None, True)


def test_a_checkpoint_larger_than_the_memory(
    files: tuple[Path, Path], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 16)  # 256 bytes
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read before it was judged"))
    assert "this machine has 0.0" in refused(files[0])


def test_a_write_that_fails_leaves_no_model(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(EnergyFlow, "save_weights_with_steps", full)
        assert main([str(export), "--to", str(tmp_path / "m")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "m").iterdir()} <= {".incoming"}
    assert main([str(export), "--to", str(tmp_path / "m")]) == 0
    EnergyFlow.from_pretrained(tmp_path / "m")
