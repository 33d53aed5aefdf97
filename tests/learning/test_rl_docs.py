"""The reward that docs/rl.md shows works: taken out of the page, registered as it says, and trained with."""

import json
import re
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from irg import registry
from irg.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rl.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's module and entry point, as if its package were installed; the reward's name."""
    section = PAGE.read_text(encoding="utf-8").split("### A reward of your own")[1]
    code, project = (re.search(f"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("python", "toml"))
    assert code is not None and project is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 10
    (tmp_path / "my_rewards.py").write_text(code[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    ((name, value),) = tomllib.loads(project[1])["project"]["entry-points"][registry.REWARDS].items()
    usual: Callable[[str], dict[str, EntryPoint]] = registry._found
    point = {name: EntryPoint(name=name, value=value, group=registry.REWARDS)}
    monkeypatch.setattr(registry, "_found", lambda group: point if group == registry.REWARDS else usual(group))
    return name


def test_the_reward_of_the_page(shown: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a dog\n")
    recipe = {
        "kind": "rl",
        "model": str(folder),
        "out": str(tmp_path / "run"),
        "steps": 1,
        "prompts": {"kind": "file", "path": str(tmp_path / "p.txt")},
        "rewards": [{"name": shown}],
        "rollout": {"prompts": 1, "samples": 3, "max_tokens": 4},
        "limits": {"malformed": 0},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    (line,) = (json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert line["reward_failed"] == 0 and -3 <= line["reward"] < 0
    kept = json.loads((tmp_path / "run" / "texts.jsonl").read_text().splitlines()[0])
    assert kept["reasons"]["short"].startswith("missing: [")
