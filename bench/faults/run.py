"""Kill and disk campaigns: ``python bench/faults/run.py [WORK ...] [--kills 100] [--others 10] [--faults kill disk ...]``.

Works are in ``works.py`` (and the server in ``serving.py``), faults in ``campaign.py``; figures in
``docs/reliability.md``. Exit code 1 if anything was lost, doubled, changed or left behind.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads can't be forked safely
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from campaign import CLOCK, Campaign, Outcome, fake_clock  # noqa: E402
from works import SERVERS, WORKS  # noqa: E402

FAULTS = ("kill", "disk", "readonly", "handles", "twice", "clock")


def campaign_of(name: str, base: Path, chosen: list[str], kills: int, others: int, seed: int) -> list[Outcome]:
    """All chosen faults on one work."""
    import irg.cli.train
    import irg.learning.trainer  # noqa: F401  (what is imported here, forked processes need not import)

    campaign = Campaign(WORKS[name](base), base, seed)
    outcomes = []
    for fault in chosen:
        outcome = getattr(campaign, fault)(kills if fault == "kill" else others)
        print(outcome.line(), *outcome.problems[:10], sep="\n    ", flush=True)
        outcomes.append(outcome)
    return outcomes


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("works", nargs="*", choices=[*WORKS, []], metavar="WORK", help="default: all")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--others", type=int, default=10, help="how often each of the other faults strikes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faked = CLOCK in os.environ
    chosen = [fault for fault in options.faults if (fault == "clock") == faked]
    failed = False
    for name in options.works or WORKS if chosen else ():
        base = Path(tempfile.mkdtemp(prefix=f"faults-{name}-"))
        try:
            found = campaign_of(name, base, chosen, options.kills, options.others, options.seed)
            failed |= any(outcome.problems for outcome in found)
        finally:
            for server in SERVERS:
                server.kill(0)
            SERVERS.clear()
            shutil.rmtree(base, ignore_errors=True)
    if "clock" in options.faults and not faked:  # in a process of its own: the library is there from the start
        with tempfile.NamedTemporaryFile() as setting:
            failed |= subprocess.run([sys.executable, *sys.argv], env=fake_clock(Path(setting.name))).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
