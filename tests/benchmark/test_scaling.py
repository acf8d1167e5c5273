"""`--scaling`: the row of a step, the table of all, and the processes that it starts."""

import json

import mlx.core as mx
import pytest
from train.small import FIELDS, small_config, small_model

from energy_flow_mlx.benchmark import __main__ as benchmark
from energy_flow_mlx.benchmark import processes, scaling
from energy_flow_mlx.distributed import ALONE
from energy_flow_mlx.train.optimiser import named_arrays


def row(count, seconds, collective_s=0.0, first_loss=0.5):
    sent = 2 * (count - 1) * 6_000_000 // count
    return {
        "processes": count, "seconds": seconds, "collective_s": collective_s, "gradient_bytes": 6_000_000, "sent": sent,
        "first_loss": first_loss, "peak_bytes": 2**30, "device": "a chip",
    }  # fmt: skip


def test_a_row_has_the_bytes_of_the_gradients_and_the_loss_of_the_first_step():
    config = small_config(use_exploration_noise=False)
    job = {"config": config.to_dict(), "warmup": 0, "repeats": 3, "limit_s": 0.1, "dropout": False}
    found = scaling.scaling_row(job, ALONE)
    numbers = sum(array.size for array in named_arrays(small_model(config).trainable_parameters()).values())
    assert found["gradient_bytes"] == 4 * numbers
    assert (found["processes"], found["sent"], found["collective_s"]) == (1, 0, 0.0)
    assert found["seconds"] > 0 and 0 < found["first_loss"] < 10


def test_efficiency_is_against_the_first_row():
    lines = scaling.text([row(1, 0.1), row(2, 0.125, 0.025, None)], 16).splitlines()
    assert lines[0] == "scaling, 16 pairs in each process, a chip"
    assert lines[2].split() == ["1", "100", "100.0%", "160", "0.0", "0", "0.0%", "0.500000", "1.00"]
    assert lines[3].split() == ["2", "125", "80.0%", "256", "6.0", "25", "20.0%", "1.00"]


def test_each_number_of_processes_is_measured_and_written(monkeypatch, tmp_path, capsys):
    asked = []

    def measured(folder, job, count):
        asked.append((count, job["what"], job["config"]["batch_size"]))
        return row(count, 0.1)

    monkeypatch.setattr(benchmark, "run_together", measured)
    fields = [word for name, value in FIELDS.items() if name != "use_exploration_noise" for word in (f"--{name.replace('_', '-')}", str(value))]
    assert benchmark.main([*fields, "--scaling", "1,3", "--json", str(tmp_path / "all.json")]) == 0
    assert asked == [(1, "scaling", 4), (3, "scaling", 4)]
    assert [each["processes"] for each in json.loads((tmp_path / "all.json").read_text())["scaling"]] == [1, 3]
    assert capsys.readouterr().out.startswith("scaling, 4 pairs in each process")


@pytest.mark.parametrize("text", ["0", "two", "1,", "-1", "²", "257", "9" * 5000], ids=lambda text: text[:3])
def test_other_numbers_of_processes_are_refused(text, capsys):
    assert benchmark.main(["--scaling=" + text]) == 2
    assert f"--scaling {text:.80} is not accepted: it takes numbers of processes joined by commas" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("--seconds", "nan"), ("--seconds", "0"), ("--torch-limit", "-1")])
def test_other_limits_of_time_are_refused(flag, value, capsys):
    assert benchmark.main([f"{flag}={value}"]) == 2
    assert f"error: {flag} {float(value)} is not accepted: it takes a number of seconds above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "others", [["--compare", "torch"], ["--stages"], ["--sweep"], ["--scenario", "mlp"], ["--plot", "a.png"], ["--machine", "m4"]], ids=lambda others: others[0]
)
def test_no_other_measurement_is_accepted_beside_it(others, capsys):
    assert benchmark.main(["--scaling", "1", *others]) == 2
    assert "is not accepted with --" in (said := capsys.readouterr().err) and others[0] in said


@pytest.mark.parametrize("cuda", [False, True])
def test_each_process_has_the_environment_that_mlx_launch_gives_it(cuda, monkeypatch, tmp_path):
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)
    first, second = processes._members(tmp_path, 2)
    assert (first.pop("MLX_RANK"), second.pop("MLX_RANK")) == ("0", "1")
    if cuda:
        assert (first.pop("CUDA_VISIBLE_DEVICES"), second.pop("CUDA_VISIBLE_DEVICES")) == ("0", "1")
        assert first["MLX_WORLD_SIZE"] == "2" and first["NCCL_HOST_IP"] == "127.0.0.1" and first["NCCL_PORT"].isdecimal()
    else:
        hosts = json.loads((tmp_path / "hosts2.json").read_text())
        assert len(hosts) == 2 and all(address[0].startswith("127.0.0.1:") for address in hosts) and hosts[0] != hosts[1]
    assert first == second
