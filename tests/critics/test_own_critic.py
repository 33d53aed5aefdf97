"""The package that docs/critics.md shows works: taken out of the page, installed, and used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_package import install

USE = """
from PIL import Image
from irg.critics import CriticError, Review, make_critic
critic = make_critic("color-share:0.25")
red, black = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8))
print(critic.review(Review("a red cup", red)).result())
print(critic.review(Review("a red cup", black)).result())
try:
    critic.review(Review("a cup", red)).result()
except CriticError as error:
    print(error.kind, error)
critic.close()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment that has the page's package."""
    return install("critics", "irg_color_critic", tmp_path_factory.mktemp("plugin"))


def test_a_critic_of_ones_own_judges_images(installed: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, env=installed)
    assert done.returncode == 0, done.stderr
    right, wrong, refused = done.stdout.splitlines()
    assert "done=True, score=1.0" in right
    assert "wrong='only 0% of it is red', change='make more of it red', done=False, score=0.0" in wrong
    assert refused == "refused the prompt names no color"


def test_it_tells_irg_generate_what_to_change(installed: dict[str, str], tmp_path: Path) -> None:
    """One prompt that it knows and one that it refuses, where the model reflects itself."""
    few = ("--num-timesteps", "2", "--improve-num-timesteps", "2", "--rounds", "1", "--max-think-tokens", "60")
    words = ("a red cup", "a cup", "--critic", "color-share:0.999", *few, "--out", str(tmp_path / "out"), "--json")
    command = [sys.executable, "-m", "irg", "generate", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=installed)
    assert done.returncode == 0, done.stderr
    told, refused = sorted(map(json.loads, done.stdout.splitlines()), key=lambda one: one["index"])
    (verdict,), (failure,) = told["critics"], refused["critics"]
    assert verdict["change"] == "make more of it red" and not verdict["done"] and 0 <= verdict["score"] < 1
    assert "make more of it red." in told["reflection"] and len(told["images"]) == 2
    assert failure["failed"] == "refused" and failure["fallback"] == "self"
    reason = "the critic color-share failed (refused: the prompt names no color); the model reflected itself"
    assert f"irg generate: 'a cup': {reason}" in done.stderr
    assert "Critic <b>color-share</b> · score 0." in Path(told["report"]).read_text(encoding="utf-8")
