"""The package that docs/plugins.md shows works: taken out of the page, installed, and used."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FILES = re.compile(r"^`([\w.-]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COLORS = {"00001": ("a red field", (255, 0, 0)), "00002": ("a blue lake", (255, 0, 0)), "00003": ("a cat", (9, 9, 9))}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on which pip has installed the page's package."""
    if find_spec("pip") is None or find_spec("setuptools") is None:
        pytest.skip("needs pip and setuptools")
    package, target = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("site")
    files = dict(FILES.findall((ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")))
    assert set(files) == {"pyproject.toml", "irg_color_judge.py"}
    for name, text in files.items():
        (package / name).write_text(text, encoding="utf-8")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(target), str(package)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def irg(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = [str(installed), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run([sys.executable, "-m", "irg", *words], capture_output=True, text=True, env=environment)


def test_a_judge_of_ones_own_scores_images(installed: Path, tmp_path: Path) -> None:
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


def test_its_name_is_suggested(installed: Path, tmp_path: Path) -> None:
    done = irg(installed, "bench", "score", "genai-bench", "--images", str(tmp_path), "--judge", "color-shape")
    assert done.returncode != 0 and "no judge 'color-shape' (did you mean 'color-share'" in done.stderr
