"""Several processes of one run on this machine, over MLX's ring."""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 100.0  # seconds, after which the processes of a test are killed


class Ended(NamedTuple):
    """Of each process, by rank: exit code, output, errors."""

    codes: list[int]
    out: list[str]
    err: list[str]


def run(script: Path, count: int, folder: Path) -> Ended:
    """`count` processes of `python SCRIPT`, whose main calls `fork`; none is left afterwards.

    Raises:
        TimeoutExpired: they did not end within LIMIT seconds.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(count), str(folder)]
    parent = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        parent.wait(LIMIT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    texts = [[(folder / f"{rank}.{stream}").read_text() for rank in range(count)] for stream in ("out", "err")]
    return Ended(json.loads((folder / "codes.json").read_text()), *texts)


def fork(main: Callable[[], None], count: int, folder: Path) -> None:
    """Run `main` in `count` children, as mlx.launch starts processes, but with the imports made once. This process must not have
    computed anything: MLX starts its threads with the first computation."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
    (folder / "hosts.json").write_text(json.dumps(hosts))
    os.environ["MLX_HOSTFILE"] = str(folder / "hosts.json")
    children = []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        os.environ["MLX_RANK"] = str(rank)
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        code = 1
        try:
            main()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (folder / "codes.json").write_text(json.dumps(codes))
