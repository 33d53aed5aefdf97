"""Command-line words into a dataclass, with one clear line for a mistake."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

from irg.deprecation import old_names

T = TypeVar("T")
_STYLE = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)  # no "None" among the choices, no --no-json


def parse(kind: type[T], argv: Sequence[str], prog: str, description: str) -> T:
    """Read ``argv`` into ``kind``; ``--help`` prints and exits with 0.

    Raises:
        ValueError: an argument is unknown, missing or of the wrong type.
    """
    errors = io.StringIO()
    argv = _by_new_names(kind, argv)
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=argv, prog=prog, description=description, config=_STYLE)
    except SystemExit as exit_:
        if exit_.code == 2:
            raise ValueError(f"{_first_sentence(errors.getvalue())} (see {prog} --help)") from exit_
        sys.stderr.write(errors.getvalue())
        raise


def _by_new_names(kind: type, argv: Sequence[str]) -> list[str]:
    """The words with options that were renamed under their new names; each is told in a line."""
    renamed = {f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}" for old, new in old_names(kind).items()}
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        option = name.replace("_", "-")
        if option in renamed:
            print(f"{option} is now called {renamed[option]}", file=sys.stderr)
            words.append(renamed[option] + equals + value)
        else:
            words.append(word)
    return words


def image_size(text: str) -> tuple[int, int]:
    """(width, height) of what a user typed for ``--size``.

    Raises:
        ValueError: it is no size.
    """
    match = re.fullmatch(r"([0-9]{1,6})(?:[xX×]([0-9]{1,6}))?", text.strip())
    if not match:
        raise ValueError(f"--size must be WIDTHxHEIGHT or one number (such as 128 or 128x96), got {text!r}")
    width = int(match[1])
    return width, int(match[2] or width)


def _first_sentence(panel: str) -> str:
    """What a framed message says above its first rule, without colors and frame, and the nearest option it knows.

    Where the output can't show frames, the title stands alone above a rule of its own.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", panel)
    framed = "╭" in plain
    lines = [line.strip().strip("│").strip() for line in plain.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"\s*[─-]{10,}\s*", " ".join(line for line in lines if line))
    told = paragraphs[0 if framed or len(paragraphs) == 1 else 1].replace(", 'None'", "")
    meant = re.search(r"Perhaps you meant.*?(--[\w-]+)", " ".join(paragraphs))
    return (told or "the arguments can't be read") + (f"; did you mean {meant[1]}?" if meant else "")
