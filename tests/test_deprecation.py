"""Old names work for one version, and say the new one."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from irg.cli.arguments import parse
from irg.deprecation import module_names, renamed
from irg.recipes import build


@dataclass(frozen=True)
class Options:
    """Some options."""

    memory_mode: str = renamed("rung", default="auto")
    steps: int = 1


def test_a_recipe_takes_the_old_name_and_says_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="rung is now called memory_mode"):
        assert build(Options, {"rung": "int8"}) == Options("int8")
    with pytest.raises(ValueError, match="rung: is now called memory_mode, which is given, too"):
        build(Options, {"rung": "int8", "memory_mode": "int4"})


@pytest.mark.parametrize("words", [["--rung", "int8"], ["--rung=int8"]])
def test_a_command_line_takes_the_old_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Options, words, "irg x", "") == Options("int8")
    assert "--rung is now called --memory-mode" in capsys.readouterr().err


def test_a_module_takes_the_old_name() -> None:
    new = SimpleNamespace(__name__="New")
    find = module_names("irg.some", {"Old": new})
    with pytest.warns(DeprecationWarning, match=r"irg\.some\.Old is now called irg\.some\.New"):
        assert find("Old") is new
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        find("Other")
