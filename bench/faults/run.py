"""Kill and disk campaigns: ``python bench/faults/run.py [WORK ...] [--faults kill disk] [--kills 100] [--others 10]``.

Works are in ``works.py`` (and the server in ``server.py``), faults in ``campaign.py``; figures in
``docs/reliability.md``. Exit code 1 if anything was lost, doubled, changed or left behind.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads can't be forked safely
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from campaign import Campaign, Outcome
from server import Serving
from works import SERVERS, WORKS

SERVING = "serving"
FAULTS = ("kill", "disk", "readonly", "handles", "twice", "clock")


def campaign_of(name: str, base: Path, chosen: list[str], options: argparse.Namespace) -> list[Outcome]:
    """All chosen faults on one work."""
    limits = (options.seed, 60 * options.minutes)
    campaign = Serving(base, *limits) if name == SERVING else Campaign(WORKS[name](base), base, *limits)
    outcomes = []
    for fault in chosen if name != SERVING else [fault for fault in chosen if fault in Serving.__dict__]:
        outcome = getattr(campaign, fault)(options.kills if fault == "kill" else options.others)
        print(outcome.line(), *outcome.problems[:10], sep="\n    ", flush=True)
        outcomes.append(outcome)
    return outcomes


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("works", nargs="*", choices=[*WORKS, SERVING, []], metavar="WORK", help="default: all")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--others", type=int, default=10, help="how often each of the other faults strikes")
    parser.add_argument("--minutes", type=float, default=60.0, help="the most that one fault on one work may take")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    for name in options.works or [*WORKS, SERVING]:
        base = Path(tempfile.mkdtemp(prefix=f"faults-{name}-"))
        try:
            found = campaign_of(name, base, list(options.faults), options)
            failed |= any(outcome.problems for outcome in found)
        finally:
            for server in SERVERS:
                server.kill(0)
            SERVERS.clear()
            shutil.rmtree(base, ignore_errors=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
