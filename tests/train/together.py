"""Several processes of one run on this machine, over MLX's ring, each started and ended here."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60.0  # seconds, after which the processes of a test are killed


class Ended(NamedTuple):
    """Of each process, by rank."""

    codes: list[int]
    out: list[str]
    err: list[str]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def processes(count: int, command: Sequence[str], folder: Path) -> Iterator[list["subprocess.Popen[str]"]]:
    """`count` processes of `python COMMAND`, as mlx.launch starts them; none is left afterwards. Output goes to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
    started = []
    try:
        for rank in range(count):
            path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
            environment = {**os.environ, "PYTHONPATH": path, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank), "OPENBLAS_NUM_THREADS": "1"}
            with (folder / f"{rank}.out").open("w") as out, (folder / f"{rank}.err").open("w") as err:
                started.append(
                    subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL, text=True)
                )
        yield started
    finally:
        for process in started:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def ended(started: Sequence["subprocess.Popen[str]"], folder: Path, limit: float = LIMIT) -> Ended:
    """How all processes ended.

    Raises:
        TimeoutExpired: one did not within `limit` seconds.
    """
    until = time.monotonic() + limit
    codes = [process.wait(max(until - time.monotonic(), 0.01)) for process in started]
    texts = [[(folder / f"{rank}.{stream}").read_text() for rank in range(len(codes))] for stream in ("out", "err")]
    return Ended(codes, texts[0], texts[1])

