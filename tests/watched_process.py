"""One process of tests/test_watchdog.py: the watch without MLX, told on standard input what the process does.

    python watched_process.py RANK TIMEOUT [PORT TOKEN]    process 0 prints the port and the token
"""

import sys
from pathlib import Path
from types import ModuleType

package = ModuleType("energy_flow_mlx")  # without its __init__, which imports MLX
package.__path__ = [str(Path(__file__).resolve().parents[1] / "energy_flow_mlx")]
sys.modules["energy_flow_mlx"] = package

from energy_flow_mlx import watchdog  # noqa: E402

HOSTS = ("mac1", "mac1", "mac2")
watchdog.GRACE = 0.5

rank, timeout = int(sys.argv[1]), float(sys.argv[2])
if rank == 0:
    door = watchdog.Door(local=True)
    print(door.port, door.token, flush=True)
    lines = door.admit(len(HOSTS) - 1)
else:
    lines = {0: watchdog.enter(["127.0.0.1"], int(sys.argv[3]), sys.argv[4], rank)}
watch = watchdog.Watch(rank, HOSTS, timeout, lines)
watch.advice = "; go on"
print("watched", flush=True)
for line in sys.stdin:
    order, _, rest = line.strip().partition(" ")
    if order == "mark":
        watch.mark(rest)
    elif order == "watching":
        watch.watching(True)
    elif order == "fail":
        watch.failed(rest, 2)
    elif order == "leave":
        watch.leave(int(rest))
        sys.exit(int(rest))
    elif order == "refuse":
        watch.leave(int(rest), planned=False)
        sys.exit(int(rest))
    print("done", flush=True)
