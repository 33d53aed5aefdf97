"""The package that docs/plugins.md shows works: taken out of the page, installed, and used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from plugin_package import install

COLORS = {"00001": ("a red field", (255, 0, 0)), "00002": ("a blue lake", (255, 0, 0)), "00003": ("a cat", (9, 9, 9))}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which pip has installed the page's package."""
    return install("plugins", "irg_color_judge", tmp_path_factory.mktemp("plugin"), by_pip=True)


def irg(installed: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "irg", *words], capture_output=True, text=True, env=installed)


def test_a_judge_of_ones_own_scores_images(installed: dict[str, str], tmp_path: Path) -> None:
    prompts, images = tmp_path / "genai_image.json", tmp_path / "images"
    prompts.write_text(json.dumps({number: {"prompt": text} for number, (text, _) in COLORS.items()}))
    images.mkdir()
    for number, (_, color) in COLORS.items():
        Image.new("RGB", (16, 16), color).save(images / f"{number}.jpeg")
    words = ("--images", str(images), "--judge", "color-share", "--prompts", str(prompts), "--out", str(tmp_path / "s"))
    done = irg(installed, "bench", "score", "genai-bench", *words)
    assert done.returncode == 0, done.stderr
    assert "share of the named color" in done.stdout
    assert "| images | 50.0 % (0.0–100.0, n 2) |" in done.stdout and "2 of 3 prompts are covered" in done.stdout


def test_its_name_is_suggested(installed: dict[str, str], tmp_path: Path) -> None:
    done = irg(installed, "bench", "score", "genai-bench", "--images", str(tmp_path), "--judge", "color-shape")
    assert done.returncode != 0 and "no judge 'color-shape' (did you mean 'color-share'" in done.stderr
