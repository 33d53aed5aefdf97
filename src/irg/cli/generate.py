"""``irg generate PROMPT...``: draw images, each with its texts, settings and a report in a new folder."""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from irg.cli.arguments import ModelOptions, parse_with_settings
from irg.cli.output import Output
from irg.cli.requests import Request, collect, drawn_seed
from irg.reasoning.settings import Settings
from irg.results.folder import JSON_NAME, REPORT_NAME
from irg.results.trajectory import Trajectory

if TYPE_CHECKING:
    from irg.cli.display import Display
    from irg.reasoning.pipeline import IRGPipeline


@dataclass(frozen=True)
class GenerateOptions(ModelOptions):
    """Settings that are left out are the model's own."""

    prompts: Positional[Annotated[tuple[str, ...], arg(metavar="PROMPT...")]] = ()
    """What to draw; each in quotes."""
    prompts_file: str | None = None
    """More prompts: one a line, JSON lines {"prompt": "...", "seed": 7}, or CSV with such columns; - reads standard
    input."""
    seed: int | Literal["random"] = 0
    """The same prompt, seed and settings give the same image; random draws a seed and says which."""
    num_images: Annotated[int, arg(aliases=["-n"])] = 1
    """Images per prompt, with the seeds SEED, SEED+1, ..."""
    out: str | None = None
    """The folder to make (several results: a folder for each in it). Default: irg-out/PROMPT-SEED."""
    overwrite: bool = False
    """Replace an earlier result in --out."""
    json: bool = False
    """Print one JSON object for each result; all else goes to standard error."""
    quiet: bool = False
    """Print only where the results are."""
    batch_size: int | None = None
    """Requests that run together (default: 8, or as many as memory has room for)."""


def main(argv: Sequence[str]) -> int:
    """Run the command; everything that can be checked without the model is checked before it is loaded.

    Raises:
        ValueError: an argument, a prompt, the model or a setting is not acceptable.
        OSError: the results can't be written.
    """
    what = "Draw images: think, draw, look, reflect, draw better."
    options, changes = parse_with_settings(GenerateOptions, argv, "irg generate", what)
    seed = drawn_seed(options.seed)
    requests = collect(options.prompts, options.prompts_file, seed, options.num_images)
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    output = Output(options.out, requests, options.overwrite)

    from irg.cli.display import Display

    concurrent = min(options.batch_size or len(requests), len(requests))
    display = Display([one.prompt for one in requests], concurrent, to_stderr=options.json, quiet=options.quiet)
    interrupted, failed = False, 0
    try:
        with display:
            if options.seed == "random":
                display.note(f"Seed: {seed}")
            pipe = _load(options, changes, display)
            failed = _draw(pipe, requests, pipe.defaults, options, output, display)
    except KeyboardInterrupt:
        interrupted = True
    index = output.write_index()
    if index and not (options.json or options.quiet):
        print(f"All of them: {index}")
    if interrupted:
        kept = f"; {len(output.saved)} of {len(requests)} results are kept in {output.folder}" if output.saved else ""
        print(f"irg generate: interrupted{kept}", file=sys.stderr)
    elif failed:
        print(f"irg generate: error: {failed} of {len(requests)} requests failed", file=sys.stderr)
    return 130 if interrupted else 2 if failed else 0


def _load(options: GenerateOptions, changes: dict[str, Any], display: "Display") -> "IRGPipeline":
    display.note(f"Loading {options.model} ...")
    from irg.reasoning.pipeline import IRGPipeline

    return IRGPipeline.from_pretrained(
        options.model, options.device, memory=options.memory, weights=options.weights, say=display.note, options=changes
    )


def _draw(
    pipe: "IRGPipeline",
    requests: list[Request],
    settings: Settings,
    options: GenerateOptions,
    output: Output,
    display: "Display",
) -> int:
    """Run all requests; each result is written as soon as it is finished. Returns how many failed."""
    from irg.reasoning.events import Failed, Finished

    failed = 0

    prompts, seeds = [one.prompt for one in requests], [one.seed for one in requests]
    with closing(pipe.stream(prompts, seeds, settings, options.batch_size)) as events:
        for event in events:
            if isinstance(event, Failed):
                failed += 1
                display.error(f"irg generate: {event.error}")
                continue
            if not isinstance(event, Finished):
                display.show(event)
                continue
            folder = output.save(event.request, event.trajectory)
            if options.json:
                print(json.dumps(_summary(event.request, folder, event.trajectory)), flush=True)
            elif options.quiet:
                print(folder, flush=True)
            else:
                files = [name for name in event.trajectory.image_names() if name is not None]
                display.line(f"Written to {folder}: {', '.join([*files, JSON_NAME, REPORT_NAME])}")
    return failed


def _summary(index: int, folder: Path, trajectory: Trajectory) -> dict[str, Any]:
    """One result as ``--json`` prints it."""
    images = [str(folder / name) for name in trajectory.image_names() if name is not None]
    return {
        "index": index,
        "prompt": trajectory.prompt,
        "seed": trajectory.seed,
        "mode": trajectory.mode,
        "model": trajectory.model,
        "folder": str(folder),
        "image": images[-1] if images else None,
        "images": images,
        "report": str(folder / REPORT_NAME),
        "trajectory": str(folder / JSON_NAME),
        "thinking": trajectory.thinking,
        "reflection": trajectory.reflection,
        "stopped": trajectory.stopped,
        "tokens": trajectory.tokens,
        "seconds": round(trajectory.seconds, 3),
    }
