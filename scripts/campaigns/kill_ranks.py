"""SIGKILL of each process of a training that several share, at random moments.

After each kill the others must end and say once who died; the last announced checkpoint must be there and load, and the next trial
resumes it with all processes. A training that comes to its end must have left the bytes of an uninterrupted one; then it starts anew.

How fast the machine is decides nothing. A process hangs if it has not ended after HANGS seconds, as one that hangs never ends; how long the
slowest one took stands in the figure. And processes that give each other up where none was killed, because they did not get along within
the time that `--collective-timeout` allows, are given twice that time from then on; it is a fault once they had what users have.

    python scripts/campaigns/kill_ranks.py --minutes 20 --state /dev/shm/kill-ranks
"""

import json
import math
import os
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from campaign import Campaign
from jobs import Announce, Ended, Training, checked, child, flags

from energy_flow_mlx.distributed import TIMEOUT

RANKS = 3
HANGS = 600.0  # seconds
PATIENCE = 30.0  # seconds of --collective-timeout at first: processes that have not met wait for so long
GAVE_UP = re.compile(r"--collective-timeout|has not been heard of")
DIED = re.compile(r"error: rank (\d) on \S+ died at ")


class Shared(Training):
    """A training of RANKS processes over MLX's ring."""

    name = "shared"

    def fields(self) -> list[str]:
        return flags(training_steps=self.steps, checkpoint_interval=self.interval, validation_interval=6, log_interval=1, batch_size=2 * RANKS)

    def together(self, log: Path, victim: int = -1, moment: float = 0.0) -> list[Ended]:
        """Run it, and kill the process `victim` after `moment` seconds."""
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(RANKS)]
            hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
        (self.base / "hosts.json").write_text(json.dumps(hosts))
        with ThreadPoolExecutor(RANKS) as pool:
            futures = [
                pool.submit(child, partial(self.work_of, rank), log.with_suffix(f".{rank}"), moment if rank == victim else None, moment + HANGS)
                for rank in range(RANKS)
            ]
            return [future.result() for future in futures]

    def work_of(self, rank: int, announce: Announce) -> int:
        """What a process does; the first one announces its checkpoints."""
        os.environ.update(MLX_HOSTFILE=str(self.base / "hosts.json"), MLX_RANK=str(rank), OPENBLAS_NUM_THREADS="1")
        return self.work(announce) if rank == 0 else self.main(["--quiet"])

    def main(self, arguments: list[str]) -> int:
        """`train`, which gives up on processes that do not get along for some seconds."""
        return super().main([*arguments, "--collective-timeout", str(self.patience)])

    @property
    def patience(self) -> float:
        """Seconds of --collective-timeout."""
        kept = self.base / "patience"
        return float(kept.read_text()) if kept.is_file() else PATIENCE

    def is_more_patient(self, ended: Sequence[Ended]) -> bool:
        """Whether processes gave each other up, and may have more time from now on."""
        if self.patience >= TIMEOUT or not any(GAVE_UP.search(each.printed) for each in ended):
            return False
        (self.base / "patience").write_text(str(min(2 * self.patience, TIMEOUT)))
        return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 0, or 1 if a process hung, a message was missing, or a step was lost."""
    campaign = Campaign("kill ranks", 100, argv, __doc__)
    job = Shared(campaign.folder / "jobs", steps=12)
    job.base.mkdir(exist_ok=True)
    reference = campaign.folder / "reference.json"
    if not reference.is_file():
        while job.is_more_patient(ended := job.together(campaign.folder / "reference.log")):
            shutil.rmtree(job.folder, ignore_errors=True)
        assert [each.code for each in ended] == [0] * RANKS, ended
        reference.write_text(json.dumps([job.results(), max(each.seconds for each in ended)]))
        shutil.rmtree(job.folder)
    results, longest = json.loads(reference.read_text())
    for trial in campaign.trials():
        random = campaign.random(trial)
        while not _killed(campaign, job, trial % RANKS, random.uniform(0, longest), results):
            pass
        campaign.count(f"rank {trial % RANKS}")
    kills = [campaign.counts[f"rank {rank}"] for rank in range(RANKS)]
    figure = (
        f"{sum(kills)} kills (of ranks 0, 1, 2: {', '.join(map(str, kills))}), {campaign.counts['named']} of them after the processes had met, each "
        f"named once, the slowest after {campaign.counts['slowest']} s; {campaign.counts['finished']} trainings came to their end, {campaign.faults} faults"
    )
    return campaign.end(figure, "100 kills, all end, 0 steps lost")


def _killed(campaign: Campaign, job: Shared, victim: int, moment: float, results: dict[str, str]) -> bool:
    """Kill a process and check; False if the training had ended for the others, or for all."""
    safe = campaign.folder / "safe"  # what was announced in the trials before
    before = int(safe.read_text()) if safe.is_file() else -1
    ended = job.together(campaign.folder / "log", victim, moment)
    announced = max(before, ended[0].announced)
    safe.write_text(str(announced))
    for fault in checked(job, announced, campaign.folder / "check"):
        campaign.fault(f"rank {victim} killed after {moment:.3f} s: {fault}")
    if ended[victim].killed and any(each.code for rank, each in enumerate(ended) if rank != victim):
        for fault in _faults(campaign, ended, victim):
            campaign.fault(f"rank {victim} killed after {moment:.3f} s: {fault}")
        return True
    failed = any(each.code for rank, each in enumerate(ended) if rank != victim or not each.killed)
    if failed and job.is_more_patient(ended):
        return False  # the next attempt resumes it
    if failed:
        campaign.fault(f"does not resume: {[(each.code, each.printed[-500:]) for each in ended]}")
    elif job.results() != results:
        campaign.fault("not what an uninterrupted training leaves")
    campaign.count("finished")
    shutil.rmtree(job.folder)
    safe.unlink()
    return False


def _faults(campaign: Campaign, ended: Sequence[Ended], victim: int) -> list[str]:
    """What is wrong with how the others ended."""
    others = [each for rank, each in enumerate(ended) if rank != victim]
    said = "".join(each.printed for each in others)
    faults = [f"a process did not end within {HANGS:g} s: {each.printed[-500:]}" for each in others if each.killed]
    if any(each.code == 0 for each in others) or "Traceback" in said:
        faults.append(f"exit codes {[each.code for each in others]}: {said[-500:]}")
    named = DIED.findall(said)
    if named:  # else they had not met yet, and cannot know who is missing
        campaign.count("named")
        slowest = math.ceil(max(each.seconds for each in others) - ended[victim].seconds)
        campaign.counts["slowest"] = max(campaign.counts["slowest"], slowest)
        if named != [str(victim)]:
            faults.append(f"named are {named}: {said[-500:]}")
    elif said.count("error: ") == 0:
        faults.append("nobody says anything")
    return faults


if __name__ == "__main__":
    sys.exit(main())
