"""``irg bench ...``: measuring models."""

from collections.abc import Sequence

from irg.cli.groups import dispatch


def _run(argv: Sequence[str]) -> int:
    from irg.cli.bench_run import main

    return main(argv)


def _score(argv: Sequence[str]) -> int:
    from irg.cli.bench_score import main

    return main(argv)


def _table(argv: Sequence[str]) -> int:
    from irg.cli.bench_score import table

    return table(argv)


_COMMANDS = {
    "run": (_run, "draw a benchmark's prompts: geneval, wise, tiif, genai-bench, oneig"),
    "score": (_score, "let judges score a run, or any folder of images"),
    "table": (_table, "scores and the paper's side by side, as Markdown, CSV or HTML"),
}


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Raises:
        ValueError: an argument is wrong, or something it names is missing.
    """
    return dispatch("irg bench", _COMMANDS, argv)
