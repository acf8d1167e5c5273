"""The world of a process without a launcher, what a launcher says, and what processes check."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import mlx.core as mx
import numpy as np
import pytest
from worlds import together

from energy_flow_mlx import distributed
from energy_flow_mlx.distributed import ALONE, joined, launched


@pytest.mark.parametrize(
    ("environment", "backend", "first"),
    [
        ({}, None, []),
        ({"MLX_RANK": "0"}, None, []),
        ({"MLX_WORLD_SIZE": "2", "NCCL_HOST_IP": "10.0.0.1", "MLX_RANK": "1"}, "nccl", ["10.0.0.1"]),
        ({"MLX_WORLD_SIZE": "1", "NCCL_HOST_IP": "10.0.0.1"}, None, ["10.0.0.1"]),
        ({"MLX_JACCL_COORDINATOR": "10.0.0.2:1234"}, "jaccl", ["10.0.0.2"]),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpi", []),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None, []),
        ({"PMI_SIZE": "2"}, "mpi", []),
        ({"hosts": '[["10.0.0.3:1", "10.0.1.3:2"], ["10.0.0.4:1"]]'}, "ring", ["10.0.0.3", "10.0.1.3"]),
        ({"hosts": '[["127.0.0.1:1"]]'}, None, ["127.0.0.1"]),
        ({"hosts": ""}, None, None),  # mlx.launch -n 1
    ],
)
def test_the_launcher_names_the_backend_and_where_the_first_process_is(environment, backend, first, monkeypatch, tmp_path):
    for name in ("MLX_RANK", "MLX_WORLD_SIZE", "NCCL_HOST_IP", "MLX_JACCL_COORDINATOR", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MLX_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)
    hosts = environment.pop("hosts", None)
    if hosts is not None:
        (tmp_path / "hosts.json").write_text(hosts)
        environment["MLX_HOSTFILE"] = str(tmp_path / "hosts.json")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed._backend(environment) == backend
    assert launched() == (backend is not None)
    if first is not None:
        assert distributed._first_addresses() == first
    if backend is None:
        with joined() as world:
            assert world is ALONE


def test_alone_nothing_is_sent_or_copied():
    gradients, rows = {"a": mx.array([1.0])}, np.arange(4)
    assert ALONE.mean(gradients) is gradients
    assert ALONE.sum(gradients["a"]) is gradients["a"]
    assert ALONE.gather(rows)[0] is rows
    assert ALONE.exchange("x") == ["x"]
    assert ALONE.own(rows).tolist() == [0, 1, 2, 3]
    assert ALONE.in_turn(lambda: 7) == 7
    ALONE.require_same("the weights", gradients)


def test_each_process_has_its_rows_in_order():
    assert [part.tolist() for part in together(lambda world: world.own(np.arange(6)), 3)] == [[0, 1], [2, 3], [4, 5]]


def test_weights_that_differ_anywhere_are_named_by_process():
    weights = {"a": mx.ones((3, 2)), "b": [mx.array([1.0], dtype=mx.bfloat16)]}
    others = {**weights, "a": weights["a"] + mx.array([0.0, 1e-7])}
    mx.eval(weights, others)  # threads have streams of their own
    together(lambda world: world.require_same("the weights", weights), 3)

    def drifted(world):
        world.require_same("the weights", weights if world.rank < 2 else others)

    with pytest.raises(RuntimeError, match="the weights on rank 2, here, are not those of rank 0"):
        together(drifted, 3)


def test_the_first_process_goes_first():
    order = []
    together(lambda world: world.in_turn(lambda: order.append(world.rank)), 3)
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


@pytest.mark.parametrize("length", [0, 1, 2**63])
def test_what_did_not_arrive_whole_is_an_error(length, monkeypatch):
    world = distributed.World()
    world.size = 2
    torn = length.to_bytes(8, "little") + bytes(distributed.SHORT)
    monkeypatch.setattr(world, "_all_rows", lambda data, length: [data.ljust(length, b"\0"), torn.ljust(length, b"\0")])
    with pytest.raises(RuntimeError, match="did not arrive whole"):
        world.exchange("here")


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_for_a_process_that_never_starts_is_ended_with_a_message(rank, tmp_path):
    """Nobody else starts; MLX waits for them and lets no other thread run."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        hosts = [[f"127.0.0.1:{server.getsockname()[1]}"] for server in servers]
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    code = "from energy_flow_mlx.distributed import joined\nwith joined(1.0):\n    pass"
    environment = {**os.environ, "MLX_HOSTFILE": str(tmp_path / "hosts.json"), "MLX_RANK": str(rank)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stderr == "error: not all processes of the backend ring started within 1 s (--collective-timeout)\n"
