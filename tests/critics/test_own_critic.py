"""The package that docs/critics.md shows works: taken out of the page, installed, and used."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from plugin_package import installed_here

from irg.cli.main import main
from irg.critics import CriticError, Review, make_critic


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_here("critics", "irg_color_critic", tmp_path_factory.mktemp("plugin")):
        yield


def test_a_critic_of_ones_own_judges_images() -> None:
    critic = make_critic("color-share:0.25")
    red, black = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8))
    right, wrong = (critic.review(Review("a red cup", image)).result() for image in (red, black))
    assert right.done and right.score == 1.0
    assert (wrong.wrong, wrong.change) == ("only 0% of it is red", "make more of it red")
    assert not wrong.done and wrong.score == 0.0
    with pytest.raises(CriticError, match="the prompt names no color") as refused:
        critic.review(Review("a cup", red)).result()
    assert refused.value.kind == "refused"
    critic.close()


def test_it_tells_irg_generate_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One prompt that it knows and one that it refuses, where the model reflects itself."""
    few = ("--num-timesteps", "2", "--improve-num-timesteps", "2", "--rounds", "1", "--max-think-tokens", "60")
    words = ("a red cup", "a cup", "--critic", "color-share:0.999", *few, "--out", str(tmp_path / "out"), "--json")
    assert main(["generate", *words]) == 0
    printed = capsys.readouterr()
    told, refused = sorted(map(json.loads, printed.out.splitlines()), key=lambda one: one["index"])
    (verdict,), (failure,) = told["critics"], refused["critics"]
    assert verdict["change"] == "make more of it red" and not verdict["done"] and 0 <= verdict["score"] < 1
    assert "make more of it red." in told["reflection"] and len(told["images"]) == 2
    assert failure["failed"] == "refused" and failure["fallback"] == "self"
    reason = "the critic color-share failed (refused: the prompt names no color); the model reflected itself"
    assert f"irg generate: 'a cup': {reason}" in printed.err
    assert "Critic <b>color-share</b> · score 0." in Path(told["report"]).read_text(encoding="utf-8")
