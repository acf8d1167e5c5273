"""scripts/benchmarks/kernels.py without a GPU: it counts every op that has a kernel, and counts right."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_counted_table(tmp_path: Path) -> None:
    script, file = ROOT / "scripts" / "benchmarks" / "kernels.py", tmp_path / "table.json"
    command = [sys.executable, str(script), "--presets", "reference-debug", "--count", "--json", str(file)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = json.loads(file.read_text(encoding="utf-8"))["table"]
    assert len(printed.splitlines()) == 2 + len(rows)
    named = {row["op"].split(",")[0] for row in rows}
    assert named == {source.stem for source in (ROOT / "kernels").glob("*.metal")}
    assert all(row["must_bytes"] <= row["kernel_bytes"] < row["plain_bytes"] for row in rows)
    assert all(row["launches_saved"] == row["plain_launches"] - row["kernel_launches"] > 0 for row in rows)

    table = {(row["op"], row["direction"]): row for row in rows}
    x, mask, mean, count = 8 * 64 * 256 * 4, 8 * 64, 8 * 256 * 4, 8 * 4
    forward, both = table["masked_mean", "forward"], table["masked_mean", "both"]
    assert (forward["must_bytes"], forward["kernel_bytes"]) == (x + mask + mean, x + mask + mean + count)
    assert (forward["kernel_launches"], both["kernel_launches"]) == (1, 2)
    assert both["must_bytes"] == forward["must_bytes"] + mask + mean + x
