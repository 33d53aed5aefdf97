"""``irg model ...``: look into model folders, convert them, make random ones."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from irg.cli.arguments import Lora, image_size, parse
from irg.deprecation import renamed

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class _Info:
    path: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A model folder, a bundled model, or a hub id that is in the cache."""
    size: str | None = None
    """WIDTHxHEIGHT to estimate memory for; several with commas between. Default: 512, 768 and 1024 where they fit."""
    weights: str | None = None
    """Which ones of a folder with several, such as ema or model."""
    json: bool = False
    """Print one JSON object."""


def info(argv: Sequence[str]) -> int:
    """``irg model info``."""
    options = parse(
        _Info,
        argv,
        "irg model info",
        "What a model folder holds; reads headers and JSON, and looks for numbers that are not finite.",
    )
    from irg.model.describe import describe, in_lines
    from irg.reasoning.protocols.description import describe_protocol, protocol_lines
    from irg.reasoning.protocols.selection import find_model

    sizes = [image_size(word) for word in options.size.split(",")] if options.size else []
    folder, weights = find_model(options.path, options.weights, None, _say, offline=True)
    facts, protocol = describe(folder, sizes, weights), describe_protocol(options.path, folder)
    if options.json:
        print(json.dumps(facts.to_dict() | {"protocol": protocol.to_dict()}, indent=1))
    else:
        print("\n".join([in_lines(facts), "", *protocol_lines(protocol)]))
    return 0


@dataclass(frozen=True)
class _Convert:
    source: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A model folder, a bundled model, or a hub id, which is downloaded once; with --base also a file of weights alone,
    safetensors or GGUF."""
    out: Positional[Annotated[str, arg(metavar="FOLDER")]]
    """The folder to make."""
    layout: Literal["irg", "bagel"] | None = None
    """Of the new folder; default: as the source has it."""
    dtype: Dtype | None = None
    """Of all weights; default: each tensor keeps its own."""
    quantize: Literal["int8", "int4", "fp8"] | None = renamed(was="quantise", default=None)
    """Make the decoder's linear layers int8 or int4 (needs pip install 'irg[quant]'), or fp8."""
    format: Literal["fp8", "gguf", "comfyui"] | None = None
    """Write weights as other programs have them: fp8 with ComfyUI's scales, GGUF of type Q8_0 (needs pip install
    'irg[gguf]'), or the file of the ComfyUI node pack ComfyUI-BAGEL."""
    lora: Lora = ()
    """A low-rank adapter (ours, peft's, kohya's, diffusers'; folder or file) to merge, times SCALE; may be repeated."""
    shard_size: str | None = None
    """Split the weights into files of at most this, such as 5GB or 500MB; default: one file."""
    base: str | None = None
    """The model that the source was fine-tuned from, a folder or hub id: tensors, configuration, tokenizer and
    autoencoder that the source lacks come from it."""
    weights: str | None = None
    """Which ones of a source with several, such as ema or model."""
    overwrite: bool = False
    """Replace a model folder that is there."""


def convert(argv: Sequence[str]) -> int:
    """``irg model convert``."""
    what = "Write a model folder anew: layout, dtype, shards, quantization, a merged adapter, completed from its base."
    options = parse(_Convert, argv, "irg model convert", what)
    shard_bytes = _bytes(options.shard_size)
    from irg.model.weights.folders import is_weights_file, model_folder
    from irg.reasoning.prompts import BAGEL_PROFILE
    from irg.reasoning.protocols.description import profile_of_converted
    from irg.reasoning.protocols.selection import find_model

    partial = options.base is not None
    source, weights, profile = Path(options.source).expanduser(), options.weights, None
    if not is_weights_file(source):
        source, weights = find_model(options.source, weights, None, _say, partial=partial)
        profile = profile_of_converted(options.source, source, BAGEL_PROFILE)
    base = None if options.base is None else model_folder(options.base, say=_say)
    import torch

    from irg.model.weights.convert import Conversion
    from irg.model.weights.convert import convert as write

    conversion = Conversion(
        options.layout,
        None if options.dtype is None else getattr(torch, options.dtype),
        options.quantize,
        options.lora,
        shard_bytes,
        weights,
        base,
        options.format,
        profile,
    )
    with _progress("Writing") as (started, wrote):
        write(source, Path(options.out), conversion, options.overwrite, started, wrote, _say)
    print(f"Written to {options.out}")
    return 0


@dataclass(frozen=True)
class _Init:
    out: Positional[Annotated[str, arg(metavar="FOLDER")]]
    """The folder to make."""
    config: Literal["bagel_7b", "mini", "tiny"] = "tiny"
    """Sizes of the network."""
    random: bool = False
    """Random weights. Without it they are zeros in files with holes, which take no disk space: enough for info."""
    narrow: int = 1
    """Divide every width and the vocabulary by this, such as 8 or 16."""
    seed: int = 0
    """The same seed and configuration give the same files."""
    dtype: Dtype = "bfloat16"
    """Of the weights; the autoencoder's are float32."""
    layout: Literal["irg", "bagel"] = "bagel"
    """Of the folder."""
    shard_size: str | None = None
    """Split the weights into files of at most this, such as 5GB; default: one file."""
    overwrite: bool = False
    """Replace a model folder that is there."""


def init(argv: Sequence[str]) -> int:
    """``irg model init``."""
    what = "Make a model folder with random weights, for tests and benchmarks: it thinks and draws noise."
    options = parse(_Init, argv, "irg model init", what)
    shard_bytes = _bytes(options.shard_size)
    if not 1 <= options.narrow <= 1024:
        raise ValueError(f"--narrow must be from 1 to 1024, got {options.narrow}")
    if not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed must be from 0 to 2^63 - 1, got {options.seed}")
    import torch

    from irg.model.network.config import CONFIGS
    from irg.model.weights.convert import new_model_folder
    from irg.model.weights.initialize import narrower, write_folder

    config, seed = narrower(CONFIGS[options.config](), options.narrow), options.seed if options.random else None
    dtype = getattr(torch, options.dtype)
    with new_model_folder(Path(options.out), options.overwrite) as folder, _progress("Writing") as (started, wrote):
        write_folder(folder, config, options.layout, seed, dtype, shard_bytes, started, wrote)
    print(f"Written to {options.out}")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _bytes(text: str | None) -> int | None:
    """``5GB`` -> 5 000 000 000."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) *([KMG])B", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * {"K": 1e3, "M": 1e6, "G": 1e9}[match[2].upper()]) if match else 0
    if size < 1000:
        raise ValueError(f"--shard-size must be a size such as 5GB or 500MB, got {text!r}")
    return size


@contextmanager
def _progress(what: str) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar of bytes on standard error: (set the total, advance)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(what, total=None)

    def started(total: int) -> None:
        progress.update(task, total=total)
        progress.start()

    try:
        yield started, lambda size: progress.advance(task, size)
    finally:
        if progress.live.is_started:
            progress.stop()
