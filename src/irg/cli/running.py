"""Requests run, shown and written: what the commands that draw have in common (``generate``, ``improve``, ``edit``)."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Suppress, arg

from irg.cli.arguments import ModelOptions
from irg.cli.output import Output
from irg.cli.requests import Request
from irg.critics import CriticOptions
from irg.image_files import open_image
from irg.reasoning.settings import SIZE, Settings
from irg.results.folder import JSON_NAME, REPORT_NAME
from irg.results.trajectory import Trajectory

if TYPE_CHECKING:
    from irg.cli.display import Display
    from irg.reasoning.critique import Critics
    from irg.reasoning.pipeline import IRGPipeline
    from irg.reasoning.protocols.base import Task


@dataclass(frozen=True)
class DrawingOptions(ModelOptions):
    """Settings that are left out are the model's own."""

    seed: int | Literal["random"] = 0
    """The same request, seed and settings give the same image; random draws a seed and says which."""
    num_images: Annotated[int, arg(aliases=["-n"])] = 1
    """Images per request, with the seeds SEED, SEED+1, ..."""
    out: str | None = None
    """The folder to make (several results: a folder for each in it). Default: one in irg-out."""
    overwrite: bool = False
    """Replace an earlier result in --out."""
    json: bool = False
    """Print one JSON object for each result; all else goes to standard error."""
    quiet: bool = False
    """Print only where the results are."""
    batch_size: int | None = None
    """Requests that run together (default: 8, or as many as memory has room for)."""
    parallel: Literal["tensor", "guidance"] | None = None
    """What several processes, started by torchrun with a GPU each, share out: the layers (tensor), or the branches of
    guidance (each then holds the whole model)."""


@dataclass(frozen=True)
class LoopOptions(DrawingOptions):
    """Of commands that run the loop, in which a critic may take the model's place."""

    critic_options: Annotated[CriticOptions, Suppress] = field(default_factory=CriticOptions)


def run(
    command: str,
    options: DrawingOptions,
    requests: Sequence[Request],
    changes: dict[str, Any],
    task: "Task" = "generate",
) -> int:
    """Load the model, run all requests and write each result as soon as it is finished; returns the exit code.

    Args:
        command: its name, for messages.
        changes: settings by name, over the model's own.
        task: what the requests are; all but ``generate`` are about images.

    Raises:
        ValueError: an option, the model or a setting is not acceptable.
        OSError: the results can't be written.
    """
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    options.for_pipeline()  # a mistake is told before anything is done
    if options.parallel is not None and options.seed == "random":
        raise ValueError("--seed random can't be combined with --parallel: each process would draw its own; give one")
    first = options.parallel is None or os.environ.get("RANK", "0") == "0"  # the process that shows and writes
    output = Output(options.out, requests, options.overwrite) if first else None

    from irg.cli.display import Display
    from irg.reasoning.critique import Critics

    critics = Critics(options.critic_options if isinstance(options, LoopOptions) else CriticOptions())
    concurrent = min(options.batch_size or len(requests), len(requests))
    display = Display(titles(requests), concurrent, to_stderr=options.json, quiet=options.quiet or not first, task=task)
    interrupted, failed = False, 0
    try:
        with display:
            if options.seed == "random":
                display.note(f"Seed: {requests[0].seed}")
            critics.prepare(changes)  # a mistake about one is told before the model is loaded
            images = check_images(requests, display)
            pipe = load(options, changes, display, task, images, critics, options.parallel)
            settings = pipe.defaults
            if task != "generate" and not changes.keys() & {SIZE, "width", "height"}:
                settings = settings.sized_by_image()
            failed = _draw(command, task, pipe, settings, requests, options, output, display)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        critics.close()
        if options.parallel is not None:
            from irg.model.placement.processes import leave

            leave()
    if output is None:
        return 130 if interrupted else 2 if failed else 0
    index = output.write_index()
    if index and not (options.json or options.quiet):
        print(f"All of them: {index}")
    if interrupted:
        kept = f"; {len(output.saved)} of {len(requests)} results are kept in {output.folder}" if output.saved else ""
        print(f"{command}: interrupted{kept}", file=sys.stderr)
    elif failed:
        print(f"{command}: error: {failed} of {len(requests)} requests failed", file=sys.stderr)
    return 130 if interrupted else 2 if failed else 0


def titles(requests: Sequence[Request]) -> list[str]:
    """What the terminal shows of each request."""
    return [": ".join([*filter(None, [", ".join(map(str, one.images))]), one.prompt]) for one in requests]


def check_images(requests: Sequence[Request], display: "Display") -> list[Path]:
    """Read every given image once, before the model is looked for; returns them.

    Raises:
        ValueError: one can't be read; it is named.
    """
    images = list(dict.fromkeys(path for one in requests for path in one.images))
    for path in images:
        open_image(path, display.note)
    return images


def load(
    options: ModelOptions,
    changes: dict[str, Any],
    display: "Display",
    task: "Task",
    images: Sequence[Path],
    critics: "Critics | None" = None,
    parallel: Literal["tensor", "guidance"] | None = None,
) -> "IRGPipeline":
    """The pipeline, with the settings of the command line, which are for a task, as its own."""
    display.note(f"Loading {options.model} ...")
    from irg.reasoning.pipeline import IRGPipeline

    return IRGPipeline.from_pretrained(
        **options.for_pipeline(),
        say=display.note,
        options=changes,
        task=task,
        images=images,
        critics=critics,
        parallel=parallel,
    )


def _draw(
    command: str,
    task: "Task",
    pipe: "IRGPipeline",
    settings: Settings,
    requests: Sequence[Request],
    options: DrawingOptions,
    output: Output | None,
    display: "Display",
) -> int:
    """Run all requests; each result is written as soon as it is finished, if there is an output. Returns how many
    failed."""
    from irg.reasoning.critique import failures, verdicts
    from irg.reasoning.events import Failed, Finished

    failed = 0
    prompts, seeds = [one.prompt for one in requests], [one.seed for one in requests]
    images = [one.images for one in requests]
    about: dict[str, Any] = {} if task == "generate" else {"task": task, "images": images}
    with closing(pipe.stream(prompts, seeds, settings, options.batch_size, **about)) as events:
        for event in events:
            if isinstance(event, Failed):
                failed += 1
                if output is None:
                    continue
                display.error(f"{command}: {event.error}")
                continue
            if not isinstance(event, Finished):
                display.show(event)
                continue
            if output is None:
                continue
            for problem in failures(event.trajectory):
                display.error(f"{command}: {event.trajectory.prompt[:60]!r}: {problem}")
            folder = output.save(event.request, event.trajectory)
            if options.json:
                summary = _summary(event.request, folder, event.trajectory)
                given = [str(path) for path in images[event.request]]
                print(json.dumps(summary | ({"given": given} if given else {})), flush=True)
            elif options.quiet:
                print(folder, flush=True)
            else:
                files = [name for name in event.trajectory.image_names() if name is not None]
                search = event.trajectory.search
                unseen = verdicts(event.trajectory) if search and search.chosen else []  # only the first was shown
                for line in [*event.trajectory.notes, *unseen, *([search.why, *search.notes] if search else ())]:
                    display.line(line)
                display.line(f"Written to {folder}: {', '.join([*files, JSON_NAME, REPORT_NAME])}")
    return failed


def _summary(index: int, folder: Path, trajectory: Trajectory) -> dict[str, Any]:
    """One result as ``--json`` prints it."""
    names = trajectory.image_names()
    images = [str(folder / name) for name in names if name is not None]
    best = None if trajectory.best is None else names[trajectory.best]
    summary = {
        "index": index,
        "prompt": trajectory.prompt,
        "seed": trajectory.seed,
        "mode": trajectory.mode,
        "model": trajectory.model,
        "folder": str(folder),
        "image": str(folder / best) if best else images[-1] if images else None,
        "images": images,
        "report": str(folder / REPORT_NAME),
        "trajectory": str(folder / JSON_NAME),
        "thinking": trajectory.thinking,
        "reflection": trajectory.reflection,
        "stopped": trajectory.stopped,
        "notes": trajectory.notes,
        "critics": [turn.critic for turn in trajectory.turns if turn.critic is not None],
        "tokens": trajectory.tokens,
        "seconds": round(trajectory.seconds, 3),
    }
    return summary | ({} if trajectory.search is None else {"search": trajectory.search.to_dict()})
