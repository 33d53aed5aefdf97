"""``irg edit IMAGE... "instruction"``: one instruction, one or several images in one context, as BAGEL does it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from irg.cli.arguments import parse_with_settings
from irg.cli.requests import Request, collect, drawn_seed, images_and_text
from irg.cli.running import DrawingOptions, run
from irg.reasoning.settings import LOOP_SETTINGS

EXAMPLE = 'irg edit photo.jpg "make the apple green"'


@dataclass(frozen=True)
class EditOptions(DrawingOptions):
    """Settings that are left out are the model's own."""

    words: Positional[Annotated[tuple[str, ...], arg(metavar="IMAGE... INSTRUCTION")]] = ()
    """Image files, which the model sees together, and what to do, in quotes. The result has the last image's shape."""
    prompts_file: str | None = None
    """More requests: JSON lines {"image": "photo.jpg", "prompt": "...", "seed": 7} ("images" for several)."""
    think: bool = False
    """Let the model think before it draws."""


def main(argv: Sequence[str]) -> int:
    """Run the command; everything that can be checked without the model is checked before it is loaded.

    Raises:
        ValueError: an argument, an image, the model or a setting is not acceptable.
        OSError: the results can't be written.
    """
    what = "Edit images: one instruction, one or several images."
    options, changes = parse_with_settings(
        EditOptions, argv, "irg edit", what, without=("mode", *LOOP_SETTINGS), first_is_given=True
    )
    seed = drawn_seed(options.seed)
    given = []
    if options.words or options.prompts_file is None:
        images, instruction = images_and_text(options.words, EXAMPLE)
        given = [Request(instruction, seed, images)]
    requests = collect(given, options.prompts_file, seed, options.num_images, EXAMPLE, with_images=True)
    return run("irg edit", options, requests, changes | {"mode": "think" if options.think else "direct"}, "edit")
