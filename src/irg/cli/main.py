"""The ``irg`` command: find the subcommand, call it, turn what a user can get wrong into one line and an exit code.

Exit codes: 0 done, 1 the reader of our output went away, 2 a mistake in the input or a failed write, 130 Ctrl-C.
Set ``IRG_DEBUG=1`` to see tracebacks.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from irg.recipes import choose
from irg.version import __version__

# name -> (module with a main(argv), what it does); a module is imported only when its command is called
COMMANDS = {
    "generate": ("irg.cli.generate", "draw images: think, draw, look, reflect, draw better"),
    "model": ("irg.cli.model", "look into model folders, convert them, make random ones"),
    "train": ("irg.cli.train", "train a model as a recipe file says"),
    "data": ("irg.cli.data", "build what models are trained on"),
    "bench": ("irg.cli.bench", "measure a model"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("IRG_DEBUG"):
            raise
        print(f"irg {words[0]}: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"irg {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        hint = choose(name, COMMANDS) or f" (there are: {', '.join(COMMANDS)})"
        print(f"irg: error: no command {name!r}{hint}; see irg --help", file=sys.stderr)
        return 2
    code: int = import_module(COMMANDS[name][0]).main(rest)
    return code


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: irg COMMAND ...\n\n"
        "Interleaving Reasoning Generation: think in text, draw, look, reflect, draw better.\n\n"
        f"commands (irg COMMAND --help tells more):\n{lines}\n\noptions:\n  --version  print the version\n"
    )


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename is not None else ""
        return _shown(f"{name}{error.strerror}")
    return _shown(" ".join(str(error).split())) or type(error).__name__


def _shown(text: str) -> str:
    """Messages quote files that anybody may have written: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
