"""The ``irg`` command: find the subcommand, call it, turn what a user can get wrong into one line and an exit code.

Exit codes: 0 done, 1 the reader of our output went away, 2 a mistake in the input or a failed write, 130 Ctrl-C.
Set ``IRG_DEBUG=1`` to see tracebacks.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from irg import registry
from irg.recipes import choose
from irg.version import __version__

_LONGEST_MESSAGE = 2000

Command = Callable[[Sequence[str]], int]
# name -> (what it does, "module:function" that is imported when it is called, or a group of commands)
Table = Mapping[str, tuple[str, "str | Command | Table"]]

COMMANDS: Table = {
    "generate": ("draw images: think, draw, look, reflect, draw better", "irg.cli.generate:main"),
    "improve": ("improve images of your own: look, reflect, draw better", "irg.cli.improve:main"),
    "edit": ("edit images as an instruction says", "irg.cli.edit:main"),
    "ask": ("ask about images", "irg.cli.ask:main"),
    "serve": ("answer over HTTP, as OpenAI's API", "irg.cli.serve:main"),
    "model": (
        "look into model folders, convert them, make random ones",
        {
            "info": ("what a model folder holds, and the memory it needs", "irg.cli.model:info"),
            "convert": ("another layout, dtype, shards; quantize; merge an adapter", "irg.cli.model:convert"),
            "init": ("a folder with random weights, for tests and benchmarks", "irg.cli.model:init"),
        },
    ),
    "train": ("train a model as a recipe file says", "irg.cli.train:main"),
    "data": (
        "build what models are trained on",
        {
            "build": ("build trajectories as a recipe says; resumes", "irg.cli.data_build:build"),
            "status": ("what a build has made, what is left, what it costs", "irg.cli.data_build:status"),
            "stats": ("numbers: sources, lengths, scores, what the thresholds leave out", "irg.cli.data_build:stats"),
            "sample": ("random rows as an HTML page, to look at", "irg.cli.data_build:sample"),
            "export": ("write the rows that pass as shards, with a dataset card", "irg.cli.data_build:export"),
            "validate": ("check shards row by row", "irg.cli.data_build:validate"),
            "push": ("upload an export to the Hugging Face hub", "irg.cli.data_build:push"),
        },
    ),
    "bench": (
        "measure a model",
        {
            "run": ("draw a benchmark's prompts: geneval, wise, tiif, genai-bench, oneig", "irg.cli.bench_run:main"),
            "score": ("let judges score a run, or any folder of images", "irg.cli.bench_score:main"),
            "table": ("scores and the paper's side by side, as Markdown, CSV or HTML", "irg.cli.bench_score:table"),
        },
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Without ``argv`` this is the process's own command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _end_at_the_second_interrupt()
        _print_renamed_names()
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


def _end_at_the_second_interrupt() -> None:
    """The first Ctrl-C raises KeyboardInterrupt, which keeps what is done; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        return

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job may ignore it
        signal.signal(signal.SIGINT, interrupt)


def _print_renamed_names() -> None:
    """Print a line where a recipe or model folder uses a name that changed (:mod:`irg.deprecation`)."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if category is DeprecationWarning:
            print(_shown(str(message)), file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    warnings.filterwarnings("default", r".* is now called ", DeprecationWarning)
    warnings.showwarning = show


def _run(words: list[str]) -> int:
    if words and words[0] in ("-V", "--version"):
        print(f"irg {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(
            "usage: irg COMMAND ...\n\n"
            "Interleaving Reasoning Generation: think in text, draw, look, reflect, draw better.\n\n"
            f"commands (irg COMMAND --help shows more):\n{_lines(COMMANDS)}\n\n"
            "options:\n  --version  print the version\n"
        )
        return 0
    if words[0] not in COMMANDS:
        print(f"irg: error: {_no_command(words[0], COMMANDS)}; see irg --help", file=sys.stderr)
        return 2
    return _call(COMMANDS[words[0]][1], words)


def _call(target: "str | Command | Table", words: Sequence[str]) -> int:
    """Call ``target``, which ``words[0]`` names, with the other words; a group without one lists its commands."""
    name, *rest = words
    if isinstance(target, str):
        module, _, function = target.partition(":")
        command: Command = getattr(import_module(module), function)
        return command(rest)
    if callable(target):
        return target(rest)
    if not rest or rest[0] in ("-h", "--help"):
        print(f"usage: irg {name} COMMAND ...\n\n{_lines({**target, **_plugins(name), **target})}")
        return 0 if rest else 2
    table = target if rest[0] in target else _plugins(name)
    if rest[0] not in table:
        raise ValueError(_no_command(rest[0], {**target, **table}))
    return _call(table[rest[0]][1], rest)


def _plugins(group: str) -> Table:
    """Commands that installed packages add to a group; a built-in one can't be replaced."""
    found: dict[str, Any] = {}
    for name in registry.names(registry.COMMANDS):
        if name.startswith(f"{group}."):
            summary = registry.summary(registry.COMMANDS, name)
            found[name.removeprefix(f"{group}.")] = (summary[:1].lower() + summary[1:], partial(_call_plugin, name))
    return found


def _call_plugin(name: str, argv: Sequence[str]) -> int:
    command: Command = registry.load(registry.COMMANDS, name)
    return command(argv)


def _lines(table: Table) -> str:
    width = max(map(len, table))
    return "\n".join(f"  {name:{width}}  {what}" for name, (what, _) in table.items())


def _no_command(name: str, table: Table) -> str:
    hint = choose(name, table) or f" (there are: {', '.join(table)})"
    return f"no command {name!r}{hint}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
        if isinstance(error, FileExistsError):  # of a folder to be made
            text = f"{error.filename}: is a file, a folder is needed"
    if len(text) > _LONGEST_MESSAGE:  # it quotes what was given, which may be a book
        text = f"{text[: _LONGEST_MESSAGE // 2]} ... {text[-_LONGEST_MESSAGE // 2 :]}"
    return _shown(text) or type(error).__name__


def _shown(text: str) -> str:
    """Messages quote files that anybody may have written: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
