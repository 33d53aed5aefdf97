"""What the documentation names exists: links, files, modules and commands."""

import importlib.util
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(file for glob in ("*.md", "docs/*.md", "recipes/**/*.md", "bench/*.md") for file in ROOT.glob(glob))
HISTORY = {"CHANGELOG.md"}  # speaks of names as they were
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
DOTTED = re.compile(r"(?<![\w./-])(irg(?:_mini)?(?:\.[a-z_][a-z_0-9]*)+)\b(?!\()")
FILE = re.compile(r"(?<![\w/.-])((?:src|tests|bench|recipes|docs)/[\w./*-]*\w)")
NOT_MODULES = {"irg.json"}


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(FENCE.sub("", text)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=page_id)
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in FILE.findall(text):
        assert list(ROOT.glob(name)), f"{page.name} names {name}"
    for name in DOTTED.findall(text):
        assert name in NOT_MODULES or _exists(name), f"{page.name} names {name}"


def _exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one; groups of entry points count as names, too."""
    if name.startswith("irg.") and name in _groups():
        return True
    try:
        if importlib.util.find_spec(name) is not None:
            return True
    except ModuleNotFoundError:
        pass
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(import_module(module), attribute)
    except ImportError:
        return False


def _groups() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return set(re.findall(r'^\[project\.entry-points\."(irg\.\w+)"\]', text, re.M))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=page_id)
def test_commands_that_are_shown_exist(page: Path) -> None:
    """Every ``irg ...`` line of a shell block names a command that there is, and options that its help knows."""
    from irg.cli.main import COMMANDS

    for line in _shell_lines(page.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        while words and ("=" in words[0] or words[0] in ("bash", "time")):
            words.pop(0)
        if words and Path(words[0]).name == "irg" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in COMMANDS, f"{page.name}: {line}"


def _shell_lines(text: str) -> list[str]:
    blocks = [body for language, body in FENCE.findall(text) if language in ("sh", "bash", "console")]
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_readme_names_the_two_commands_of_a_fresh_machine() -> None:
    blocks = "\n".join(body for _, body in FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert re.search(r"^make demo\b", blocks, re.M) and re.search(r"^make test\b", blocks, re.M)


def test_every_fault_has_a_test_that_exists() -> None:
    """The table of ``docs/reliability.md``: its numbers have no gap, and each row names tests by file and name."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)b? \| .* \| (`tests/.*`) \|$", text, re.M)
    assert {int(number) for number, _ in rows} == set(range(len(rows) - 1)) and len(rows) > 40
    for number, tests in rows:
        for file, name in re.findall(r"`([\w/.]+)::(\w+)`", tests):
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"fault {number}: {file}::{name}"


def test_the_site_has_every_page() -> None:
    told = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert {page.name for page in ROOT.glob("docs/*.md")} == set(re.findall(r'"([\w-]+\.md)"', told))
