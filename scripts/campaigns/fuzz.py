"""Fuzz: changed files for every reader and changed arguments for every command; each input is read or refused, and nothing else.

    python scripts/campaigns/fuzz.py --minutes 60                # 0 crashes, tracebacks, large allocations and slow calls
    python scripts/campaigns/fuzz.py --only "data .pt" --minutes 1

Inputs run in a worker process, which is started anew when it crashes or hangs. A fault is

| | |
|---|---|
| crash | the process ended |
| hang | a call over HANG seconds of processor time, or one that used none for IDLE seconds: it waits |
| traceback | an exception that is not the reader's refusal, or a refusal that does not name the file |
| memory | a peak over 2 x the input's bytes + ROOM, CALLS times in a row: the first call may have loaded a library |
| slow | a call over SLOW seconds of processor time, CALLS times in a row; more where the machine is slower than at the start (`pace`) |

No verdict depends on the clock alone: on a loaded machine a call takes longer, not more of the processor, and a call that is not hung
gets some of it within IDLE seconds.

Each kind of fault is printed once, with the number of the trial and of the input, from which --trial makes it again; `counts` of
state.json has all of them.
"""

import argparse
import json
import mmap
import os
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from campaign import Campaign, pace

INPUTS = 200  # of one target, in one trial
GOAL = 10**7
ROOM = 16 * 2**20  # bytes that a call may take beyond twice its input: the interpreter's own, and the model of a small run
ADDRESSES = 4 * 2**30  # bytes of address space beyond those of the start
SLOW, HANG, IDLE = 1.0, 20.0, 60.0  # seconds
CALLS = 4  # of an input that took much, the least of which counts
KINDS = ("crash", "hang", "traceback", "memory", "slow")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; returns the exit code."""
    campaign = Campaign("fuzz", GOAL // INPUTS, argv, __doc__.splitlines()[0], _options)
    options = campaign.options
    if options.worker is not None:
        _work(options.worker, options.seed, options.only, options.trial)
        return 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        worker = Worker(Path(folder), options)
        try:
            for trial in campaign.trials():
                for found in worker.run(trial):
                    kind, what = found["kind"], f"{found['kind']}: {found['target']}: {found['where']}"
                    if not campaign.counts[what]:
                        campaign.fault(f"{what} (input {found['input']}) {found['text']}")
                    campaign.count(what)
                    campaign.count(kind)
                campaign.count("inputs", INPUTS)
        finally:
            worker.end()
    found = ", ".join(f"{campaign.counts[kind]} {kind}" for kind in KINDS)
    rate = campaign.counts["inputs"] / max(campaign.seconds, 1e-9) * 60
    figure = f"{campaign.counts['inputs']:,} inputs ({rate:,.0f} a minute): {found}"
    return campaign.end(figure, f"{GOAL:,} inputs, 0 of each")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="TEXT", help="only targets with this text in their name")
    parser.add_argument("--trial", metavar="N:M", help="make input M of trial N again, and let its exception through")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


class Worker:
    """The process that reads inputs, seen from outside."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder, self._options, self._starts = folder, options, 0
        self._at = folder / "at"  # the input that is being read, and the processor time that the process had used before it
        self._at.write_bytes(bytes(16))
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, trial: int) -> Iterator[dict[str, Any]]:
        """Read the inputs of a trial; yields its faults."""
        first, target = 0, ""
        while first < INPUTS:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{trial} {first}\n".encode())
            while True:
                fault, line = self._wait(process)
                if fault:
                    number = struct.unpack("<q", self._at.read_bytes()[:8])[0]
                    yield {"kind": fault, "target": target, "input": f"{trial}:{number}", "where": f"exit code {process.wait()}", "text": ""}
                    self._process, first = None, max(number, first) + 1
                    break
                said = json.loads(line)
                target = said.get("target", target)
                if said["kind"] == "done":
                    first = INPUTS
                    break
                if said["kind"] != "begun":
                    yield said

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._starts += 1
            place = self._folder / str(self._starts)
            place.mkdir()
            command = [sys.executable, __file__, "--worker", str(place), "--seed", str(self._options.seed), "--state", str(self._folder / "state")]
            command += ["--only", self._options.only] if self._options.only else []
            command += ["--trial", self._options.trial] if self._options.trial else []
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
            with (self._folder / "log").open("ab") as log:
                # No buffer: a line that waits in one is not seen by select.
                self._process = subprocess.Popen(
                    command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
                )
            assert self._process.stdout is not None
            if self._process.stdout.readline() != b"ready\n":
                raise SystemExit((self._folder / "log").read_text(errors="replace")[-3000:])
        return self._process

    def _wait(self, process: "subprocess.Popen[bytes]") -> tuple[str, str]:
        """The next line, or the fault that kept the process from writing it."""
        assert process.stdout is not None
        used, idle_since = -1.0, time.monotonic()
        while not select.select([process.stdout], [], [], 1.0)[0]:
            before, used = used, _processor_time(process.pid)
            idle_since = idle_since if used == before else time.monotonic()
            began = struct.unpack("<d", self._at.read_bytes()[8:])[0]
            if began and (used - began > HANG or time.monotonic() - idle_since > IDLE):
                process.kill()
                return "hang", ""
        line = process.stdout.readline().decode()
        return ("", line) if line else ("crash", "")


def _work(folder: Path, seed: int, only: str | None, again: str | None) -> None:
    """The worker: reads numbers of trials, and writes a line of JSON for each fault and after each trial."""
    from targets import all_targets  # the parent needs no torch

    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what readers print is no answer
    targets = [target for target in all_targets(folder) if only is None or only in target.name]
    names = [index for index, target in enumerate(targets) for _ in range(target.weight)]
    _warm_up(targets)
    _usual_pace()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, size + ADDRESSES))
    with (folder.parent / "at").open("r+b") as file, mmap.mmap(file.fileno(), 16) as at:
        print("ready", file=said, flush=True)
        for line in sys.stdin:
            trial, first = map(int, line.split())
            target = targets[random.Random(f"{seed}:{trial}").choice(names)]
            print(json.dumps({"kind": "begun", "target": target.name}), file=said, flush=True)
            for number in range(first, INPUTS):
                if again is not None and again != f"{trial}:{number}":
                    continue
                at[:] = struct.pack("<qd", number, time.process_time())
                for kind, where, text in _faults(target, f"{seed}:{trial}:{number}", again is not None):
                    found = {"kind": kind, "target": target.name, "input": f"{trial}:{number}", "where": where, "text": text}
                    print(json.dumps(found), file=said, flush=True)
            at[:] = bytes(16)
            print('{"kind": "done"}', file=said, flush=True)


def _warm_up(targets: Sequence[Any]) -> None:
    for target in targets:
        for number in range(10):
            _call(target, f"warm:{number}")


def _faults(target: Any, seed: str, let_through: bool) -> Iterator[tuple[str, str, str]]:
    """Kind, place and text of what is wrong with the call on one input."""
    error, peak, seconds, size = _call(target, seed)
    if error is not None:
        if let_through:
            raise error
        yield "traceback", _where(error), " ".join(str(error).split())[:300]
    if peak > 2 * size + ROOM or seconds > SLOW:
        for _ in range(CALLS - 1):
            _, peak_again, seconds_again, _ = _call(target, seed)
            peak, seconds = min(peak, peak_again), min(seconds, seconds_again)
        if peak > 2 * size + ROOM:
            yield "memory", f"over 2 x its input + {ROOM >> 20} MiB", f"{peak} bytes for {size}"
        if seconds > SLOW * max(1.0, pace() / _usual_pace()):
            yield "slow", f"over {SLOW:.0f} s", f"{seconds:.1f} s"


def _call(target: Any, seed: str) -> tuple[BaseException | None, int, float, int]:
    """Make one input and read it: the exception that is no refusal, bytes at the peak, seconds, bytes of the input."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    size, read = target.make(random.Random(seed))
    before, began = _memory("VmRSS"), time.process_time()  # not the clock: other work on the machine makes no call slow
    wrong: BaseException | None = None
    try:
        read()
    except target.refusals as error:
        if target.named and not any(part in str(error) for part in ("input/", ".folder")):
            wrong = error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the libraries' Rust code raises PanicException, which is no Exception
        wrong = error
    return wrong, _memory("VmHWM") - before, time.process_time() - began, size


def _processor_time(process: int) -> float:
    """Seconds of the processor that a process has used, as its own `time.process_time` has them; of one that ended, 0."""
    try:
        user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except FileNotFoundError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@cache
def _usual_pace() -> float:
    return min(pace() for _ in range(5))


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise SystemExit("the fuzz campaign measures memory in /proc/self/status, which is Linux's")


def _where(error: BaseException) -> str:
    """The type of an error, and the last line of the package that it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "energy_flow_mlx" in frame.filename] or [
        frame for frame in traceback.extract_tb(error.__traceback__)
    ]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {place}"


if __name__ == "__main__":
    sys.exit(main())
