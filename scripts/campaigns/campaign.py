"""What every campaign shares: a seed, a time limit, a state to go on from, and one line of a table at the end.

    campaign = Campaign("kill", goal=1000, argv=argv)
    for trial in campaign.trials():          # 0, 1, … up to the goal or until --minutes are over, but one at least
        random = campaign.random(trial)      # the same for the same seed and trial, in whatever order trials are run
        campaign.count("kills")
        if not loads(file):
            campaign.fault(f"{file} does not load")
    return campaign.end(f"{campaign.counts['kills']} kills, {campaign.faults} faults", "1,000 kills, 0 faults")

How many trials there are depends on the machine; what comes of a trial must not. So verdicts go by counts, by processor time and by slopes
with their errors, never by the clock, save to tell what never ends from what is slow.

A campaign that is run again with the same --state goes on with the next trial; its counts and faults add up.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_SAVE_EVERY = 2.0  # seconds


def pace() -> float:
    """Seconds of the processor for a fixed piece of work: caches and cores that others share make them more, so that what is divided by them
    is of the program, not of the machine's load."""
    times = []
    for _ in range(5):
        began = time.process_time()
        sum(number * number for number in range(50_000))
        times.append(time.process_time() - began)
    return sorted(times)[2]


class Campaign:
    """The state of one campaign.

    Args:
        name: of the campaign.
        goal: trials that reach its figure.
        argv: arguments of the command line; None: those of the process.
        description: for --help.
        add: adds further options to the parser.

    Attributes: `options`, the parsed command line; `counts`, a Counter that is kept between runs; `faults`, how many were
    found; `done`, trials that are complete; `folder`, where the campaign may keep files.

    Raises:
        SystemExit: 2, a wrong argument, or a state of another campaign or seed.
    """

    def __init__(
        self,
        name: str,
        goal: int,
        argv: Sequence[str] | None = None,
        description: str | None = None,
        add: Callable[[argparse.ArgumentParser], Any] | None = None,
    ) -> None:
        parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
        parser.add_argument("--minutes", type=float, default=1.0, help="stop after this time (default: %(default)s)")
        parser.add_argument("--seed", type=int, default=0, help="what is tried depends on it alone (default: %(default)s)")
        parser.add_argument("--goal", type=int, default=goal, help="trials to reach (default: %(default)s)")
        parser.add_argument(
            "--state", type=Path, metavar="FOLDER", help="where to go on from (default: runs/campaigns/NAME-seedSEED)"
        )
        if add is not None:
            add(parser)
        self.options = parser.parse_args(argv)
        self.name, self.goal = name, self.options.goal
        self.folder = self.options.state or Path("runs") / "campaigns" / f"{name}-seed{self.options.seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._saved = time.monotonic()
        self._deadline = self._saved + 60 * self.options.minutes
        self._whose = {"campaign": name, "seed": self.options.seed}
        self.done, self.faults, self.seconds = 0, 0, 0.0
        self.counts: Counter[str] = Counter()
        if self._file.is_file():
            state = json.loads(self._file.read_text(encoding="utf-8"))
            if {key: state[key] for key in self._whose} != self._whose:
                parser.error(f"{self._file} is of {state['campaign']} with seed {state['seed']}; name another --state")
            self.done, self.faults, self.seconds = state["done"], state["faults"], state["seconds"]
            self.counts.update(state["counts"])

    @property
    def _file(self) -> Path:
        return self.folder / "state.json"

    def trials(self) -> Iterator[int]:
        """The numbers of the trials to make now: at least one, unless --minutes is 0, so that no slow machine passes for want of trials."""
        first = self.options.minutes > 0
        while self.done < self.goal and (first or time.monotonic() < self._deadline):
            yield self.done
            first, self.done = False, self.done + 1
            if time.monotonic() - self._saved > _SAVE_EVERY:
                self.save()

    def random(self, trial: int) -> random.Random:
        """Random numbers that depend on the seed and the number of the trial alone."""
        return random.Random(f"{self.options.seed}:{trial}")

    def count(self, what: str, number: int = 1) -> None:
        """Add to one of the counts."""
        self.counts[what] += number

    def fault(self, text: str) -> None:
        """Note a fault: print it, and keep it in faults.txt with the number of the trial."""
        self.faults += 1
        line = f"trial {self.done}: {text}"
        print(line, file=sys.stderr, flush=True)
        with (self.folder / "faults.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")
        self.save()

    def save(self) -> None:
        """Write the state, aside and renamed."""
        now = time.monotonic()
        self.seconds, self._saved = self.seconds + now - self._saved, now
        state = {**self._whose, "done": self.done, "faults": self.faults, "seconds": self.seconds, "counts": self.counts}
        aside = self._file.with_suffix(".new")
        aside.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, self._file)

    def end(self, figure: str, bound: str, held: bool | None = None) -> int:
        """Save, print the line of the table and return the exit code: 1 if the figure is missed.

        Args:
            figure: what was found.
            bound: what is to be reached.
            held: whether the figure keeps to its bound in the trials made so far; None: it does if there are no faults.
        """
        self.save()
        held = self.faults == 0 if held is None else held
        verdict = "missed" if not held else "reached" if self.done >= self.goal else f"held so far ({self.done} of {self.goal})"
        print(f"| {self.name} | {figure} | {bound} | {verdict} |")
        return 0 if held else 1
