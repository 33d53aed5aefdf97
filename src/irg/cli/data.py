"""``irg data ...``: what models are trained on."""

from collections.abc import Callable, Sequence
from importlib import import_module

from irg.cli.groups import dispatch


def _factory(name: str) -> Callable[[Sequence[str]], int]:
    """A command of the data factory, imported when it is called."""

    def call(argv: Sequence[str]) -> int:
        command: Callable[[Sequence[str]], int] = getattr(import_module("irg.cli.data_build"), name)
        return command(argv)

    return call


_COMMANDS = {
    "build": (_factory("build"), "build trajectories as a recipe says; resumes"),
    "status": (_factory("status"), "what a build has made, what is left, what it costs"),
    "stats": (_factory("stats"), "numbers: sources, lengths, scores, what the thresholds leave out"),
    "sample": (_factory("sample"), "random rows as an HTML page, to look at"),
    "export": (_factory("export"), "write the rows that pass as shards, with a dataset card"),
    "validate": (_factory("validate"), "check shards row by row"),
    "push": (_factory("push"), "upload an export to the Hugging Face hub"),
}


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Raises:
        ValueError: an argument is wrong, or something it names is missing.
    """
    return dispatch("irg data", _COMMANDS, argv)
