"""How fast the data factory makes mini rows, and how much memory it takes: a build in a process of its own, watched.

``python bench/data_factory.py --rows 30000`` prints rows, CPU seconds of the build and its workers, wall seconds, and the most memory
that all its processes held together at one time (resident, shared pages counted once for each).
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipes" / "data" / "mini.yaml"
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Options:
    """What to build."""

    rows: int = 30_000
    processes: int = 2
    repairs: float = 0.2
    export: bool = True


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for child in Path("/proc").glob(f"{pid}/task/*/children"):
        for name in child.read_text().split():
            found += family(int(name))
    return found


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def watched(words: list[str]) -> dict[str, float]:
    """Run ``irg data ...``; CPU and wall seconds, and peak memory in MB."""
    before, begun, peak = os.times(), time.monotonic(), 0
    code = "import sys; from irg.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", code, "data", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            peak = max(peak, sum(map(resident, family(process.pid))))
        except OSError:
            pass
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_s": round(cpu, 1), "wall_s": round(time.monotonic() - begun, 1), "peak_mb": round(peak / 1e6)}


def main(options: Options) -> None:
    """Build, then export."""
    with tempfile.TemporaryDirectory() as folder:
        source = f"[{{kind: miniworld, rows: {options.rows}, repairs: {options.repairs}}}]"
        own = ["--out", folder, "--prompts.sources", source, "--processes", str(options.processes)]
        print("build ", options.rows, "rows", watched(["build", str(RECIPE), *own]), flush=True)
        if options.export:
            print("export", watched(["export", str(RECIPE), *own]), flush=True)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print("disk  ", round(size / 1e6), "MB with the export")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
