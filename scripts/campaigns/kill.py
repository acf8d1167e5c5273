"""SIGKILL at random moments of training, dataset build, conversion and text cache.

After each kill every file that lies there is loaded, the last announced checkpoint (shard, conversion, cache) must be there, and the
next trial resumes the job. A job that comes to its end must have left the bytes of an uninterrupted one; then it starts anew.

    python scripts/campaigns/kill.py --minutes 20 --state /dev/shm/kill
"""

import json
import shutil
import sys
from collections.abc import Sequence

from campaign import Campaign
from jobs import Build, Cache, Conversion, Job, Training, checked, child, leftovers, prepared


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 0, or 1 if a file did not load or a step was lost."""
    campaign = Campaign("kill", 1000, argv, __doc__)
    base = campaign.folder / "jobs"
    training, cache = Training(base), Cache(base)
    references = prepared(base, training, cache)
    jobs = (training, Build(base), training, Conversion(base), training, cache)  # half of the kills meet a training
    for trial in campaign.trials():
        job = jobs[trial % len(jobs)]
        random = campaign.random(trial)
        while not _killed(campaign, job, random.uniform(0, job.longest), references[job.name]):
            pass
        campaign.count(job.name)
    kills = {name: campaign.counts[name] for name in references}
    told = ", ".join(f"{name} {number}" for name, number in kills.items())
    rate = 60 * sum(kills.values()) / max(campaign.seconds, 1e-9)
    figure = (
        f"{sum(kills.values())} kills ({told}; {rate:.0f} a minute), {campaign.counts['finished']} jobs came to their end, "
        f"{campaign.faults} faults"
    )
    return campaign.end(figure, "1,000 kills, 0 files that do not load, 0 steps lost")


def _killed(campaign: Campaign, job: Job, moment: float, reference: dict[str, str]) -> bool:
    """Let the job run for `moment` seconds, kill it and check; False if it ended before."""
    safe = campaign.folder / f"{job.name}.safe"  # what it announced in the trials before
    before = json.loads(safe.read_text()) if safe.is_file() else -1
    log = campaign.folder / f"{job.name}.log"
    ended = child(job.work, log, kill_after=moment)
    announced = max(before, ended.announced)
    safe.write_text(json.dumps(announced))
    for fault in checked(job, announced, log.with_suffix(".check")):
        campaign.fault(f"{job.name}, killed after {ended.seconds:.3f} s: {fault}")
    if ended.killed:
        return True
    if ended.code:
        campaign.fault(f"{job.name} does not resume, exit code {ended.code}: {ended.printed[-500:]}")
    elif (left := job.results()) != reference:
        names = sorted(name for name in left.keys() | reference.keys() if left.get(name) != reference.get(name))
        campaign.fault(f"{job.name}: not what an uninterrupted one leaves: {', '.join(names)}")
    for fault in leftovers(job.folder):
        campaign.fault(f"{job.name}, come to its end: {fault}")
    campaign.count("finished")
    shutil.rmtree(job.folder)
    safe.unlink()
    return False


if __name__ == "__main__":
    sys.exit(main())
