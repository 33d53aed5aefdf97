"""``kill -9`` at random moments of a build against a server that misbehaves: nothing lost, nothing twice, the same set.

IRG_TEST_KILLS=50 kills fifty times (default 3).
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("tenacity")

from faulty_server import FaultyServer
from teachers import number, recipe, recipe_file, reply

from irg.curation.build import build
from irg.curation.build_folder import BuildFolder
from irg.curation.export import export
from irg.files import locked

KILLS = int(os.environ.get("IRG_TEST_KILLS", "3"))
ROWS = max(24, 5 * KILLS)
PLANS = ((), (), (), ("429",), ("500", "429"), ("truncated",), ("hang",), ("drop", "500"))


def faults(key: str) -> tuple[str, ...]:
    """What a request meets before it is answered: the same for the same request."""
    return PLANS[int(key[:4], 16) % len(PLANS)]


def wrong(key: str) -> str:
    return ("size", "bytes", "", "", "", "", "", "")[int(key[4:8], 16) % 8]


def content(folder: BuildFolder) -> dict[str, object]:
    """All rows of all stages, times aside."""
    found: dict[str, object] = {}
    for name, stage_folder in folder.stage_folders.items():
        for block in stage_folder.blocks():
            for row_id, row in stage_folder.read(block).items():
                row.pop("seconds")
                found[f"{name} {row_id}"] = row
    return found


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def on_disk(answers: Path) -> set[str]:
    return {file.stem for file in answers.glob("??/*.json")}


def test_a_build_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    options = {"faults": faults, "wrong": wrong, "slow_s": 0.01, "hang_s": 1.0}
    with FaultyServer(reply, slow_s=0.0, wrong=wrong) as calm:
        smooth = recipe(calm.url, tmp_path / "smooth", ROWS)
        build(smooth, log=lambda _: None)
        undisturbed = BuildFolder.of(smooth)
        calls = len(calm.log)
    with FaultyServer(reply, **options) as server:
        file = recipe_file(tmp_path / "recipe.yaml", server.url, tmp_path / "killed", ROWS, timeout_s=0.7)
        kills = kill_while_building(file, server, tmp_path / "killed" / "answers", calls)
        assert kills == KILLS, "the build was whole before it was killed as often as asked"
        folder = BuildFolder.of(recipe(server.url, tmp_path / "killed", ROWS))
        assert content(folder) == content(undisturbed)
        # every answer that was sent and is on disk was sent once, up to those in flight at a kill
        answered = server.answered()
        assert set(answered) >= on_disk(folder.answers)
        assert sum(answered.values()) - len(answered) <= kills * 16
    one, _ = export(undisturbed)
    two, _ = export(folder)
    assert {n: h for n, h in hashes(one).items() if n != "export.json"} == {
        n: h for n, h in hashes(two).items() if n != "export.json"
    }
    rejected = [row for row in content(folder).values() if row["rejected"] is not None]
    assert any("unusable answers" in row["rejected"] for row in rejected)


def kill_while_building(file: str, server: FaultyServer, answers: Path, calls: int) -> int:
    """Build in a process of its own, kill it at random moments, at last let it finish; returns the number of kills.
    After each kill no request whose answer is on disk may arrive again. ``calls`` are those of an undisturbed build."""
    chance = random.Random(number(file))
    kills = 0
    while True:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from irg.cli.main import main; sys.exit(main())",
                "data",
                "build",
                file,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        known, seen = on_disk(answers), len(server.log)
        if kills < KILLS:
            # from the first request on, so that kills fall all over the work and not into the imports
            left = max(0, calls - len(set(server.answered())))
            until = seen + chance.randrange(1, 2 + 2 * left // (KILLS - kills + 1))
            while len(server.log) < until and process.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.03)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        _, error = process.communicate(timeout=900)
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        assert not known & {key for key, _, _ in server.log[seen:]}, "a request was repeated whose answer was on disk"
        if process.returncode == 0:
            return kills


def test_two_builds_on_one_folder_are_refused(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        plan = recipe(server.url, tmp_path / "out", 2)
        folder = BuildFolder.of(plan)
        with (
            locked(folder.lock, "not held yet"),
            pytest.raises(ValueError, match="another build is at work here; wait for it or stop it first"),
        ):
            build(plan)
        assert not server.log and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["build.lock"]
