"""``irg improve IMAGE... --prompt "..."``: the loop from its look on, for images of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from irg.cli.arguments import parse_with_settings
from irg.cli.requests import Request, collect, drawn_seed
from irg.cli.running import LoopOptions, run

EXAMPLE = 'irg improve photo.jpg --prompt "a red apple left of a bus"'


@dataclass(frozen=True)
class ImproveOptions(LoopOptions):
    """Settings that are left out are the model's own."""

    images: Positional[Annotated[tuple[str, ...], arg(metavar="IMAGE...")]] = ()
    """Image files, each improved on its own."""
    prompt: str | None = None
    """What they should show."""
    prompts_file: str | None = None
    """More requests: JSON lines {"image": "photo.jpg", "prompt": "...", "seed": 7}, or CSV with such columns."""


def main(argv: Sequence[str]) -> int:
    """Run the command; everything that can be checked without the model is checked before it is loaded.

    Raises:
        ValueError: an argument, an image, the model or a setting is not acceptable.
        OSError: the results can't be written.
    """
    what = "Improve images: look, reflect, draw better."
    options, changes = parse_with_settings(
        ImproveOptions, argv, "irg improve", what, without=("mode",), first_is_given=True
    )
    if (options.prompt is None) != (not options.images):
        missing = "what the images should show (--prompt)" if options.images else "the images of --prompt"
        raise ValueError(f"say {missing}; for example: {EXAMPLE}")
    seed = drawn_seed(options.seed)
    given = [Request(options.prompt or "", seed, (Path(image),)) for image in options.images]
    requests = collect(given, options.prompts_file, seed, options.num_images, EXAMPLE, with_images=True)
    several = next((one for one in requests if len(one.images) > 1), None)
    if several:
        raise ValueError(f"{options.prompts_file}: one image a request, got {', '.join(map(str, several.images))}")
    return run("irg improve", options, requests, changes | {"mode": "irg"}, "improve")
