"""The watch of three processes: what it says of one that died, stalled or gave up, and that all end."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).with_name("watched_process.py"))
SOON = 20.0  # seconds, within which all processes end


class Processes:
    """Ranks 0 and 1 on mac1, 2 on mac2. None is left after the `with` statement."""

    def __init__(self, timeout, stranger=False):
        self._timeout, self._stranger = timeout, stranger
        self.all = []

    def __enter__(self):
        port, token = self._start().stdout.readline().split()
        if self._stranger:
            for sent in (b'{"rank": 1, "token": "guessed"}\n', b"GET / HTTP/1.1\n", b"[1]\n", b""):
                with socket.create_connection(("127.0.0.1", int(port))) as connection:
                    connection.sendall(sent)
        for _ in (1, 2):
            self._start(port, token)
        for each in self.all:
            assert each.stdout.readline() == "watched\n"
        return self

    def __exit__(self, *_):
        for each in self.all:
            each.kill()
            each.communicate()

    def _start(self, *address):
        command = [sys.executable, SCRIPT, str(len(self.all)), str(self._timeout), *address]
        pipe = subprocess.PIPE
        self.all.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1))
        return self.all[-1]

    def tell(self, rank, *orders):
        """Give orders to a process; it has carried them out."""
        for order in orders:
            self.all[rank].stdin.write(f"{order}\n")
            assert self.all[rank].stdout.readline() == "done\n"

    def order(self, rank, order):
        """Give an order that ends the process, or that it waits in."""
        self.all[rank].stdin.write(f"{order}\n")

    def ended(self, *ranks):
        """The exit codes, and all that was said."""
        codes = [self.all[rank].wait(SOON) for rank in ranks]
        return codes, "".join(self.all[rank].stderr.read() for rank in ranks)


@pytest.mark.parametrize(
    ("dead", "message"),
    [
        (2, "error: rank 2 on mac2 died at step 7; go on\n"),
        (1, "error: rank 1 on mac1 died at step 7; go on\n"),
        (0, "error: rank 0 on mac1 died at the start; go on\n"),  # said by rank 2, on the other host
    ],
)
def test_a_process_that_dies_is_named_once_with_host_and_place_and_all_end(dead, message):
    with Processes(timeout=SOON) as run:
        for rank in (1, 2):
            run.tell(rank, "mark step 7")
        run.all[dead].kill()
        assert run.ended(*(rank for rank in (0, 1, 2) if rank != dead)) == ([1, 1], message)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_silent_is_named(stopped):
    with Processes(timeout=2.5) as run:
        run.all[stopped].send_signal(signal.SIGSTOP)
        codes, said = run.ended(*(rank for rank in (0, 1, 2) if rank != stopped))
    assert codes == [1, 1]
    assert said.startswith(f"error: rank {stopped} on mac1 has not been heard of for 2.5 s, last at the start: ")
    assert said.count("error") == 1


def test_a_process_that_does_not_go_on_is_named():
    with Processes(timeout=2.0) as run:
        for rank in (0, 1, 2):
            run.tell(rank, "watching", "mark step 3")
        for rank in (0, 2):
            run.tell(rank, "mark step 4")
        codes, said = run.ended(0, 1, 2)
    assert codes == [1, 1, 1]
    assert said == "error: rank 1 on mac1 has not gone on for 2 s (--collective-timeout), since step 3; go on\n"


def test_where_nobody_goes_on_the_backend_stalled():
    with Processes(timeout=2.0) as run:
        for rank in (0, 1, 2):
            run.tell(rank, "watching", "mark step 3")
        codes, said = run.ended(0, 1, 2)
    assert codes == [1, 1, 1]
    assert said == "error: no process has gone on for 2 s (--collective-timeout), since step 3: a collective of the backend stalled; go on\n"


def test_what_one_process_cannot_do_is_said_by_the_first():
    with Processes(timeout=SOON) as run:
        run.order(2, "fail error: data/x: Permission denied")
        assert run.ended(0, 1, 2) == ([2, 2, 2], "error: rank 2 on mac2: data/x: Permission denied; go on\n")


def test_a_refusal_of_the_first_process_ends_the_others_without_a_word():
    with Processes(timeout=SOON) as run:
        run.order(0, "refuse 2")
        assert run.ended(0, 1, 2) == ([2, 2, 2], "")


def test_a_process_that_is_done_waits_for_the_first_one():
    with Processes(timeout=SOON) as run:
        for rank in (1, 2):
            run.order(rank, "leave 130")
        run.tell(0, "mark the table")
        assert [each.poll() for each in run.all] == [None, None, None]
        run.order(0, "leave 130")
        assert run.ended(0, 1, 2) == ([130, 130, 130], "")


def test_a_process_that_waits_for_numbers_of_the_first_one_ends_with_it():
    with Processes(timeout=SOON) as run:
        run.order(0, "leave 130")
        assert run.ended(0, 1, 2) == ([130, 130, 130], "")


def test_who_does_not_know_the_token_is_not_let_in():
    with Processes(timeout=SOON, stranger=True) as run:
        run.order(0, "leave 0")
        for rank in (1, 2):
            run.order(rank, "leave 0")
        assert run.ended(0, 1, 2) == ([0, 0, 0], "")
