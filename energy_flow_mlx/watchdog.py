"""Which process of a run died, gave up or stalled: found beside the collectives, which would wait for it for ever.

Each process keeps a TCP connection to the first one and says once a second where it is. The first one ends all of them when a connection
breaks, when a process says that it failed, or when one has not gone on for too long; it prints the one message. Where the first one
is lost, the first process on another host says so, or else process 1.

A message is a line of JSON. Both ways: at (marks so far, where). To the first process: rank and token, failed (text, code), done,
leaving (the answer to end). From it: end (exit code, and whether it ended as planned).
"""

import hmac
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from .strict_json import parse_json, to_json

BEAT = 1.0  # seconds between messages
TICK = 0.2  # seconds in which a death is noticed
GRACE = 5.0  # seconds in which the first process may report the same failure in its own words, or exit
CONNECTING = 60.0  # seconds for all connections to stand

# Its standard input ends when the process that it watches has ended, or needs no watch any more. select takes no more than 10^8 s everywhere.
_DEADLINE = """
import os, select, signal, sys
if not select.select([0], [], [], min(float(sys.argv[1]), 1e8))[0]:
    print(sys.argv[3], file=sys.stderr, flush=True)
    os.kill(int(sys.argv[2]), signal.SIGKILL)
"""


@contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """Inside, `message` is printed and this process killed after `seconds`.

    By another process: MLX holds Python's lock while it waits for the other ranks to start, so that no thread of this one runs.
    """
    command = [sys.executable, "-S", "-E", "-c", _DEADLINE, str(seconds), str(os.getpid()), message]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:  # a Ctrl-C does not reach it
        try:
            yield
        finally:
            assert watcher.stdin is not None
            watcher.stdin.close()


class Mark(NamedTuple):
    """Where a process is: the marks it has passed so far, and the last one in words."""

    number: int
    where: str


class Line:
    """One end of a connection: whole messages in, whole messages out."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._rest = b""

    def send(self, **message: Any) -> None:
        """Send a message; where the other end is gone nothing happens, as reading finds that out."""
        with suppress(OSError):
            self.connection.sendall(to_json(message, indent=None).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived, after waiting for some; None: the other end is gone."""
        try:
            data = self.connection.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [dict(parse_json(line.decode())) for line in lines]


class Watch:
    """The watch of one process; `start` makes it, `leave` ends it.

    Args:
        rank: of this process.
        hosts: the host of each process.
        timeout: seconds without a new mark after which a watched process counts as stalled.
        lines: connections by rank: to all others for process 0, else that to process 0.

    Attributes:
        advice: added to what is printed about a process that was lost: how to go on.
    """

    def __init__(self, rank: int, hosts: Sequence[str], timeout: float, lines: dict[int, Line]) -> None:
        self._rank, self._hosts, self._timeout, self._lines = rank, hosts, timeout, lines
        self.advice = ""
        now = time.monotonic()
        self._marks = dict.fromkeys(range(len(hosts)), Mark(0, "the start"))
        self._changed, self._heard = dict.fromkeys(self._marks, now), dict.fromkeys(self._marks, now)
        self._watching, self._planned = False, False
        self._done: set[int] = set()
        self._failed: tuple[float, str, int] | None = None  # when it is printed, the message, the exit code
        self._last: tuple[float, int, bool] | None = None  # the first process's last message: when to exit at the latest, code, planned
        self._dismissal: tuple[int, bool] | None = None  # of the first process's `leave`
        self._open = {line.connection: rank for rank, line in lines.items()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def mark(self, where: str) -> None:
        """This process goes on, with `where`. All processes pass the same marks."""
        mark = Mark(self._marks[self._rank].number + 1, where)
        self._note(self._rank, mark)
        if self._rank:  # what the first one passes the others learn with its next beat: there may be many of them
            self._lines[0].send(at=mark)

    def watching(self, whether: bool) -> None:
        """Whether a process that passes no mark counts as stalled; one that is silent always does."""
        self.mark("the loop" if whether else "after the loop")
        self._changed = dict.fromkeys(self._marks, time.monotonic())
        self._watching = whether

    def name(self, rank: int) -> str:
        """A process by rank and host."""
        return f"rank {rank} on {self._hosts[rank]}"

    def failed(self, text: str, code: int) -> None:
        """Another process than the first gives up: the first one says so, and everything ends."""
        self._lines[0].send(at=self._marks[self._rank], failed=text, code=code)
        self._over.wait(4 * GRACE)

    def lost_another(self) -> None:
        """After an error that the loss of another process may explain: wait until that is reported, which ends this process."""
        time.sleep(GRACE)

    def leave(self, code: int, *, planned: bool = True) -> None:
        """End this process's part: the first one lets the others go, which wait for that. Not planned: they exit with `code` at once."""
        self._planned = True
        if self._rank == 0:
            self._dismissal = code, planned
        else:
            self._lines[0].send(done=True)
        self._over.wait()

    def end(self, message: str, code: int) -> None:
        """Print what happened and end all processes."""
        print(f"error: {message}{self.advice}", file=sys.__stderr__, flush=True)
        self._dismiss(code, planned=False)
        os._exit(code)

    def _dismiss(self, code: int, *, planned: bool) -> None:
        """Let the others go. The first process waits until they know: its exit could overtake the message."""
        for line in self._lines.values():
            line.send(end=code, planned=planned)
        until = time.monotonic() + GRACE
        while self._rank == 0 and self._open and time.monotonic() < until:
            for connection in select.select(list(self._open), [], [], TICK)[0]:
                messages = self._lines[self._open[connection]].receive()
                if messages is None or any("leaving" in message for message in messages):
                    del self._open[connection]

    def _run(self) -> None:
        sent = 0.0
        while not self._over.is_set():
            for connection in select.select(list(self._open), [], [], TICK)[0]:
                rank = self._open[connection]
                messages = self._lines[rank].receive()
                if messages is None:
                    del self._open[connection]
                    self._gone(rank)
                for message in messages or ():
                    self._take(rank, message)
            now = time.monotonic()
            if now - sent > BEAT and self._last is None:
                sent = now
                for line in self._lines.values():
                    line.send(at=self._marks[self._rank])
            if self._dismissal is not None:
                self._dismiss(self._dismissal[0], planned=self._dismissal[1])
                self._over.set()
            elif self._failed is not None and now > self._failed[0]:
                self.end(*self._failed[1:])
            elif self._last is not None:
                self._follow(*self._last)
            else:
                self._look(now)

    def _note(self, rank: int, mark: Mark) -> None:
        if mark != self._marks[rank]:
            self._marks[rank], self._changed[rank] = mark, time.monotonic()

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        self._heard[rank] = time.monotonic()
        if "at" in message:
            self._note(rank, Mark(*message["at"]))
        if "failed" in message and self._failed is None:
            self._done.add(rank)
            text = str(message["failed"]).removeprefix("error: ")
            self._failed = time.monotonic() + GRACE, f"{self.name(rank)}: {text}", message["code"]
        if "done" in message:
            self._done.add(rank)
        if "end" in message:
            self._last = time.monotonic() + GRACE, message["end"], message["planned"]
            self._lines[rank].send(leaving=True)

    def _gone(self, rank: int) -> None:
        if self._last is not None:
            self._last = time.monotonic(), *self._last[1:]
        if self._last is not None or rank in self._done or (self._rank == 0 and self._planned):
            return
        message = f"{self.name(rank)} died at {self._marks[rank].where}"
        if self._rank == 0:
            self.end(message, 1)
        if self._rank != self._herald():
            os._exit(1)
        self.end(message, 1)

    def _follow(self, latest: float, code: int, planned: bool) -> None:
        """Exit once the first process has, or at `latest`: a launcher ends all processes when one exits with an error."""
        now = time.monotonic()
        if now > latest and planned and self._planned:
            self._over.set()
        elif now > latest + (GRACE if planned else 0.0):  # what waits for numbers of the first process never comes to its end
            os._exit(code)

    def _herald(self) -> int:
        """Who reports the loss of the first process."""
        elsewhere = (rank for rank, host in enumerate(self._hosts) if host != self._hosts[0])
        return next(elsewhere, 1)

    def _look(self, now: float) -> None:
        """End everything if a process is silent, or does not go on."""
        ranks = self._lines if self._rank else self._marks
        silent = [rank for rank in self._lines if now - self._heard[rank] > self._timeout and rank not in self._done]
        if silent:
            text = f"has not been heard of for {self._timeout:g} s, last at {self._marks[silent[0]].where}: its process is stopped or its machine gone"
            if self._rank in (0, self._herald()):
                self.end(f"{' and '.join(map(self.name, silent))} {text}", 1)
            os._exit(1)
        if self._rank or not self._watching or not any(now - self._changed[rank] > self._timeout for rank in ranks):
            return
        last = min(mark.number for mark in self._marks.values())
        behind = [rank for rank, mark in self._marks.items() if mark.number == last]
        limit = f"for {self._timeout:g} s (--collective-timeout), since {self._marks[behind[0]].where}"
        if len(behind) == len(self._marks):
            self.end(f"no process has gone on {limit}: a collective of the backend stalled", 1)
        self.end(f"{' and '.join(map(self.name, behind))} has not gone on {limit}", 1)


class Door:
    """Where the others reach the first process."""

    def __init__(self, local: bool) -> None:
        """local: all processes are on this machine, and no other one gets in."""
        self._socket = socket.create_server(("127.0.0.1" if local else "", 0))
        self.port = int(self._socket.getsockname()[1])
        self.token = secrets.token_hex(16)

    def admit(self, count: int) -> dict[int, Line]:
        """The connections of `count` other processes, by rank.

        Raises:
            TimeoutError: one did not come.
        """
        lines: dict[int, Line] = {}
        until = time.monotonic() + CONNECTING
        with self._socket:
            while len(lines) < count:
                self._socket.settimeout(max(until - time.monotonic(), 0.01))
                connection, _ = self._socket.accept()
                connection.settimeout(BEAT)
                line = Line(connection)
                with suppress(ValueError, TypeError, IndexError, KeyError):  # what is no message of this run
                    hello = (line.receive() or [{}])[0]
                    if hmac.compare_digest(str(hello["token"]), self.token):
                        lines[int(hello["rank"])] = line
        return lines


def enter(addresses: Sequence[str], port: int, token: str, rank: int) -> Line:
    """The connection of process `rank` to the first one, at the first of its addresses that answers.

    Raises:
        ConnectionError: none does.
    """
    for address in addresses:
        try:
            connection = socket.create_connection((address, port), timeout=GRACE)
        except OSError:
            continue
        connection.settimeout(None)
        line = Line(connection)
        line.send(rank=rank, token=token)
        return line
    raise ConnectionError(
        f"rank {rank} on {socket.gethostname()} does not reach port {port} of the first process at {' or '.join(addresses)}: "
        "the processes of a run watch each other over TCP beside the backend"
    )
