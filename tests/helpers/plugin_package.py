"""The package that a page of the documentation shows, taken out of the page and installed into a folder."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from irg import registry

ROOT = Path(__file__).resolve().parents[2]
FILES = re.compile(r"^`([\w.-]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


@contextmanager
def installed_here(page: str, module: str, folder: Path) -> Iterator[None]:
    """The package of ``docs/PAGE.md`` is installed for this process."""
    site = install(page, module, folder)["PYTHONPATH"].partition(os.pathsep)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        registry._found.cache_clear()
        yield
    registry._found.cache_clear()


def install(page: str, module: str, folder: Path, by_pip: bool = False) -> dict[str, str]:
    """The environment of a process that has the package of ``docs/PAGE.md``.

    Args:
        module: the package's one file of Python beside its ``pyproject.toml``.
        by_pip: as a user does it; otherwise what pip would leave is written down, which takes no seconds.
    """
    files = dict(FILES.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))
    assert set(files) == {"pyproject.toml", f"{module}.py"}
    package, target = folder / "package", folder / "site"
    for place in (package, target):
        place.mkdir()
    for name, text in files.items():
        (package / name).write_text(text, encoding="utf-8")
    if by_pip:
        _pip(package, target)
    else:
        (target / f"{module}.py").write_text(files[f"{module}.py"], encoding="utf-8")
        _describe(tomllib.loads(files["pyproject.toml"])["project"], target)
    paths = [str(target), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def _pip(package: Path, target: Path) -> None:
    if find_spec("pip") is None or find_spec("setuptools") is None:
        pytest.skip("needs pip and setuptools")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(target), str(package)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _describe(project: dict[str, object], target: Path) -> None:
    """The folder in which importlib.metadata finds a package's entry points."""
    place = target / f"{str(project['name']).replace('-', '_')}-{project['version']}.dist-info"
    place.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (place / "METADATA").write_text(metadata, encoding="utf-8")
    groups = project["entry-points"]
    assert isinstance(groups, dict)
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for group, points in groups.items()]
    (place / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
