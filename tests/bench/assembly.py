"""Assembling a mixture beside copying the same bytes with ``cp``, and the memory it takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.harness import Result, paired
from tests.bench.weights import MIB, make_inputs

_EXPERTS = 4
_SCRIPT = """
import resource, sys
from pathlib import Path
from common.weights.assembly import write_assembly
from common.weights.plan import plan_assembly
from common.weights.sources import anchor_source, expert_source, read_manifest
anchor, *experts = map(Path, sys.argv[1:-1])
plan = plan_assembly(anchor_source(read_manifest(anchor), anchor), [expert_source(read_manifest(e), e) for e in experts], 4, "")
write_assembly(plan, Path(sys.argv[-1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def assembly_vs_cp() -> Result:
    """Four experts and their anchor into one model folder, as whole processes, beside ``cp`` of the same files."""
    with tempfile.TemporaryDirectory(prefix="elmgrove-bench-") as name:
        folder = Path(name)
        inputs = make_inputs(folder / "in", experts=_EXPERTS)
        total = sum(path.stat().st_size for each in inputs for path in each.iterdir()) / MIB
        copy = ["cp", "-r", *map(str, inputs)]
        return paired(
            lambda: _seconds([sys.executable, "-c", _SCRIPT, *map(str, inputs)], folder / "out"),
            lambda: _seconds([*copy], folder / "copy", make=True),
            work=total,
            unit="MiB/s",
            other_name="cp -r of the same files (assembly also hashes every byte)",
        )


def assembly_rss_mb() -> Result:
    """Peak memory of an assembly beside the size of what it writes."""
    with tempfile.TemporaryDirectory(prefix="elmgrove-bench-") as name:
        folder = Path(name)
        inputs = make_inputs(folder / "in", experts=_EXPERTS)
        done = subprocess.run([sys.executable, "-c", _SCRIPT, *map(str, inputs), str(folder / "out")], check=True, capture_output=True)
        written = sum(path.stat().st_size for path in (folder / "out").iterdir()) / MIB
        peak = float(done.stdout)
        return Result(peak, round(written, 1), "MiB written", "MiB", round(peak / written, 3), 1, (0.0, 0.0))


def _seconds(command: list[str], out: Path, *, make: bool = False) -> float:
    shutil.rmtree(out, ignore_errors=True)
    if make:
        out.mkdir()
    began = time.perf_counter()
    subprocess.run([*command, str(out)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["sync", "-f", str(out)], check=True)
    return time.perf_counter() - began
