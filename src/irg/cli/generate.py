"""``irg generate PROMPT...``: draw images each with thoughts, settings and a report in a new folder."""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from irg.cli.arguments import image_size, parse
from irg.cli.output import Output
from irg.cli.requests import Request, collect
from irg.engine.settings import DrawSettings, RenormType
from irg.reasoning.settings import IMPROVE, Mode, Recall, Settings, with_options
from irg.results.folder import JSON_NAME, REPORT_NAME
from irg.results.trajectory import Trajectory

if TYPE_CHECKING:
    from irg.cli.display import Display
    from irg.reasoning.pipeline import IRGPipeline

Memory = Literal["auto", "bf16", "int8", "int4", "offload"]  # of reasoning.memory, which loads torch
Weights = Literal["ema", "model"]
DRAWING = tuple(DrawSettings.__dataclass_fields__)


@dataclass(frozen=True)
class GenerateOptions:
    """Settings that are left out are the model's own."""

    prompts: Positional[Annotated[tuple[str, ...], arg(metavar="PROMPT...")]] = ()
    """What to draw; each in quotes."""
    prompts_file: str | None = None
    """More prompts: one a line, or JSON lines {"prompt": "...", "seed": 7}; - reads standard input."""
    mode: Mode | None = None
    """direct: draw at once; think: think first; irg: then look, reflect and draw again."""
    rounds: int | None = None
    """For irg: how many times at most to look and draw again."""
    stop_when_done: bool = False
    """For irg: end as soon as a reflection finds nothing wrong."""
    always: bool = False
    """For irg: draw all rounds, even when a reflection finds nothing wrong."""
    recall: Recall | None = None
    """For irg: what a reflection sees besides the image: all that went before, or the prompt alone."""
    seed: int = 0
    """The same prompt, seed and settings give the same image."""
    num_images: Annotated[int, arg(aliases=["-n"])] = 1
    """Images per prompt, with the seeds SEED, SEED+1, ..."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, or one number for a square."""
    model: str = "mini"
    """mini (bundled), a model folder, or a hub id such as ByteDance-Seed/BAGEL-7B-MoT."""
    weights: Weights = "ema"
    """Which ones to take where a model has the averaged (ema) and the plain (model) ones."""
    memory: Memory = "auto"
    """How to fit the device: auto takes the first that fits; offload keeps layers in host memory."""
    device: str | None = None
    """cpu, cuda, or several that share the layers: cuda:0,cuda:1. Default: CUDA if there is one."""
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
    temperature: float | None = None
    """Of the thinking; 0 always takes the likeliest token."""
    reflect_temperature: float | None = None
    """Of the reflections, where it is to be another one."""
    max_think_tokens: int | None = None
    """Where a thought is cut off."""

    num_timesteps: int | None = None
    """First image: points of the time grid (50 points are 49 updates)."""
    timestep_shift: float | None = None
    """First image: more than 1 spends more steps near the noise."""
    cfg_text_scale: float | None = None
    """First image: guidance by the text; at most 1 is none."""
    cfg_img_scale: float | None = None
    """First image: guidance by an image; at most 1 is none."""
    cfg_interval: str | None = None
    """First image: LOW,HIGH (such as 0.4,1): guidance acts while LOW < t <= HIGH."""
    cfg_renorm_type: RenormType | None = None
    """First image: over what the guided velocity is renormalized."""
    cfg_renorm_min: float | None = None
    """First image: the least renormalization factor; 1 turns it off."""
    improve_num_timesteps: int | None = None
    """Later images: as above."""
    improve_timestep_shift: float | None = None
    """Later images: as above."""
    improve_cfg_text_scale: float | None = None
    """Later images: as above."""
    improve_cfg_img_scale: float | None = None
    """Later images: guidance by the image that is improved."""
    improve_cfg_interval: str | None = None
    """Later images: as above."""
    improve_cfg_renorm_type: RenormType | None = None
    """Later images: as above."""
    improve_cfg_renorm_min: float | None = None
    """Later images: as above."""


def main(argv: Sequence[str]) -> int:
    """Run the command; everything that can be checked without the model is checked before it is loaded.

    Raises:
        ValueError: an argument, a prompt, the model or a setting is not acceptable.
        OSError: the results can't be written.
    """
    options = parse(GenerateOptions, argv, "irg generate", "Draw images: think, draw, look, reflect, draw better.")
    requests = collect(options.prompts, options.prompts_file, options.seed, options.num_images)
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    given = changes(options)
    with_options(Settings(), given)  # a bad value shows before the model is loaded
    output = Output(options.out, requests, options.overwrite)

    from irg.cli.display import Display

    together = min(options.batch_size or len(requests), len(requests))
    display = Display([one.prompt for one in requests], together, to_stderr=options.json, quiet=options.quiet)
    interrupted = False
    try:
        with display:
            pipe = _load(options, display)
            _draw(pipe, requests, with_options(pipe.defaults, given), options, output, display)
    except KeyboardInterrupt:
        interrupted = True
    index = output.write_index()
    if index and not (options.json or options.quiet):
        print(f"All of them: {index}")
    if interrupted:
        kept = f"; {len(output.saved)} of {len(requests)} results are kept in {output.folder}" if output.saved else ""
        print(f"irg generate: interrupted{kept}", file=sys.stderr)
    return 130 if interrupted else 0


def changes(options: GenerateOptions) -> dict[str, Any]:
    """The settings that the command line changes, by name.

    Raises:
        ValueError: a value can't be read, or does not go with the mode.
    """
    names = ["mode", "rounds", "recall", "temperature", "reflect_temperature", "max_think_tokens"]
    names += [*DRAWING, *(IMPROVE + name for name in DRAWING)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.always and options.stop_when_done:
        raise ValueError("--always and --stop-when-done exclude each other")
    if options.always or options.stop_when_done:
        given["stop_when_done"] = options.stop_when_done
    if options.mode not in (None, "irg"):
        later = (IMPROVE, "rounds", "recall", "reflect_", "stop_")
        unused = next((name for name in given if name.startswith(later)), None)
        if unused:
            raise ValueError(f"{unused} has no meaning in mode {options.mode!r}, which draws one image")
    for name in ("cfg_interval", f"{IMPROVE}cfg_interval"):
        if name in given:
            given[name] = _interval(name, given[name])
    if options.size is not None:
        given["width"], given["height"] = image_size(options.size)
    return given


def _interval(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise ValueError(f"{name} must be LOW,HIGH (such as 0.4,1), got {text!r}") from error


def _load(options: GenerateOptions, display: "Display") -> "IRGPipeline":
    display.note(f"Loading {options.model} ...")
    from irg.reasoning.pipeline import IRGPipeline

    return IRGPipeline.from_pretrained(
        options.model, options.device, memory=options.memory, weights=options.weights, say=display.note
    )


def _draw(
    pipe: "IRGPipeline",
    requests: list[Request],
    settings: Settings,
    options: GenerateOptions,
    output: Output,
    display: "Display",
) -> None:
    """Run all requests; each result is written as soon as it is finished."""
    from irg.reasoning.events import Finished

    prompts, seeds = [one.prompt for one in requests], [one.seed for one in requests]
    with closing(pipe.stream(prompts, seeds, settings, options.batch_size)) as events:
        for event in events:
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
                display.tell(f"Written to {folder}: {', '.join([*files, JSON_NAME, REPORT_NAME])}")


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
