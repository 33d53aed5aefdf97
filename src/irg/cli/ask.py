"""``irg ask IMAGE... "question"``: a text about one or several images."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from irg.cli.arguments import ModelOptions, parse
from irg.cli.requests import Request, collect, drawn_seed, images_and_text
from irg.cli.running import check_images, load, titles
from irg.reasoning.settings import check_options

EXAMPLE = 'irg ask photo.jpg "What is left of the bus?"'


@dataclass(frozen=True)
class AskOptions(ModelOptions):
    """Settings that are left out are the model's own."""

    words: Positional[Annotated[tuple[str, ...], arg(metavar="IMAGE... QUESTION")]] = ()
    """Image files, which the model sees together, and the question, in quotes."""
    prompts_file: str | None = None
    """More questions: JSON lines {"image": "photo.jpg", "prompt": "...", "seed": 7} ("images" for several)."""
    think: bool = False
    """Let the model think before it answers."""
    max_tokens: int | None = None
    """The most tokens of an answer."""
    temperature: float | None = None
    """Of the answer; 0 always takes the likeliest token."""
    seed: int | Literal["random"] = 0
    """The same question, seed and settings give the same answer."""
    json: bool = False
    """Print one JSON object for each answer; all else goes to standard error."""
    quiet: bool = False
    """Print the answers only."""
    batch_size: int | None = None
    """Questions that are answered together (default: 8, or as many as memory has room for)."""


def main(argv: Sequence[str]) -> int:
    """Run the command; everything that can be checked without the model is checked before it is loaded.

    Raises:
        ValueError: an argument, an image, the model or a setting is not acceptable.
    """
    options = parse(AskOptions, argv, "irg ask", "Ask about images.")
    for name, number in (("max-tokens", options.max_tokens), ("batch-size", options.batch_size)):
        if number is not None and number < 1:
            raise ValueError(f"--{name} must be at least 1, got {number}")
    given = {"max_think_tokens": options.max_tokens, "temperature": options.temperature}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    check_options(changes)
    options.for_pipeline()  # a mistake is told before anything is done
    seed = drawn_seed(options.seed)
    asked = []
    if options.words or options.prompts_file is None:
        images, question = images_and_text(options.words, EXAMPLE)
        asked = [Request(question, seed, images)]
    requests = collect(asked, options.prompts_file, seed, 1, EXAMPLE, with_images=True)

    from irg.cli.display import Display

    concurrent = min(options.batch_size or len(requests), len(requests))
    display = Display(titles(requests), concurrent, to_stderr=options.json, quiet=options.quiet, task="ask")
    with display:
        shown = check_images(requests, display)
        pipe = load(options, changes | {"mode": "think" if options.think else "direct"}, display, "ask", shown)
        return _answer(pipe, requests, options, display)


def _answer(pipe: Any, requests: Sequence[Request], options: AskOptions, display: Any) -> int:
    """Print each answer as soon as it is there; returns the exit code."""
    from irg.cli.display import safe
    from irg.reasoning.events import Failed, Finished

    failed = 0
    prompts, seeds = [one.prompt for one in requests], [one.seed for one in requests]
    images = [one.images for one in requests]
    with closing(pipe.stream(prompts, seeds, pipe.defaults, options.batch_size, task="ask", images=images)) as events:
        for event in events:
            if isinstance(event, Failed):
                failed += 1
                display.error(f"irg ask: {event.error}")
            elif not isinstance(event, Finished):
                display.show(event)
            elif options.json:
                print(json.dumps(_summary(event.request, requests[event.request], event.trajectory)), flush=True)
            elif options.quiet:
                print(safe(event.trajectory.answer or ""), flush=True)
    return 2 if failed else 0


def _summary(index: int, request: Request, trajectory: Any) -> dict[str, Any]:
    """One answer as ``--json`` prints it."""
    return {
        "index": index,
        "prompt": trajectory.prompt,
        "given": [str(path) for path in request.images],
        "seed": trajectory.seed,
        "model": trajectory.model,
        "answer": trajectory.answer,
        "tokens": trajectory.tokens,
        "seconds": round(trajectory.seconds, 3),
    }
