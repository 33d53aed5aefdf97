"""Speed and memory of a build of mini rows, measured in a process of its own.

``python bench/data_factory.py --rows 30000`` prints rows, CPU seconds of the build and its workers, wall seconds, and
the most memory of all its processes together at one time (resident; shared pages count once for each): over the
whole run, in each tenth of it (which shows growth), and of the first process alone. Linux only.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parents[1] / "recipes" / "data" / "mini.yaml"
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Options:
    """What to build."""

    rows: int = 30_000
    processes: int = 2
    repairs: float = 0.2
    export: bool = True


def process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for child in Path("/proc").glob(f"{pid}/task/*/children"):
        for name in child.read_text().split():
            found += process_tree(int(name))
    return found


def resident_bytes(pid: int) -> int:
    """Resident memory of a process in bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far. (Workers are no children that the build waits for, so its own sum lacks them.)"""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peaks_by_tenth(samples: list[tuple[float, int]]) -> list[int]:
    """The peak in MB of each tenth of the time that samples (second, bytes) were taken."""
    peaks, last = [0] * 10, samples[-1][0] + 1e-9
    for second, held in samples:
        peaks[int(10 * second / last)] = max(peaks[int(10 * second / last)], held)
    return [round(peak / 1e6) for peak in peaks]


def measure(words: list[str]) -> dict[str, Any]:
    """Run ``irg data ...``; CPU and wall seconds, and peak memory in MB."""
    begun, cpu = time.monotonic(), dict[int, float]()
    samples, first = [(0.0, 0)], 0
    code = "import sys; from irg.cli.main import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", code, "data", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(OSError):  # a process may end while we look
            pids = process_tree(process.pid)
            samples.append((time.monotonic() - begun, sum(map(resident_bytes, pids))))
            first = max(first, resident_bytes(process.pid))
            cpu |= {pid: cpu_seconds(pid) for pid in pids}
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {
        "cpu_s": round(sum(cpu.values()), 1),
        "wall_s": round(time.monotonic() - begun, 1),
        "peak_mb": round(max(held for _, held in samples) / 1e6),
        "peak_mb_of_each_tenth": peaks_by_tenth(samples),
        "peak_mb_of_first_process": round(first / 1e6),
    }


def main(options: Options) -> None:
    """Build, then export."""
    with tempfile.TemporaryDirectory() as folder:
        source = f"[{{kind: miniworld, rows: {options.rows}, repairs: {options.repairs}}}]"
        own = ["--out", folder, "--prompts.sources", source, "--processes", str(options.processes)]
        print("build ", options.rows, "rows", measure(["build", str(RECIPE), *own]), flush=True)
        if options.export:
            print("export", measure(["export", str(RECIPE), *own]), flush=True)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print("disk  ", round(size / 1e6), "MB with the export")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
