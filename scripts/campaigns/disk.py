"""Every write of a training, a dataset build, a conversion and a text cache fails once: no room, an error, a short write, a full disk.

A preloaded library (failing.c; Linux and a C compiler, `cc` or ziglang, are needed) lets the n-th operation on a file under the job's
folder fail, for every n and each of four ways. Wanted of each trial:

- a short write costs nothing: the job goes on to the same result;
- any other failure is named with a path and the system's reason, on stderr, without a traceback, and the exit code is 1 or 2; a job may
  end with 0 after a failure that it names, if its result is complete;
- no partial file stays, what was announced as saved is there, and the job goes on, once there is room, to the result that an undisturbed
  one has.

    python scripts/campaigns/disk.py --minutes 20 --state /dev/shm/disk
"""

import ctypes
import errno
import importlib.util
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from campaign import Campaign
from jobs import Announce, Build, Cache, Conversion, Ended, Job, Training, checked, child, leftovers, prepared

KINDS = ("no room once", "an error once", "a short write", "a full disk")  # in the order of failing.c
SHORT = KINDS.index("a short write")
LIBRARY = "ENERGY_FLOW_FAILING"


class Trial(NamedTuple):
    """The `operation`-th of a job fails in the way `kind`."""

    job: Job
    operation: int
    kind: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 0, or 1 if a checkpoint was lost or a failure not named."""
    campaign = Campaign("disk", 0, argv, __doc__)
    if LIBRARY not in os.environ:
        return _preloaded(campaign.folder, sys.argv[1:] if argv is None else argv)
    base = campaign.folder.resolve() / "jobs"
    training, cache = Training(base, steps=1, interval=1), Cache(base, most=15)
    references = prepared(base, training, cache)
    jobs: tuple[Job, ...] = (training, Build(base), Conversion(base), cache)
    counts = {job.name: _operations(job) for job in jobs}
    trials = [
        Trial(job, number, kind) for job in jobs for number in range(1, counts[job.name] + 1) for kind in range(len(KINDS))
    ]
    random.Random(campaign.options.seed).shuffle(trials)
    campaign.goal = campaign.goal or len(trials)
    for number in campaign.trials():
        trial = trials[number]
        for fault in _faults(trial, references[trial.job.name], campaign):
            campaign.fault(f"{trial.job.name}, operation {trial.operation}, {KINDS[trial.kind]}: {fault}")
    told = ", ".join(f"{name} {number}" for name, number in counts.items())
    figure = (
        f"{campaign.done} of {len(trials)} failures ({told} operations, {len(KINDS)} ways each), "
        f"{campaign.counts['named']} named, {campaign.counts['survived']} without consequence, {campaign.faults} faults"
    )
    return campaign.end(figure, "every operation, 0 lost checkpoints, every failure named")


def _faults(trial: Trial, reference: dict[str, str], campaign: Campaign) -> list[str]:
    job = trial.job
    shutil.rmtree(job.folder, ignore_errors=True)
    ended, failed = _disturbed(trial)
    if not failed:
        campaign.count("not reached")
        return []
    reason = os.strerror(errno.EIO if KINDS[trial.kind] == "an error once" else errno.ENOSPC)
    told = [line for line in ended.printed.splitlines() if reason in line and str(job.folder) in line]
    faults = []
    if ended.code not in (0, 1, 2):
        faults.append(f"exit code {ended.code}")
    if "Traceback" in ended.printed:
        faults.append(f"a traceback: {ended.printed.splitlines()[-1]}")
    elif trial.kind == SHORT and ended.code:
        faults.append(f"exit code {ended.code}: {ended.printed[-300:]}")
    elif trial.kind != SHORT and not told:
        faults.append(f"no line names {reason!r} and a path (exit code {ended.code}): {ended.printed[-300:]!r}")
    faults += leftovers(job.folder)
    faults += checked(job, ended.announced, job.base / "check")
    again = child(job.work, job.base / "again")
    if again.code:
        faults.append(f"does not go on, exit code {again.code}: {again.printed[-300:]}")
    elif (left := job.results()) != reference:
        names = sorted(name for name in left.keys() | reference.keys() if left.get(name) != reference.get(name))
        faults.append(f"goes on to another result: {', '.join(names)}")
    campaign.count("named" if told else "survived" if not faults else "missed")
    return [f"{fault} (it was: {failed})" for fault in faults]


def _disturbed(trial: Trial) -> tuple[Ended, str]:
    """Run a job with its failure; returns how it ended, and which operation failed ("": it was not reached)."""
    job, note = trial.job, trial.job.base / "failed"

    def work(announce: Announce) -> int:
        library = _library()
        library.failing_at(os.fsencode(job.folder), trial.operation, trial.kind)
        try:
            return job.work(announce)
        finally:
            failed = os.fsdecode(library.failing_name())
            count = library.failing_count()
            library.failing_at(b"", 0, 0)
            note.write_text(f"{count}\n{failed}", encoding="utf-8")

    note.unlink(missing_ok=True)
    ended = child(work, job.base / "log")
    return ended, note.read_text(encoding="utf-8").split("\n")[1] if note.is_file() else "?"


def _operations(job: Job) -> int:
    """How many operations an undisturbed job makes."""
    shutil.rmtree(job.folder, ignore_errors=True)
    ended, _ = _disturbed(Trial(job, 0, 0))
    if ended.code:
        raise RuntimeError(f"{job.name} fails without a failure:\n{ended.printed}")
    return int((job.base / "failed").read_text(encoding="utf-8").split("\n")[0])


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ[LIBRARY])
    library.failing_name.restype = ctypes.c_char_p
    library.failing_count.restype = ctypes.c_long
    library.failing_at.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    return library


def _preloaded(folder: Path, argv: Sequence[str]) -> int:
    """This campaign in a process that has the library preloaded."""
    source, built = Path(__file__).with_name("failing.c"), folder.resolve() / "failing.so"
    ziglang = importlib.util.find_spec("ziglang") is not None
    compiler = ["cc"] if shutil.which("cc") or not ziglang else [sys.executable, "-m", "ziglang", "cc"]
    if not sys.platform.startswith("linux"):
        print("| disk | not run: failing.c preloads on Linux alone | | left out |")
        return 0
    subprocess.run([*compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(built), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(built), LIBRARY: str(built)}
    return subprocess.run([sys.executable, __file__, *argv], check=False, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
