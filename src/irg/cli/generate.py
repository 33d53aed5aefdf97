"""``irg generate PROMPT...``: draw images, each with its texts, settings and a report in a new folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from irg.cli.arguments import parse_with_settings
from irg.cli.requests import Request, collect, drawn_seed
from irg.cli.running import LoopOptions, run


@dataclass(frozen=True)
class GenerateOptions(LoopOptions):
    """Settings that are left out are the model's own."""

    prompts: Positional[Annotated[tuple[str, ...], arg(metavar="PROMPT...")]] = ()
    """What to draw; each in quotes."""
    prompts_file: str | None = None
    """More prompts: one a line, JSON lines {"prompt": "...", "seed": 7}, or CSV with such columns; - reads standard
    input."""


def main(argv: Sequence[str]) -> int:
    """Run the command; everything that can be checked without the model is checked before it is loaded.

    Raises:
        ValueError: an argument, a prompt, the model or a setting is not acceptable.
        OSError: the results can't be written.
    """
    what = "Draw images: think, draw, look, reflect, draw better."
    options, changes = parse_with_settings(GenerateOptions, argv, "irg generate", what)
    seed = drawn_seed(options.seed)
    given = [Request(prompt, seed) for prompt in options.prompts]
    requests = collect(given, options.prompts_file, seed, options.num_images, 'irg generate "a red apple"')
    return run("irg generate", options, requests, changes)
