"""``irg data ...``: what models are trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from irg.cli.arguments import parse
from irg.cli.groups import dispatch


@dataclass(frozen=True)
class _Sprites:
    cache_dir: str | None = None
    """Where they are kept (default: $IRG_CACHE, else ~/.cache/irg)."""
    archive: str | None = None
    """The package's tarball, if it is here already; nothing is downloaded then."""


def _sprites(argv: Sequence[str]) -> int:
    from irg_mini.world.sprites import SpriteFetchError, fetch_sprites

    options = parse(_Sprites, argv, "irg data sprites", "Get the mini world's icons (MIT) with npm, once.")
    try:
        print(fetch_sprites(options.cache_dir, options.archive))
    except SpriteFetchError as error:
        raise ValueError(str(error)) from error
    return 0


def _mini(argv: Sequence[str]) -> int:
    from irg_mini.data.rows import MiniData, build

    data = parse(MiniData, argv, "irg data mini", "Write training rows of the mini world as parquet shards; resumes.")
    print(f"{build(data)} rows built in {data.out}")
    return 0


def _drafts(argv: Sequence[str]) -> int:
    from irg_mini.data.drafts import Drafts, build

    what = "Let a model draw, a detector judge and the oracle correct: repair rows of a model's own mistakes; resumes."
    options = parse(Drafts, argv, "irg data drafts", what)
    print(f"{build(options)} rows built in {options.out}")
    return 0


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
    "sprites": (_sprites, "get the mini world's icons with npm"),
    "mini": (_mini, "write training rows of the mini world"),
    "drafts": (_drafts, "write repair rows from a model's own drafts"),
}


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Raises:
        ValueError: an argument is wrong, or something it names is missing.
    """
    return dispatch("irg data", _COMMANDS, argv)
