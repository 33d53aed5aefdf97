"""The laboratory's commands: ``irg bench mini``, ``irg data mini | drafts | checks | sprites``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from irg.cli.arguments import parse, parse_with_settings


def bench_mini(argv: Sequence[str]) -> int:
    """Held-out prompts of the mini world, judged by a detector; resumes."""
    from irg_mini.measure.benchmark import Evaluation, evaluate

    what = "Held-out prompts of the mini world in GenEval's six forms, judged by a detector; resumes."
    evaluation, settings = parse_with_settings(Evaluation, argv, "irg bench mini", what, without=("mode",))
    print(evaluate(replace(evaluation, settings=settings)))
    return 0


@dataclass(frozen=True)
class _Sprites:
    cache_dir: str | None = None
    """Where they are kept (default: $IRG_CACHE, else ~/.cache/irg)."""
    archive: str | None = None
    """The package's tarball, if it is here already; nothing is downloaded then."""


def data_sprites(argv: Sequence[str]) -> int:
    """Get the mini world's icons with npm."""
    from irg_mini.world.sprites import SpriteFetchError, fetch_sprites

    options = parse(_Sprites, argv, "irg data sprites", "Get the mini world's icons (MIT) with npm, once.")
    try:
        print(fetch_sprites(options.cache_dir, options.archive))
    except SpriteFetchError as error:
        raise ValueError(str(error)) from error
    return 0


def data_mini(argv: Sequence[str]) -> int:
    """Write training rows of the mini world."""
    from irg_mini.data.rows import MiniData, build

    data = parse(MiniData, argv, "irg data mini", "Write training rows of the mini world as parquet shards; resumes.")
    print(f"{build(data)} rows built in {data.out}")
    return 0


def data_drafts(argv: Sequence[str]) -> int:
    """Write repair rows from a model's own drafts."""
    from irg_mini.data.drafts import Drafts, build

    what = "Let a model draw, a detector judge and the ground truth correct: rows of a model's own mistakes; resumes."
    options = parse(Drafts, argv, "irg data drafts", what)
    print(f"{build(options)} rows built in {options.out}")
    return 0


def data_checks(argv: Sequence[str]) -> int:
    """Write rows of plans and lists compared with prompts."""
    from irg_mini.data.checks import Checks, build

    what = (
        "Plans and lists of things, compared with prompts in words: rows that teach a model to check itself; resumes."
    )
    options = parse(Checks, argv, "irg data checks", what)
    print(f"{build(options)} conversations built in {options.out}")
    return 0
