"""The kit for a GPU's first day, run whole on tiny models."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
STEPS = sorted((BENCH / "gpu_day").glob("*.sh"))
ONE_BY_ONE = [path.stem for path in STEPS if "exec" in path.read_text()]  # scripts run one after the other, and no more
OTHERS = [path.stem for path in STEPS if path.stem not in ONE_BY_ONE]


def run(out: Path, *words: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHON": python, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(BENCH / "gpu_day.sh"), "--out", str(out), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dry run with a command in Python's place: it writes down, by step, what Python would have been told to do."""
    folder = tmp_path_factory.mktemp("dry")
    python = folder / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" END >> "${RESULT%.result.json}.commands"\n')
    python.chmod(0o755)
    done = run(folder, "--dry", *ONE_BY_ONE, python=str(python))
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.parametrize("step", ONE_BY_ONE)
def test_a_step_of_scripts_runs_dry(dry: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's commands run in this process, which has imported torch already."""
    for command in (dry / f"{step}.commands").read_text().split("END\n")[:-1]:
        script, *words = command.splitlines()
        monkeypatch.setattr(sys, "argv", [script, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        assert not ended.value.code
    assert json.loads((dry / f"{step}.json").read_text())["exit_code"] == 0
    assert json.loads((dry / f"{step}.result.json").read_text())


@pytest.mark.parametrize("step", OTHERS)
def test_a_step_runs_dry_in_processes(tmp_path: Path, step: str) -> None:
    done = run(tmp_path, "--dry", step)
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / f"{step}.json").read_text())["exit_code"] == 0
    assert json.loads((tmp_path / f"{step}.result.json").read_text())


def test_a_failing_step_stops_no_other_and_is_repeated(tmp_path: Path) -> None:
    """Without a device there is advice; the step after it runs all the same, and is not run again."""
    kit = tmp_path / "bench"
    (kit / "gpu_day").mkdir(parents=True)
    (kit / "gpu_day.sh").write_text((BENCH / "gpu_day.sh").read_text())
    (kit / "gpu_day" / "1_bad.sh").write_text("exit 3\n")
    (kit / "gpu_day" / "2_good.sh").write_text('echo "{}" > "$RESULT"; echo ran\n')
    out = tmp_path / "out"
    for ran in (2, 1):
        done = subprocess.run(
            ["bash", str(kit / "gpu_day.sh"), "--out", str(out)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and done.stdout.count("failed with 3") == 1
        assert done.stdout.count("ran\n") == ran - 1
    codes = [json.loads((out / f"{name}.json").read_text())["exit_code"] for name in ("1_bad", "2_good")]
    assert codes == [3, 0]


def test_mistakes_are_told(tmp_path: Path) -> None:
    assert "there are: 1_smoke" in run(tmp_path, "5_none").stderr
    assert "unknown option --wet" in run(tmp_path, "--wet").stderr
